"""Calibration data through real models: what is seen is what an ordinary run gives, in memory that samples do not fill."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe.artifact import Artifact
from edgepipe.errors import DataError
from edgepipe.probes import encoder_for, feeds_of
from edgepipe.quantization.calibration import observe, unreached
from edgepipe.quantization.calibrators import activation_range
from edgepipe.quantization.observers import Observer, Wanted
from tests.models import sentences
from tests.onnx_models import HIDDEN, VOCABULARY, bag_of_words, make_model, write_external

SAMPLES = [{"text": text} for text, _ in sentences(20)]
FLOAT = TensorProto.FLOAT


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(bag_of_words(), tmp_path)


def saved(model: Any, folder: Path) -> Path:
    onnx.save_model(model, folder / "model.onnx")
    return folder / "model.onnx"


def texts(count: int, *, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        length = int(rng.integers(1, 30))
        yield {"input_ids": rng.integers(0, VOCABULARY, (1, length)), "attention_mask": np.ones((1, length), np.int64)}


def expected(path: Path, name: str, samples: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """The tensor in each sample, by ONNX's own reference evaluation."""
    from onnx.reference import ReferenceEvaluator

    graph = onnx.load(path)
    graph.graph.output.append(onnx.ValueInfoProto(name=name))
    evaluator = ReferenceEvaluator(graph)
    return [evaluator.run([name], sample)[0] for sample in samples]


def test_observers_hold_what_the_model_computes(model: Path) -> None:
    samples = list(texts(12))

    found = observe(model, {"mean": Wanted(-1, second_moments=True), "present": Wanted(-1)}, samples)

    for name, one in found.items():
        rows = np.concatenate([value.reshape(-1, HIDDEN) for value in expected(model, name, samples)])
        assert (one.samples, one.count) == (12, rows.size)
        assert (one.low, one.high) == pytest.approx((rows.min(), rows.max()))
        np.testing.assert_allclose(one.channel_max, np.abs(rows).max(0), rtol=1e-5)
        if name == "mean":
            np.testing.assert_allclose(one.moments, rows.T @ rows, rtol=1e-4, atol=1e-4)
    assert found["present"].moments is None


def test_real_samples_run_one_by_one_without_padding(onnx_artifact: Artifact) -> None:
    encoder = encoder_for(onnx_artifact)
    lengths = [feeds_of(onnx_artifact, [sample], encoder=encoder)["input_ids"].shape[1] for sample in SAMPLES]

    found = observe(
        onnx_artifact.model.main_file, {"words": Wanted(-1)}, (feeds_of(onnx_artifact, [sample], encoder=encoder) for sample in SAMPLES)
    )

    assert found["words"].rows == sum(lengths)


def test_a_graph_input_and_a_graph_output_are_tensors_too(model: Path) -> None:
    samples = list(texts(3))

    found = observe(model, {"input_ids": Wanted(), "logits": Wanted(-1)}, samples)

    assert found["input_ids"].high == max(sample["input_ids"].max() for sample in samples)
    assert found["logits"].count == 6


def test_weights_in_a_file_beside_the_model_are_found(tmp_path: Path) -> None:
    inside = observe(saved(bag_of_words(), tmp_path), {"scores": Wanted(-1)}, texts(5))
    beside = observe(write_external(tmp_path / "external"), {"scores": Wanted(-1)}, texts(5))

    np.testing.assert_array_equal(inside["scores"].counts, beside["scores"].counts)


@pytest.mark.parametrize("limit", [1, 3000])
def test_tensors_that_are_too_much_at_once_are_fetched_in_several_runs(model: Path, limit: int) -> None:
    names = {name: Wanted(-1) for name in ("words", "present", "total", "mean", "scores")}

    together, apart = observe(model, names, texts(10)), observe(model, names, texts(10), fetched_bytes=limit)

    for name in names:
        assert apart[name].samples == 10
        np.testing.assert_array_equal(together[name].counts, apart[name].counts)


def test_samples_are_read_once_and_one_at_a_time(model: Path) -> None:
    said: list[tuple[int, int]] = []
    alive: list[int] = []

    def lazily() -> Iterator[dict[str, np.ndarray]]:
        for number, sample in enumerate(texts(5)):
            alive.append(number)
            assert len(alive) - len(said) <= 1
            yield sample

    observe(model, {"mean": Wanted()}, lazily(), progress=lambda _, done, total: said.append((done, total)))

    assert said == [(number, 0) for number in range(5)]


