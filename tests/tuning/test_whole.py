"""What wins part by part is kept only where the whole model wins: measured, with the figures that the search kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from edgepipe.artifact import Artifact
from edgepipe.config import Budget
from edgepipe.data import Splits
from edgepipe.pipeline import Setting
from edgepipe.profile import host_profile
from edgepipe.progress import Silent
from edgepipe.store import Store
from edgepipe.tune import MARGIN, tune
from edgepipe.tuning import whole
from edgepipe.tuning.schemes import BY_NAME
from edgepipe.tuning.whole import whole_ms
from edgepipe.worker_process import WorkerProcess
from tests.onnx_models import make_model
from tests.passes.arrays import array_model
from tests.quantization.graphs import inputs_of

CHANNELS = 32


def network(side: int, blocks: int) -> Any:
    """x [1, 32, side, side] → depthwise and pointwise convolutions in turns, each with a Relu."""
    rng = np.random.default_rng(0)
    weights, nodes, value = {}, [], "x"
    for number in range(2 * blocks):
        depthwise = number % 2 == 0
        shape = (CHANNELS, 1, 3, 3) if depthwise else (CHANNELS, CHANNELS, 1, 1)
        weights[f"w{number}"] = (rng.standard_normal(shape) / (3 if depthwise else 6)).astype(np.float32)
        options: dict[str, Any] = {"pads": [1] * 4, "group": CHANNELS} if depthwise else {}
        nodes.append(helper.make_node("Conv", [value, f"w{number}"], [f"c{number}"], name=f"conv{number}", **options))
        value = "y" if number == 2 * blocks - 1 else f"r{number}"
        nodes.append(helper.make_node("Relu", [f"c{number}"], [value], name=f"relu{number}"))
    return make_model(nodes, [inputs_of("x", (1, CHANNELS, side, side))], [inputs_of("y", (1, CHANNELS, side, side))], weights)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path_factory.mktemp("worker") / "run.log", Silent()) as process:
        yield process


def given(folder: Path, store: Store, worker: WorkerProcess, side: int, blocks: int = 3) -> tuple[Artifact, Setting]:
    x = np.random.default_rng(1).standard_normal((8, CHANNELS, side, side)).astype(np.float32)
    artifact, data = array_model(folder / "model", network(side, blocks), {"x": x})
    return store.put(artifact), Setting(store, worker, Silent(), host_profile(), data, Splits(data, ("text", "label")), 1, ())


@pytest.mark.parametrize("ratio", [1 - MARGIN, 1.0])
def test_layers_stay_quantized_only_where_the_whole_model_is_faster(
    ratio: float, tmp_path: Path, store: Store, worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, setting = given(tmp_path, store, worker, 40)
    monkeypatch.setattr("edgepipe.tune.lost_regions", lambda *_: [])  # every region wins by itself
    asked = []

    def timed(artifacts: Mapping[str, Artifact], _: Setting) -> dict[str, float]:
        asked.append(artifacts)
        return {"float32": 1.0, "quantized": ratio}

    monkeypatch.setattr("edgepipe.tune.whole_ms", timed)

    found = tune(artifact, setting, Budget(), 0.2 * artifact.model.size_bytes, None)

    computed = [row for row in found.report["sites"] if BY_NAME[row["scheme"]].kernel != "float32"]
    assert bool(computed) == (bool(asked) and ratio < 1)


def test_more_work_takes_longer_and_the_same_the_same(tmp_path: Path, store: Store, worker: WorkerProcess) -> None:
    (small, setting), (large, _) = (given(tmp_path / str(blocks), store, worker, 40, blocks) for blocks in (1, 8))

    ms = whole_ms({"small": small, "again": small, "large": large}, setting)

    assert 0 < ms["small"] == ms["again"] < ms["large"]


def test_models_that_are_too_large_are_left_to_the_validator(
    tmp_path: Path, store: Store, worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, setting = given(tmp_path, store, worker, 6)
    monkeypatch.setattr(whole, "LARGEST_BYTES", 1000)

    assert whole_ms({"float32": artifact}, setting) == {}
