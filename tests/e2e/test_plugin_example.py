"""examples/custom_pass: a user's own pass by --plugin, and as an installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from tests.e2e.command import Project, manifest_of

if TYPE_CHECKING:
    from tests.e2e.command import Project

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_pass"
HOST = ("compress", "--profile", "host", "--recipe", EXAMPLE / "recipe.toml")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example's package installed in it."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(target),
        str(EXAMPLE / "package"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def inner_names(bundle: Path) -> set[str]:
    model = onnx.load(bundle / "model" / "model.onnx")
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    return {name for node in model.graph.node for name in node.output if name} - kept


def test_pass_is_short_and_the_same_in_the_package() -> None:
    file = EXAMPLE / "short_names.py"

    assert file.read_bytes() == (EXAMPLE / "package" / "edgepipe_short_names" / "__init__.py").read_bytes()
    assert len(file.read_text().splitlines()) < 40


def test_pass_by_plugin_is_in_bundle_manifest_and_report(small: Project) -> None:
    small.passes(*HOST, "--plugin", EXAMPLE / "short_names.py", "--set", "short-names.prefix=v", "--quiet")

    step = manifest_of(small.folder / "build")["passes"][-1]
    assert (step["name"], step["options"]) == ("short-names", {"prefix": "v"})
    assert [check["held"] for check in step["checks"]] == [True, True]
    assert all(name.startswith("v") for name in inner_names(small.folder / "build"))
    assert "short-names" in (small.folder / "build" / "report.html").read_text()


def test_pass_of_an_installed_package_needs_no_plugin(small: Project, installed: Path) -> None:
    with_package = Project(
        small.folder, small.cache, {"PYTHONPATH": ":".join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))}
    )

    shown = with_package.passes("passes", "show", "short-names").stdout
    with_package.passes(*HOST, "--quiet")

    assert "option   prefix" in shown
    assert manifest_of(small.folder / "build")["passes"][-1]["name"] == "short-names"
    assert all(name.startswith("t") for name in inner_names(small.folder / "build"))


def test_pass_is_cached_like_any_other(small: Project) -> None:
    small.passes(*HOST, "--plugin", EXAMPLE / "short_names.py", "--quiet")
    small.passes(*HOST, "--plugin", EXAMPLE / "short_names.py", "--force", "--quiet")

    assert manifest_of(small.folder / "build")["passes"][-1]["cached"] is True


def test_changed_plugin_runs_again(small: Project) -> None:
    own = small.folder / "own.py"
    own.write_text((EXAMPLE / "short_names.py").read_text())
    small.passes(*HOST, "--plugin", own, "--quiet")
    own.write_text(own.read_text() + "# changed\n")

    small.passes(*HOST, "--plugin", own, "--force", "--quiet")

    steps = {step["name"]: step["cached"] for step in manifest_of(small.folder / "build")["passes"]}
    assert steps["short-names"] is False and steps["quantize-dynamic"] is True


def test_pass_without_plugin_or_package_is_unknown(small: Project) -> None:
    small.refuses(*HOST, code=2, says=("recipe.toml", 'unknown pass "short-names"'))