def test_progress_of_a_list_knows_how_much_is_left(model: Path) -> None:
    said: list[tuple[int, int]] = []

    observe(model, {"mean": Wanted()}, list(texts(3)), progress=lambda _, done, total: said.append((done, total)))

    assert said == [(0, 3), (1, 3), (2, 3)]


def branching() -> Any:
    """x [n], positive [] → y [n]: its branches double x, or add one to it in a branch of their own."""
    then = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["doubled"]), helper.make_node("Neg", ["doubled"], ["negated"])],
        "then", [], [helper.make_tensor_value_info("negated", FLOAT, ["n"])],
    )  # fmt: skip
    deep = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["raised"]), helper.make_node("Abs", ["raised"], ["size"])],
        "deep", [], [helper.make_tensor_value_info("size", FLOAT, ["n"])],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"])], "other", [], [helper.make_tensor_value_info("same", FLOAT, ["n"])]
    )
    inner = helper.make_node("If", ["deeper"], ["chosen"], then_branch=deep, else_branch=other)
    otherwise = helper.make_graph([inner], "otherwise", [], [helper.make_tensor_value_info("chosen", FLOAT, ["n"])])
    node = helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=otherwise)
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n"])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("positive", "deeper")]
    return make_model([node], inputs, [helper.make_tensor_value_info("y", FLOAT, ["n"])], {"one": np.ones(1, np.float32)})


def test_a_branch_that_samples_take_is_seen_and_one_that_none_takes_is_named(tmp_path: Path) -> None:
    samples = [
        {"x": np.array([1, -5], np.float32), "positive": np.array(positive), "deeper": np.array(True)} for positive in (True, False, False)
    ]

    found = observe(saved(branching(), tmp_path), {name: Wanted() for name in ("doubled", "raised")}, samples)
    partly = observe(saved(branching(), tmp_path), {name: Wanted() for name in ("doubled", "raised")}, samples[:1])

    assert (found["doubled"].low, found["doubled"].high, found["doubled"].count) == (-10, 2, 2)
    assert (found["raised"].low, found["raised"].high, found["raised"].count) == (-4, 2, 4)
    assert unreached(found) == ()
    assert unreached(partly) == ("raised",)


def test_names_that_the_model_does_not_have_are_named(model: Path) -> None:
    assert unreached(observe(model, {"mean": Wanted(), "nonsense": Wanted()}, texts(2))) == ("nonsense",)


def test_infinite_activations_are_reported_with_tensor_and_samples(model: Path, tmp_path: Path) -> None:
    graph = onnx.load(model)
    graph.graph.node.insert(len(graph.graph.node) - 2, helper.make_node("Log", ["mean"], ["logarithm"]))
    graph.graph.node[-2].input[0] = "logarithm"

    found = observe(saved(graph, tmp_path), {"logarithm": Wanted(-1)}, texts(4))

    assert found["logarithm"].nonfinite_samples == 4
    with pytest.raises(DataError, match="4 of 4") as caught:
        activation_range(found["logarithm"], node="classify")
    assert caught.value.where == 'tensor "logarithm" at node "classify"'


def test_no_samples_are_an_error(model: Path) -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        observe(model, {"mean": Wanted()}, [])


def test_a_sample_that_does_not_run_is_named(model: Path) -> None:
    good = list(texts(2))
    bad = {**good[0], "input_ids": good[0]["input_ids"] + 10_000}

    with pytest.raises(DataError) as caught:
        observe(model, {"mean": Wanted()}, [*good, bad])

    assert caught.value.where == "calibration sample 3"


def test_ten_thousand_samples_take_no_more_memory_than_a_hundred(model: Path) -> None:
    """Peak memory of a fresh process each: allocators keep what they had."""
    few, many = (peak_bytes(model, count) for count in (100, 10_000))

    # what the samples' tensors would take, were they kept: 10,000 × about 15 words × 16 values × 4 bytes × 4 tensors
    assert many - few < 12_000_000


def peak_bytes(model: Path, count: int) -> int:
    code = f"""
import resource
from pathlib import Path
from edgepipe.quantization.calibration import observe
from edgepipe.quantization.observers import Wanted
from tests.quantization.test_calibration import texts
observe(Path({str(model)!r}), {{name: Wanted(-1, True) for name in ("words", "present", "total", "mean")}}, texts({count}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return int(done.stdout)


def test_two_halves_merge_to_the_whole(model: Path) -> None:
    samples = list(texts(10))
    wanted = {"words": Wanted(-1)}

    first: Observer = observe(model, wanted, samples[:4])["words"]
    first.merge(observe(model, wanted, samples[4:])["words"])

    np.testing.assert_array_equal(first.counts, observe(model, wanted, samples)["words"].counts)
