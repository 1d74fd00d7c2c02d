"""Nothing heavy is imported before it is needed, and no plugin at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgepipe.cli import COMMANDS

HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "peft", "optimum", "numpy", "rich", "pydantic", "tokenizers")


def heavy_after(code: str) -> list[str]:
    """Which heavy modules a fresh interpreter holds after running this."""
    report = f"import sys; print('HEAVY', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "code",
    [
        "import edgepipe",
        "from edgepipe.cli import run\nassert run(['--help']) == 0",
        "from edgepipe.cli import run\nassert run(['--version']) == 0",
    ],
)
def test_import_and_help_load_nothing_heavy(code: str) -> None:
    assert heavy_after(code) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", "--help"],
        ["passes", "list"],
        ["passes", "show", "quantize-dynamic"],
        ["profiles", "list"],
        ["profiles", "show", "rpi4"],
    ],
)
def test_commands_that_only_show_load_no_framework(arguments: list[str]) -> None:
    loaded = heavy_after(f"from edgepipe.cli import run\nassert run({arguments!r}) == 0")

    assert not {"torch", "transformers", "onnxruntime", "peft", "optimum"} & set(loaded)


def test_whole_engine_imports_without_a_framework() -> None:
    modules = [
        "build",
        "pipeline",
        "verdict",
        "bundle",
        "manifest",
        "plan",
        "intake",
        "measure",
        "checks",
        "worker",
        "tasks",
        "passes",
        "runners.local",
        "importance",
    ]

    loaded = heavy_after("\n".join(f"import edgepipe.{name}" for name in modules) + "\nfrom edgepipe.passes import passes\npasses()")

    assert not {"torch", "transformers", "onnxruntime", "peft", "optimum"} & set(loaded)


def test_help_lists_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgepipe", "--help"], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"}
    )

    for name, (_, text) in COMMANDS.items():
        assert f"{name} " in done.stdout
        assert text.split()[0] in done.stdout
    assert done.stderr == ""


def test_public_names_are_all_there() -> None:
    code = "import edgepipe\nfor name in edgepipe.__all__: assert getattr(edgepipe, name) is not None, name"

    assert heavy_after(code) is not None


def test_name_that_is_not_public_is_an_attribute_error() -> None:
    import edgepipe

    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        edgepipe.compres  # noqa: B018
