"""Every command as a user types it: what it prints, what it writes, and which setting wins."""

from __future__ import annotations

import json
import subprocess
import tomllib
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from edgepipe.cli import COMMANDS
from tests.e2e.command import listing, manifest_of

if TYPE_CHECKING:
    from tests.e2e.command import Project

HOST = ("compress", "--profile", "host")
RECIPE = """\
[[step]]
pass = "merge-lora"
[[step]]
pass = "export-onnx"
[[step]]
pass = "quantize-dynamic"
options = { per_channel = false, reduce_range = true }
"""
GROUPS = {"profiles": ("list", "show", "check"), "passes": ("list", "show"), "cache": ("list", "prune")}


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS), *((group, name) for group, names in GROUPS.items() for name in names)], ids=" ".join
)
def test_help_of_every_command_says_what_it_does(small: Project, command: tuple[str, ...]) -> None:
    done = small.passes(*command, "--help")

    assert done.stdout.startswith(f"Usage: {' '.join(('edgepipe', *command))}")
    assert len(done.stdout.splitlines()) > 4 and done.stderr == ""


def test_help_lists_every_command_and_imports_no_heavy_library(small: Project) -> None:
    done = small.execute(["python", "-X", "importtime", "-m", "edgepipe", "--help"])

    assert all(name in done.stdout for name in COMMANDS)
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "transformers", "onnxruntime", "onnx", "peft", "optimum", "numpy"}


def test_version_is_the_packages(small: Project) -> None:
    from importlib.metadata import version

    assert small.passes("--version").stdout == f"edgepipe {version('edgepipe')}\n"


def test_plan_written_and_run_as_recipe_gives_the_same_artifact(small: Project, built: Project) -> None:
    small.passes("plan", "--profile", "host", "--write", "recipe.toml")
    small.passes(*HOST, "--recipe", "recipe.toml", "--quiet")

    ours, theirs = manifest_of(small.folder / "build"), manifest_of(built.folder / "build")
    assert ours["artifact"] == theirs["artifact"]
    assert [step["reason"] for step in ours["passes"]] == [step["reason"] for step in theirs["passes"]]


def test_plan_prints_a_recipe_with_a_reason_on_every_line_and_what_was_left_out(small: Project) -> None:
    recipe = tomllib.loads(small.passes("plan", "--profile", "rpi4").stdout)
    as_json = json.loads(small.passes("plan", "--profile", "rpi4", "--json").stdout)

    assert [step["pass"] for step in recipe["step"]] == [
        "merge-lora",
        "export-onnx",
        "optimize-graph",
        "quantize-static",
        "quantize-dynamic",
    ]
    assert all(step["reason"] for step in recipe["step"])
    assert "kernel costs, counted" in recipe["step"][-2]["reason"]
    assert any("the budgets hold without" in line for line in recipe["left_out"])
    assert [step["pass"] for step in as_json["step"]] == [step["pass"] for step in recipe["step"]]


def test_plans_for_several_profiles_differ_where_the_device_does(small: Project) -> None:
    old, new = json.loads(small.passes("plan", "--profile", "x86-avx2", "--profile", "x86-vnni", "--json").stdout)

    assert any("saturate at 16 bits (cpu.isa)" in line for line in old["left_out"])
    assert not any("saturate" in line for line in new["left_out"])


def test_dry_run_shows_the_plan_and_writes_nothing(small: Project) -> None:
    before, cache = listing(small.folder), listing(small.cache / "store")

    done = small.passes(*HOST, "--dry-run")

    assert "quantize-dynamic" in done.stdout
    assert listing(small.folder) == before and listing(small.cache / "store") == cache


@pytest.mark.parametrize(("arguments", "code"), [(("--data", "none.csv"), 3), (("--out", "base"), 2)])
def test_dry_run_checks_data_and_output_too(small: Project, arguments: tuple[str, ...], code: int) -> None:
    small.refuses(*HOST, *arguments, "--dry-run", code=code)


def test_quiet_is_silent(small: Project) -> None:
    done = small.passes(*HOST, "--quiet")

    assert done.stdout == "" and done.stderr == ""


def test_strict_refuses_what_is_unproven_but_hands_it_over(small: Project) -> None:
    done = small.run("compress", "--profile", "rpi4", "--strict", "--quiet")

    assert done.returncode == manifest_of(small.folder / "build")["exit_code"] == 16


def test_verbose_tells_the_reason_of_every_pass(small: Project) -> None:
    done = small.passes(*HOST, "--verbose")

    assert "merge-lora: 1 adapter" in done.stderr


def test_inspect_shows_parts_operators_and_what_binds(small: Project, onnx_project: Project) -> None:
    torch = json.loads(small.passes("inspect", "base", "--profile", "rpi4", "--json").stdout)
    onnx = json.loads(onnx_project.passes("inspect", "onnx", "--json").stdout)

    assert torch["format"] == "torch" and torch["labels"] == ["negative", "positive"]
    assert torch["parameters"] == sum(part["parameters"] for part in torch["parts"]) > 20_000
    assert torch["binding"][0]["profile"] == "rpi4" and torch["binding"][0]["share_of_ram"] < 0.01
    assert onnx["format"] == "onnx" and onnx["operators"]["MatMul"] == 1
    assert "on rpi4:" in small.passes("inspect", "base", "--profile", "rpi4").stdout


