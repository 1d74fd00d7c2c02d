"""What a scheme says a layer takes is what the file grows by, and losses tell which scheme moves the outputs most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgepipe.artifact import Artifact
from edgepipe.config import Data
from edgepipe.data import Splits
from edgepipe.pipeline import Setting
from edgepipe.profile import host_profile
from edgepipe.progress import Silent
from edgepipe.quantization.graph import Graph
from edgepipe.quantization.sites import find_sites
from edgepipe.store import Store
from edgepipe.tuning.losses import losses
from edgepipe.tuning.schemes import BY_NAME, FLOAT32, SCHEMES, Scheme, fits
from edgepipe.worker_process import WorkerProcess
from tests.onnx_models import make_model
from tests.passes.arrays import array_model
from tests.passes.running import outputs, run_pass
from tests.quantization.graphs import inputs_of

WIDTH = 256
NODES = {"Gather": "table", "MatMul": "product", "Gemm": "gemm", "Conv": "conv"}


def model() -> Any:
    """ids [batch, 8] → a table, a product, a Gemm and a convolution of some size."""
    rng = np.random.default_rng(0)
    weights = {
        "rows": rng.standard_normal((512, WIDTH)).astype(np.float32), "w": (rng.standard_normal((WIDTH, WIDTH)) / 16).astype(np.float32),
        "g": (rng.standard_normal((WIDTH, WIDTH)) / 16).astype(np.float32), "b": rng.standard_normal(WIDTH).astype(np.float32),
        "k": (rng.standard_normal((64, 64, 3, 3)) / 24).astype(np.float32), "image": np.array([-1, 64, 2, 16]), "flat": np.array([-1, WIDTH]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["rows", "ids"], ["words"], name="table"),
        helper.make_node("MatMul", ["words", "w"], ["h"], name="product"),
        helper.make_node("Reshape", ["h", "flat"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "g", "b"], ["e"], name="gemm"),
        helper.make_node("Reshape", ["e", "image"], ["i"], name="fold"),
        helper.make_node("Conv", ["i", "k"], ["y"], name="conv", pads=[1] * 4),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 8])]
    return make_model(nodes, inputs, [inputs_of("y", (None,) * 4)], weights)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Data]:
    return array_model(tmp_path_factory.mktemp("model") / "model", model(), {"ids": np.random.default_rng(0).integers(0, 512, (8, 8))})


CASES = [(scheme, operator) for scheme in SCHEMES if scheme.step for operator in NODES if operator in scheme.operators]


@pytest.mark.parametrize(("scheme", "operator"), CASES, ids=lambda value: value.name if isinstance(value, Scheme) else value)
def test_file_grows_by_what_the_scheme_says(scheme: Scheme, operator: str, made: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, data = made
    node = NODES[operator]
    site = find_sites(Graph(artifact.model.main_file, tmp_path))[node]
    assert fits(scheme, site, calibrated=True)

    after = run_pass(scheme.step, artifact, tmp_path, data=data, **scheme.options, include=[node])

    saved = artifact.model.size_bytes - after.model.size_bytes
    assert abs(saved - (FLOAT32.bytes_of(site) - scheme.bytes_of(site))) < 3500  # nodes, names, zero points, a bias in 32 bits
    ids = np.random.default_rng(1).integers(0, 512, (2, 8))
    exact = outputs(artifact, {"ids": ids})
    assert np.linalg.norm(outputs(after, {"ids": ids}) - exact) < 0.2 * np.linalg.norm(exact)


def test_static_scales_need_calibration_data_and_groups_a_whole_group(made: tuple[Artifact, Data], tmp_path: Path) -> None:
    site = find_sites(Graph(made[0].model.main_file, tmp_path))["product"]

    assert not fits(BY_NAME["int8-static"], site, calibrated=False)
    assert fits(BY_NAME["int8-dynamic"], site, calibrated=False)
    assert not any(fits(scheme, site, calibrated=True) for scheme in SCHEMES if "table" in scheme.name)


def test_fewer_bits_lose_more(made: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, data = made
    with WorkerProcess(tmp_path / "run.log", Silent()) as worker:
        setting = Setting(Store(tmp_path / "store"), worker, Silent(), host_profile(), data, Splits(data, ("text", "label")), 1, ())

        found = losses(artifact, SCHEMES[1:], NODES.values(), setting)

    assert set(found) == {scheme.name for scheme in SCHEMES[1:]}
    for node in ("product", "gemm", "conv"):
        assert 0 <= found["float32, stored in 8 bits"][node] < found["float32, stored in 4 bits"][node] < 0.1
    assert found["table in 8 bits"]["table"] < found["table in 4 bits"]["table"]
    assert set(found["table in 8 bits"]) == {"table"}


def test_without_data_there_are_no_losses(made: tuple[Artifact, Data], tmp_path: Path) -> None:
    with WorkerProcess(tmp_path / "run.log", Silent()) as worker:
        setting = Setting(Store(tmp_path / "store"), worker, Silent(), host_profile(), Data(), Splits(Data(), ("text", "label")), 1, ())

        assert losses(made[0], SCHEMES[1:], NODES.values(), setting) == {}
