"""Wrong command lines, project files, recipes and profiles: one message that names the nearest right thing, exit code 2."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.models import sentences, write_csv

if TYPE_CHECKING:
    from tests.e2e.command import Project

HOST = ("compress", "--profile", "host")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compress", "--profile", "rpi44"), ('unknown profile "rpi44"', 'did you mean "rpi4"?')),
        (("compress", "--profile", "mine.toml"), ("mine.toml", "no such file")),
        (("compress",), ("no profile is given", "--profile")),
        ((*HOST, "--task", "text-clasification"), ('unknown task "text-clasification"', 'did you mean "text-classification"?')),
        ((*HOST, "--budget", "max_size_byte=1"), ('unknown budget "max_size_byte"', 'did you mean "max_size_bytes"?')),
        ((*HOST, "--budget", "max_size_bytes"), ("--budget", "KEY=VALUE")),
        ((*HOST, "--budget", "max_size_bytes=twenty"), ("--budget", "max_size_bytes", "twenty")),
        ((*HOST, "--budget", "max_size_ratio=-1"), ("--budget", "max_size_ratio", "greater than 0")),
        ((*HOST, "--set", "quantize-dynamic.per_chanel=false"), ('unknown key "per_chanel"', 'did you mean "per_channel"?')),
        ((*HOST, "--set", "quantize-dynamic.per_channel=maybe"), ("per_channel", "maybe")),
        ((*HOST, "--set", "prune-ffn.ratio=0.5"), ("--set prune-ffn.ratio", "not in the recipe")),
        ((*HOST, "--set", "quantize-dynamic"), ("--set", "PASS.OPTION=VALUE")),
        ((*HOST, "--recipe", "none.toml"), ("none.toml", "no such file")),
        ((*HOST, "--project", "none.toml"), ("none.toml", "no such file")),
        ((*HOST, "--plugin", "none.py"), ("none.py", "no such plugin file")),
        ((*HOST, "--data", "samples.xlsx"), ('".xlsx"', ".csv")),
        ((*HOST, "--modell", "x"), ("--modell",)),
        (("compres",), ('"compres"', 'did you mean "compress"?')),
        (("passes", "show", "quantise-dynamic"), ('did you mean "quantize-dynamic"?',)),
        (("profiles", "show", "rpi"), ('unknown profile "rpi"', 'did you mean "rpi')),
        (("cache", "prune", "--max-size", "nonsense"), ("--max-size", '"nonsense" is no size')),
        (("cache", "prune", "--max-size", "-5GB"), ("--max-size", '"-5GB"')),
        (("cache", "prune", "--max-size", "inf"), ("--max-size", '"inf"')),
        (("cache", "prune"), ("--max-size",)),
        (("completion", "tcsh"), ("tcsh", "bash")),
        (("diff", "a"), ("NEW",)),
    ],
    ids=lambda value: " ".join(value)[-50:] if value[0][0].islower() else "",
)
def test_wrong_command_line_names_what_is_right(small: Project, arguments: tuple[str, ...], says: tuple[str, ...]) -> None:
    (small.folder / "samples.xlsx").write_bytes(b"PK")

    small.refuses(*arguments, code=2, says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modell = 'x'\n", ("edgepipe.toml:1:", 'unknown key "modell"', 'did you mean "model"?')),
        (
            "model = 'base'\n\n[budget]\nmax_latncy_ms = 5\n",
            ("edgepipe.toml:4:", 'unknown key "max_latncy_ms" in [budget]', '"max_latency_ms"'),
        ),
        ("model = 'base'\n[data]\nfile = 'samples.csv'\nallow_overlaps = []\n", ("edgepipe.toml:4:", 'did you mean "allow_overlap"?')),
        ("model = 'base'\n[task\nname = 'x'\n", ("edgepipe.toml:2:", "not valid TOML")),
        ("model = 'base'\ntask = 5\n", ("edgepipe.toml:2:", "task")),
        ("model = 'base'\n[budget]\nmax_size_ratio = 'small'\n", ("edgepipe.toml:3:", '"max_size_ratio"', "small")),
        (
            "model = 'base'\n[task]\nname = 'text-classificaton'\n[data]\nfile = 'samples.csv'\n",
            ("text-classificaton", 'did you mean "text-classification"?'),
        ),
        ("model = 'base'\n", ("no task is given", "--task")),
        ("[task]\nname = 'fidelity'\n", ("no model is given",)),
        (
            "model = 'base'\n[task]\nname = 'fidelity'\n[data]\nfile = 'samples.csv'\n[passes.quantize-dynamik]\nper_channel = false\n",
            ("quantize-dynamik",),
        ),
    ],
)
def test_wrong_project_file_names_file_line_and_key(small: Project, text: str, says: tuple[str, ...]) -> None:
    small.toml().write_text(text)

    small.refuses(*HOST, code=2, says=says)


def test_project_file_that_is_not_utf8_is_refused(small: Project) -> None:
    small.toml().write_bytes(b"name = 'caf\xe9'\n")

    small.refuses(*HOST, code=2, says=("edgepipe.toml", "UTF-8"))


STEP = '[[step]]\npass = "{}"\n'


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (
            STEP.format("merge-lora") + STEP.format("quantize-dynamic") + STEP.format("export-onnx"),
            ("recipe.toml:3:", "quantize-dynamic must come after export-onnx"),
        ),
        (
            STEP.format("export-onnx") + STEP.format("merge-lora") + STEP.format("optimize-graph"),
            ("recipe.toml:1:", "export-onnx must come after merge-lora"),
        ),
        (
            STEP.format("merge-lora") + STEP.format("optimize-graph"),
            ("recipe.toml:3:", "takes a onnx model", "it is torch", "add export-onnx"),
        ),
        (STEP.format("merge-lora") + STEP.format("prune-ffn"), ("ends with a torch model", "add export-onnx")),
        (STEP.format("export-onnx"), ("an adapter is given, but the recipe does not merge it", "merge-lora")),
        ("step = []\n", ("step",)),
        ("", ('missing key "step"',)),
        (
            STEP.format("merge-lora") + STEP.format("quantise-dynamic"),
            ("recipe.toml:3:", 'unknown pass "quantise-dynamic"', 'did you mean "quantize-dynamic"?'),
        ),
        (
            '[[step]]\npass = "merge-lora"\n\n[[step]]\npass = "export-onnx"\noption = { opset = 17 }\n',
            ("recipe.toml:6:", 'unknown key "option"', '"options"'),
        ),
        (
            '[[step]]\npass = "export-onnx"\noptions = { opsett = 17 }\n',
            ("recipe.toml:3:", 'unknown key "opsett"', 'did you mean "opset"?'),
        ),
        (STEP.format("merge-lora") + STEP.format("export-onnx") + "[step.options]\nopset = 99\n", ("recipe.toml:6:", "opset", "99")),
        ('[[step]\npass = "export-onnx"\n', ("recipe.toml:1:", "not valid TOML")),
    ],
)
def test_wrong_recipe_is_refused_before_anything_runs(small: Project, recipe: str, says: tuple[str, ...]) -> None:
    (small.folder / "recipe.toml").write_text(recipe)

    errors = small.refuses(*HOST, "--recipe", "recipe.toml", code=2, says=says)

    assert errors.startswith("error: ")  # no pass was begun


def test_wrong_option_names_the_place_it_was_set(small: Project) -> None:
    small.toml().write_text(small.toml().read_text() + "\n[passes.quantize-dynamic]\nper_chanel = false\n")
    line = small.toml().read_text().splitlines().index("per_chanel = false") + 1

    small.refuses(*HOST, code=2, says=(f"edgepipe.toml:{line}:", 'unknown key "per_chanel"', 'did you mean "per_channel"?'))
    small.refuses(*HOST, "--set", "quantize-dynamic.per_chanel=true", code=2, says=("--set quantize-dynamic.per_chanel:",))


def test_profile_file_error_names_file_and_line(small: Project) -> None:
    (small.folder / "mine.toml").write_text('extends = "rpi4"\nname = "mine"\n[cpu]\ncoress = 2\n')

    small.refuses("compress", "--profile", "mine.toml", code=2, says=("mine.toml:4:", 'unknown key "coress"', 'did you mean "cores"?'))


def test_error_as_json_is_the_only_output(small: Project) -> None:
    done = small.run("compress", "--profile", "rpi44", "--json")

    error = json.loads(done.stdout)["error"]
    assert done.returncode == error["code"] == 2
    assert set(error) == {"code", "what", "where", "fix"}
    assert "rpi44" in error["what"] and "rpi4" in error["fix"]
    assert done.stderr == ""


def test_data_file_given_with_a_role_of_its_own_is_used_for_that_role(small: Project) -> None:
    write_csv(small.folder / "judge.csv", sentences(60, seed=7))

    done = small.passes(*HOST, "--data", "samples.csv", "--test", "judge.csv", "--json")

    assert json.loads(done.stdout)["source"]["rows"]["test"] == 60