def test_inspect_of_no_model_is_refused(small: Project) -> None:
    small.refuses("inspect", "nowhere", code=3, says=("nowhere", "no such model"))


def test_report_shows_verdicts_again_and_writes_one_page(bundled: Project) -> None:
    done = bundled.passes("report", "build", "build", "--out", "page.html", "--junit", "junit.xml")

    page = (bundled.folder / "page.html").read_text()
    assert done.stdout.count("component bytes") == 2
    assert page.lstrip().startswith("<!") and "http://" not in page.replace("http://www.w3.org", "")
    assert len(list(ElementTree.parse(bundled.folder / "junit.xml").iter("testcase"))) > 5
    assert json.loads(bundled.passes("report", "build", "--json").stdout) == manifest_of(bundled.folder / "build")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_calls_back_with_the_program(small: Project, shell: str) -> None:
    script = small.passes("completion", shell).stdout

    assert "_EDGEPIPE_COMPLETE" in script and shell in script


def test_bash_completion_completes_commands_and_options(small: Project) -> None:
    def complete(words: str, index: int) -> set[str]:
        done = small.execute(["edgepipe"], env={"_EDGEPIPE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)})
        return {line.split(",", 1)[1] for line in done.stdout.splitlines()}

    assert complete("edgepipe comp", 1) == {"compress", "completion"}
    assert {"--profile", "--project"} <= complete("edgepipe compress --pro", 2)


def test_bash_accepts_the_completion_script(small: Project) -> None:
    script = small.passes("completion", "bash").stdout

    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False).stderr == ""


@pytest.mark.parametrize("kind", ["init", "found"])
def test_init_writes_a_project_file_that_builds(small: Project, kind: str) -> None:
    small.toml().unlink()
    if kind == "found":
        (small.folder / "samples.csv").rename(small.folder / "anything.csv")

    small.passes("init", "base")
    budget = ("--budget", "max_size_ratio=0.9", "--budget", "max_accuracy_drop=25", "--budget", "max_latency_ratio=20")
    small.passes(*HOST, *budget, "--quiet")

    project = tomllib.loads(small.toml().read_text())
    assert (project["model"], project["adapters"], project["task"]["name"]) == ("base", ["adapter"], "text-classification")
    assert manifest_of(small.folder / "build")["passes"][0]["name"] == "merge-lora"


def test_init_keeps_an_existing_file_unless_forced(small: Project) -> None:
    small.refuses("init", "base", code=2, says=("edgepipe.toml", "--force"))
    small.passes("init", "base", "--force")
    small.refuses("init", "adapter", "--force", code=2, says=("adapter",))
    small.refuses("init", "nowhere", "--out", "other.toml", code=3, says=("nowhere",))


def test_flag_beats_set_beats_project_beats_recipe(small: Project) -> None:
    (small.folder / "recipe.toml").write_text(RECIPE)
    small.toml().write_text('recipe = "recipe.toml"\n' + small.toml().read_text() + "\n[passes.quantize-dynamic]\nper_channel = true\n")

    def options(*arguments: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(small.passes("plan", "--profile", "host", "--json", *arguments).stdout)["step"][-1]["options"]
        return found

    assert options() == {"per_channel": True, "reduce_range": True}  # project over recipe, recipe over default
    assert options("--set", "quantize-dynamic.per_channel=false") == {"per_channel": False, "reduce_range": True}


def test_flags_beat_the_project_file(small: Project) -> None:
    small.toml().write_text('profiles = ["rpi4"]\nout = "from-file"\n' + small.toml().read_text())

    done = json.loads(small.passes("compress", "--json").stdout)
    other = json.loads(small.passes(*HOST, "--out", "from-flag", "--budget", "max_size_ratio=0.8", "--json").stdout)

    assert done["profile"] == "rpi4" and (small.folder / "from-file").is_dir()
    assert other["profile"] == "host" and (small.folder / "from-flag").is_dir()
    assert (done["budget"]["max_size_ratio"], other["budget"]["max_size_ratio"]) == (0.9, 0.8)


def test_project_file_above_governs_and_its_paths_are_its_own(small: Project) -> None:
    (small.folder / "deep" / "er").mkdir(parents=True)
    inside = type(small)(small.folder / "deep" / "er", small.cache)

    inside.passes(*HOST, "--quiet")

    assert (small.folder / "build" / "manifest.json").is_file()


def test_tool_table_in_pyproject_is_a_project_file(small: Project) -> None:
    text = (
        small.toml()
        .read_text()
        .replace("[task]", "[tool.edgepipe.task]")
        .replace("[data]", "[tool.edgepipe.data]")
        .replace("[budget]", "[tool.edgepipe.budget]")
    )
    small.toml().unlink()
    pyproject = small.folder / "pyproject.toml"
    pyproject.write_text("[tool.edgepipe]\n" + text)

    small.passes(*HOST, "--dry-run")
    pyproject.write_text(pyproject.read_text() + "max_sise_ratio = 1\n")
    line = len(pyproject.read_text().splitlines())
    small.refuses(*HOST, code=2, says=(f"pyproject.toml:{line}:", 'unknown key "max_sise_ratio"', "max_size_ratio"))
