"""A pass of the user's own, from a plugin file: it works like a built-in one, and what is wrong with it is told by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepipe.errors import ModelError, PassError, UsageError
from edgepipe.progress import Silent
from edgepipe.worker_process import WorkerProcess
from tests.passes.running import job_for, outputs, text_feeds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.config import Data

HEAD = '''
from pathlib import Path

import onnx
import numpy as np

import edgepipe

def edited(artifact, ctx, change):
    """The artifact with its graph changed in place."""
    model = onnx.load(artifact.model.main_file)
    change(model.graph)
    folder = ctx.workdir / "model"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return artifact.with_component("model", edgepipe.onnx_component(folder))
'''
SCALE_HEAD = '''
class ScaleHead(edgepipe.PassOptions):
    factor: float = 2.0

@edgepipe.register_pass("mine", takes={"model": "onnx"}, gives={"model": "onnx"}, options=ScaleHead, CHECKS)
def scale_head(artifact, options, ctx):
    """Multiply the head's weights."""
    def change(graph):
        for tensor in graph.initializer:
            if tensor.name.startswith("classifier."):
                values = onnx.numpy_helper.to_array(tensor) * np.float32(options.factor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return edited(artifact, ctx, change)
'''
PLAIN = SCALE_HEAD.replace(", CHECKS", "")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """One worker process for the file's tests, so that plugins never reach the tests' own registry."""
    with WorkerProcess(tmp_path_factory.mktemp("worker") / "run.log", Silent()) as process:
        yield process


class Bench:
    """Writes a plugin and runs its pass "mine" in the worker."""

    def __init__(self, worker: WorkerProcess, artifact: Artifact, folder: Path) -> None:
        self.worker, self.artifact, self.folder = worker, artifact, folder

    def run(self, source: str, **settings: object) -> Artifact:
        plugin = self.folder / "my_pass.py"
        plugin.write_text(HEAD + source)
        result: Artifact = self.worker.ask(job_for("mine", self.artifact, self.folder, plugins=[plugin], **settings), "mine").value
        return result

    def fails(self, body: str, *, gives: str = '{"model": "onnx"}', more: str = "") -> PassError:
        """The error of a pass with this body, which must be one of exit code 4 that names the pass."""
        register = f'@edgepipe.register_pass("mine", takes={{"model": "onnx"}}, gives={gives}{more})\ndef mine(artifact, options, ctx):\n    {body}\n'
        with pytest.raises(PassError) as caught:
            self.run(register)
        assert caught.value.exit_code == 4
        assert caught.value.where == "pass mine"
        return caught.value


@pytest.fixture
def bench(worker: WorkerProcess, exported: Artifact, tmp_path: Path) -> Bench:
    return Bench(worker, exported, tmp_path)


def test_plugin_pass_runs_with_its_options(bench: Bench) -> None:
    after = bench.run(PLAIN, factor=3.0)

    feeds = text_feeds(after)
    np.testing.assert_allclose(outputs(after, feeds), 3 * outputs(bench.artifact, feeds), rtol=1e-4)


def test_default_options_are_used_where_none_are_given(bench: Bench) -> None:
    after = bench.run(PLAIN)

    feeds = text_feeds(after)
    np.testing.assert_allclose(outputs(after, feeds), 2 * outputs(bench.artifact, feeds), rtol=1e-4)


def test_raising_pass_is_named_with_what_it_raised(bench: Bench) -> None:
    error = bench.fails('raise ZeroDivisionError("no scale for layer 3")')

    assert "ZeroDivisionError: no scale for layer 3" in error.what


def test_pass_that_raises_without_a_message_is_named(bench: Bench) -> None:
    assert "AssertionError" in bench.fails("assert False").what


def test_pass_may_raise_an_error_for_a_person_itself(bench: Bench) -> None:
    with pytest.raises(ModelError, match="no such layer"):
        bench.run(
            PLAIN.replace(
                '    """Multiply', '    from edgepipe.errors import ModelError\n    raise ModelError("no such layer")\n    """Multiply'
            )
        )


@pytest.mark.parametrize("value", ["None", "artifact.model", '{"model": artifact.model}'])
def test_pass_that_returns_no_artifact_is_named(value: str, bench: Bench) -> None:
    assert "not an Artifact" in bench.fails(f"return {value}").what


@pytest.mark.parametrize("gives", ['{"draft": "onnx"}', '{"model": "torch"}'])
def test_pass_that_does_not_give_what_it_declares_is_named(gives: str, bench: Bench) -> None:
    error = bench.fails('return edited(artifact, ctx, lambda graph: setattr(graph, "doc_string", "new"))', gives=gives)

    assert "it gives no component" in error.what


def test_pass_that_changes_nothing_is_named(bench: Bench) -> None:
    assert "changed nothing" in bench.fails("return artifact").what


def test_pass_that_writes_the_same_files_again_changes_nothing(bench: Bench) -> None:
    assert "changed nothing" in bench.fails("return edited(artifact, ctx, lambda graph: None)").what


def test_pass_whose_program_is_no_plain_data_is_named(bench: Bench) -> None:
    assert "not plain data" in bench.fails("return artifact.with_program(scales={1, 2})").what


def test_pass_that_writes_a_graph_no_runtime_opens_is_named(bench: Bench) -> None:
    error = bench.fails('return edited(artifact, ctx, lambda graph: setattr(graph.node[0], "op_type", "NoSuchOperator"))')

    assert "cannot be run" in error.what
    assert "NoSuchOperator" in error.what


def test_pass_that_writes_nan_is_named(bench: Bench) -> None:
    change = (
        "setattr(tensor := next(t for t in graph.initializer if t.name == 'classifier.bias'), 'raw_data', b'\\xff' * len(tensor.raw_data))"
    )

    assert "not finite" in bench.fails(f"return edited(artifact, ctx, lambda graph: {change})").what


def test_declared_check_that_does_not_hold_is_named_with_its_value(bench: Bench) -> None:
    with pytest.raises(PassError, match="check equal-outputs failed") as caught:
        bench.run(SCALE_HEAD.replace("CHECKS", 'checks=(edgepipe.Check("equal-outputs", 1e-6),)'))

    assert caught.value.where == "pass mine"
    assert "limit 1e-06" in caught.value.what


def test_check_that_does_not_exist_names_the_nearest(bench: Bench) -> None:
    error = bench.fails("return artifact.with_program(note=1)", more=', checks=(edgepipe.Check("equal-output"),)')

    assert "equal-output" in error.what
    assert 'did you mean "equal-outputs"?' in str(error)


def test_data_that_was_not_declared_is_not_given(bench: Bench) -> None:
    error = bench.fails('ctx.data("test")')

    assert "test data without declaring it" in error.what


def test_declared_data_is_given(bench: Bench, reviews: Data) -> None:
    declared = PLAIN.replace("options=ScaleHead", 'options=ScaleHead, data=("calibration",)').replace(
        "    def change", "    options = ScaleHead(factor=len(ctx.data('calibration')))\n    def change"
    )

    after = bench.run(declared, data=reviews)

    feeds = text_feeds(after)
    np.testing.assert_allclose(outputs(after, feeds), 40 * outputs(bench.artifact, feeds), rtol=1e-3)


def test_plugin_with_a_syntax_error_names_its_file(bench: Bench) -> None:
    with pytest.raises(PassError, match="SyntaxError") as caught:
        bench.run("def broken(:\n")

    assert str(caught.value.where).endswith("my_pass.py")


def test_plugin_without_the_pass_names_what_there_is(bench: Bench) -> None:
    with pytest.raises(UsageError, match='unknown pass "min"'):
        bench.worker.ask(job_for("min", bench.artifact, bench.folder), "min")
