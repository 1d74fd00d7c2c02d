"""`import edgepipe` from a user's script, without an `if __name__ == "__main__"` guard."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.e2e.command import Project

COMPRESS = """
import edgepipe

result = edgepipe.compress(
    "base", profile="host", adapter="adapter", task="text-classification", data="samples.csv", out="built",
    budget={"max_size_ratio": 0.9, "max_accuracy_drop": 25, "max_latency_ratio": 20.0},
    options={"quantize-dynamic": {"per_channel": False}},
)
assert isinstance(result, edgepipe.CompressResult)
assert result.verdict in ("held", "unproven") and result.exit_code == 0, result.manifest["results"]
assert result.profile == "host" and result.bundle.name == "built" and result.report.is_file()
assert result.manifest["passes"][-1]["options"]["per_channel"] is False
assert result.measurements["timings"]

again = edgepipe.validate("built", data="samples.csv")
assert again.manifest["results"][0]["n"] == 200 and again.manifest["artifact"] == result.manifest["artifact"]
assert edgepipe.validate(result.bundle, profile="rpi4", strict=True, data="samples.csv").exit_code == 16
print("done")
"""
ERRORS = """
import edgepipe

for arguments, code, where in [
    ({"model": "nowhere"}, 3, "nowhere"),
    ({"profile": "rpi44"}, 2, "--profile"),
    ({"data": "nowhere.csv"}, 3, "nowhere.csv"),
    ({"out": "base"}, 2, "base"),
    ({"budget": {"max_size": 1}}, 2, "--budget"),
    ({"options": {"quantize-dynamic": {"per_chanel": 1}}}, 2, "quantize-dynamic.per_chanel"),
    ({"recipe": "nowhere.toml"}, 2, "nowhere.toml"),
]:
    try:
        edgepipe.compress(**{"model": "base", "profile": "host", "adapter": "adapter", "data": "samples.csv", "out": "built", **arguments})
    except edgepipe.EdgepipeError as error:
        assert error.exit_code == code, (arguments, error)
        assert where in error.where and error.what and error.fix, error
    else:
        raise AssertionError(arguments)
try:
    edgepipe.load_profile("rpi")
except edgepipe.EdgepipeError as error:
    assert "did you mean" in error.fix
broken = edgepipe.compress(profile="host", budget={"max_size_bytes": 1}, out="built")
assert (broken.verdict, broken.exit_code, broken.bundle.name) == ("broken", 11, "built.rejected")
print("done")
"""
PROGRESS = """
import edgepipe

class Told:
    def __init__(self): self.lines = []
    def stage(self, name, detail=""): self.lines.append(("stage", name))
    def update(self, stage, what, done=0, total=0): self.lines.append(("update", what))
    def finish(self, name, outcome): self.lines.append(("finish", name))

told = Told()
edgepipe.compress(profile="host", out="built", progress=told)
assert ("finish", "merge-lora") in told.lines and ("stage", "validate") in told.lines
print("done")
"""
OWN_PASS = """
import edgepipe

class Rename(edgepipe.PassOptions):
    producer: str = "me"

@edgepipe.register_pass("rename", takes={"model": "onnx"}, gives={"model": "onnx"}, options=Rename, checks=(edgepipe.Check("equal-outputs", 0.0),))
def rename(artifact, options, ctx):
    import onnx
    model = onnx.load(artifact.model.main_file)
    model.producer_name = options.producer
    onnx.save(model, ctx.workdir / "model.onnx")
    return artifact.with_component("model", edgepipe.onnx_component(ctx.workdir))
"""
USE_OWN_PASS = """
result = edgepipe.compress(profile="host", recipe="recipe.toml", out="built", plugins=[PLUGIN], options={"rename": {"producer": "them"}}, budget={"max_size_ratio": 2})
assert result.manifest["passes"][-1]["options"] == {"producer": "them"}
print("done")
"""
RECIPE = '[[step]]\npass = "merge-lora"\n[[step]]\npass = "export-onnx"\n[[step]]\npass = "rename"\n'


def runs(project: Project, script: str) -> None:
    (project.folder / "script.py").write_text(script)

    done = project.execute([sys.executable, "script.py"])

    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_compress_and_validate_give_typed_results(small: Project) -> None:
    small.toml().unlink()

    runs(small, COMPRESS)


def test_errors_are_edgepipe_errors_with_three_parts(small: Project) -> None:
    runs(small, ERRORS)


def test_progress_is_told_to_the_callers_object(small: Project) -> None:
    runs(small, PROGRESS)


def test_own_pass_from_a_plugin_file_runs(small: Project) -> None:
    (small.folder / "recipe.toml").write_text(RECIPE)
    (small.folder / "mine.py").write_text(OWN_PASS)

    runs(small, "import edgepipe\nPLUGIN = 'mine.py'\n" + USE_OWN_PASS)


def test_own_pass_registered_in_the_script_itself_runs(small: Project) -> None:
    (small.folder / "recipe.toml").write_text(RECIPE)

    runs(small, OWN_PASS + USE_OWN_PASS.replace("plugins=[PLUGIN], ", ""))


def test_load_profile_gives_the_facts(small: Project) -> None:
    runs(
        small,
        "import edgepipe\nprofile = edgepipe.load_profile('rpi4')\nassert 'asimd' in profile.cpu.isa and profile.name == 'rpi4'\nprint('done')",
    )


def test_import_loads_no_heavy_library(small: Project) -> None:
    runs(
        small,
        "import edgepipe, sys\nassert not {'torch', 'transformers', 'onnxruntime', 'onnx', 'numpy', 'click'} & set(sys.modules)\nprint('done')",
    )
