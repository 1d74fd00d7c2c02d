"""Plugins that fail: exit code 4 naming the plugin or its pass, the parent survives, nothing is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.command import Project

HOST = ("compress", "--profile", "host", "--plugin", "plugin.py")
HEAD = """\
import os, signal, sys
from pathlib import Path

import edgepipe


@edgepipe.register_pass("mine", takes={"model": "onnx"}, gives={"model": "onnx"})
def mine(artifact, options, ctx):
"""
BROKEN_MODEL = """\
    Path(ctx.workdir, "model.onnx").write_bytes(b"x")
    return artifact.with_component("model", edgepipe.onnx_component(ctx.workdir))
"""
RECIPE = '[[step]]\npass = "optimize-graph"\n\n[[step]]\npass = "mine"\n'


def write(project: Project, plugin: str) -> None:
    (project.folder / "plugin.py").write_text(plugin)
    (project.folder / "recipe.toml").write_text(RECIPE)


@pytest.mark.parametrize(
    ("plugin", "code", "says"),
    [
        ("raise ValueError('no luck')\n", 4, ("plugin.py:", "does not load: ValueError: no luck")),
        ("import a_package_nobody_has\n", 4, ("plugin.py:", "ModuleNotFoundError", "a_package_nobody_has")),
        ("def broken(:\n", 4, ("plugin.py", "SyntaxError")),
        ("import sys\nsys.exit(0)\n", 4, ("plugin.py:", "SystemExit")),
        ("import edgepipe\n", 2, ('unknown pass "mine"',)),
        ("import edgepipe\nedgepipe.register_pas\n", 4, ("plugin.py:", "register_pas")),
    ],
)
def test_plugin_that_does_not_load_is_named(onnx_project: Project, plugin: str, code: int, says: tuple[str, ...]) -> None:
    write(onnx_project, plugin)

    errors = onnx_project.refuses(*HOST, "--recipe", "recipe.toml", code=code, says=says)

    assert errors.startswith("error: ")


def test_plugin_that_is_no_python_file_is_refused(onnx_project: Project) -> None:
    (onnx_project.folder / "plugin.txt").write_text("")

    onnx_project.refuses("compress", "--profile", "host", "--plugin", "plugin.txt", code=2, says=("plugin.txt", ".py"))


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("    raise RuntimeError('out of ideas')\n", 4, ("pass mine", "RuntimeError: out of ideas", "log has the traceback")),
        ("    return None\n", 4, ("pass mine", "returned NoneType, not an Artifact")),
        ("    return artifact\n", 4, ("pass mine", "changed nothing")),
        ("    return edgepipe.Artifact({}, (), artifact.program)\n", 4, ("pass mine", 'no component "model"')),
        ("    ctx.data('test')\n", 4, ("pass mine", "test data without declaring it")),
        (BROKEN_MODEL, 4, ("pass mine", "wrote a broken model")),
        ("    artifact.model.main_file.write_bytes(b'spoilt')\n    return artifact\n", 4, ("pass mine",)),
        ("    print('chatter')\n    os.write(1, b'noise')\n    raise KeyError('x')\n", 4, ("pass mine", "KeyError")),
        ("    sys.exit(0)\n", 4, ("pass mine",)),
        ("    os.kill(os.getpid(), signal.SIGSEGV)\n", 4, ("pass mine", "crashed in native code (signal 11)")),
        ("    os.kill(os.getpid(), signal.SIGKILL)\n", 6, ("pass mine", "killed", "memory")),
        ("    return [0] * (1 << 62)\n", 6, ("pass mine", "memory ran out")),
    ],
)
def test_pass_that_misbehaves_is_named(onnx_project: Project, body: str, code: int, says: tuple[str, ...]) -> None:
    write(onnx_project, HEAD + body)

    onnx_project.refuses(*HOST, "--recipe", "recipe.toml", code=code, says=says)


def test_pass_that_spoils_its_input_does_not_spoil_later_builds(onnx_project: Project) -> None:
    write(
        onnx_project,
        HEAD + "    path = artifact.model.main_file\n    os.chmod(path, 0o644)\n    path.write_bytes(b'spoilt')\n    return artifact\n",
    )
    onnx_project.run(*HOST, "--recipe", "recipe.toml")

    onnx_project.passes("compress", "--profile", "host", "--quiet")


def test_failure_is_not_cached(onnx_project: Project) -> None:
    source = HEAD + "    if not os.path.exists(os.environ['LUCK']): raise RuntimeError('not yet')\n"
    source += "    folder = Path(ctx.workdir, 'm'); folder.mkdir(); text = artifact.model.main_file.read_bytes()\n"
    source += (
        "    import onnx; model = onnx.load_from_string(text); model.producer_name = 'mine'; onnx.save(model, folder / 'model.onnx')\n"
    )
    write(onnx_project, source + "    return artifact.with_component('model', edgepipe.onnx_component(folder))\n")
    luck, budget = onnx_project.folder / "luck", ("--budget", "max_size_ratio=2")
    onnx_project.refuses(*HOST, "--recipe", "recipe.toml", code=4, says=("not yet",), env={"LUCK": str(luck)})
    luck.touch()

    onnx_project.passes(*HOST, "--recipe", "recipe.toml", *budget, "--quiet", env={"LUCK": str(luck)})


def test_plugin_may_not_take_the_name_of_a_built_in_pass(onnx_project: Project) -> None:
    write(onnx_project, HEAD.replace('"mine"', '"optimize-graph"') + "    return artifact\n")

    onnx_project.refuses(*HOST, code=4, says=("optimize-graph", "plugin.py"))


def test_pass_with_options_that_are_no_model_is_refused(onnx_project: Project) -> None:
    write(onnx_project, HEAD.replace('gives={"model": "onnx"}', 'gives={"model": "onnx"}, options=dict') + "    return artifact\n")

    onnx_project.refuses(*HOST, "--recipe", "recipe.toml", code=4, says=("plugin.py", "options"))


def test_pass_with_an_unknown_check_is_refused(onnx_project: Project) -> None:
    write(
        onnx_project,
        HEAD.replace('gives={"model": "onnx"}', 'gives={"model": "onnx"}, checks=(edgepipe.Check("equal-output"),)')
        + "    return artifact\n",
    )

    onnx_project.refuses(*HOST, "--recipe", "recipe.toml", code=4, says=("mine", '"equal-output"', 'did you mean "equal-outputs"?'))
