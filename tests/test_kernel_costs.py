"""Kernel costs: what is tabled really runs, and plans quote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepipe import kernel_costs
from edgepipe.artifact import Artifact
from edgepipe.cost.fusions import FUSIONS
from edgepipe.cost.kernels import PRECISIONS, Kernel, kernels, model_of
from edgepipe.cost.table import CostTable, load_table, own_path
from edgepipe.driver import driver_module
from edgepipe.errors import UsageError
from edgepipe.plan import plan
from edgepipe.profile import host_profile, load_profile
from edgepipe.progress import Silent

SHAPE = (128, 384, 1536)


def table(**changes: Any) -> CostTable:
    times = {"float32": 10.0, "int8-dynamic": 8.0, "int4": 20.0}
    entries = tuple({"kernel": "matmul", "precision": name, "shape": list(SHAPE), "ms": ms} for name, ms in times.items())
    settings: dict[str, Any] = {"profile": "rpi4", "source": "counted", "runtime": "onnxruntime 1.32.0", "cpu": "cortex-a72"}
    return CostTable(**{**settings, "entries": entries, "fusions": dict.fromkeys(FUSIONS, 0.5), **changes})


def keep(found: CostTable, name: str = "rpi4") -> Path:
    path = own_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found.to_json()), encoding="utf-8")
    return path


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path))


def test_every_tabled_kernel_runs_and_its_nodes_carry_its_name() -> None:
    model, feeds = model_of(kernels())

    session = driver_module().open_session(model.SerializeToString())

    assert all(np.isfinite(np.asarray(value, np.float64)).all() for value in session.run(None, feeds))
    names = {node.name.rsplit("/", 1)[0] for node in model.graph.node}
    assert {kernel.name for kernel in kernels()} <= names
    assert len(kernels()) == len({kernel.name for kernel in kernels()})


@pytest.mark.parametrize("precision", PRECISIONS[1:3])
def test_integer_product_is_near_the_float_product_of_what_it_holds(precision: str) -> None:
    from onnx import numpy_helper

    kernel = Kernel("matmul", precision, (16, 384, 384))
    model, feeds = model_of([kernel])
    weights = {tensor.name.rsplit("/")[-1]: tensor for tensor in model.graph.initializer}
    codes = numpy_helper.to_array(weights["w"])
    weights["w"].CopyFrom(numpy_helper.from_array(codes // 2, weights["w"].name))  # which no CPU's sums leave 16 bits with

    found = driver_module().open_session(model.SerializeToString()).run(None, feeds)[0].astype(np.float64)

    value = next(iter(feeds.values())).astype(np.float64)
    held = numpy_helper.to_array(weights["w"]).astype(np.float64) * 0.01
    if precision == "int8-static":
        value, found = (value - 128) * 0.02, (found - 128) * 0.5
    expected = value @ held
    assert np.abs(np.clip(expected, -64, 63.5) - found).max() < 0.03 * np.abs(expected).max() + 0.3


def test_device_of_this_kind_is_timed(monkeypatch: pytest.MonkeyPatch, own: None) -> None:
    few = [Kernel("matmul", precision, (16, 384, 384)) for precision in ("float32", "int8-dynamic")]
    monkeypatch.setattr(kernel_costs, "kernels", lambda: few)

    found = kernel_costs.measure_kernels(host_profile(), Silent())

    assert found.source == "measured"
    assert all(entry["ms"] > 0 for entry in found.entries)
    assert set(found.fusions) == set(FUSIONS)
    keep(found, "host")
    assert load_table(host_profile()) == found


def test_device_that_nothing_stands_for_is_refused(own: None) -> None:
    with pytest.raises(UsageError, match="neither timed nor counted") as caught:
        kernel_costs.measure_kernels(load_profile("rpi4"), Silent())
    assert "doctor rpi4" in (caught.value.fix or "")


def test_own_table_goes_before_the_shipped_one(own: None) -> None:
    keep(table(source="measured"))

    found = load_table(load_profile("rpi4"))

    assert found is not None
    assert found.source == "measured"


@pytest.mark.parametrize("changes", [{"runtime": "onnxruntime 1.20.0"}, {"cpu": "cortex-a53"}])
def test_table_of_another_runtime_or_cpu_says_nothing(own: None, changes: dict[str, str]) -> None:
    keep(table(**changes))

    assert load_table(load_profile("rpi4")) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "entries": [{"kernel": "matmul"}]}', "\x00\xff"])
def test_damaged_table_names_the_file_and_what_makes_it_anew(own: None, text: str) -> None:
    path = keep(table())
    path.write_text(text, encoding="utf-8")

    with pytest.raises(UsageError, match="damaged") as caught:
        load_table(load_profile("rpi4"))
    assert caught.value.where == str(path)
    assert "devices measure rpi4" in (caught.value.fix or "")


@pytest.mark.parametrize("ms", [0, -1, float("nan"), "fast"])
def test_time_that_is_none_is_damage(own: None, ms: Any) -> None:
    bad = {"kernel": "matmul", "precision": "float32", "shape": list(SHAPE), "ms": ms}
    keep(table(entries=(bad,)))

    with pytest.raises(UsageError, match="damaged"):
        load_table(load_profile("rpi4"))


def test_nearest_tabled_shape_is_quoted() -> None:
    assert table().speedup("matmul", "int8-dynamic", (128, 400, 1500)) == (SHAPE, 1.25)
    assert table().speedup("conv", "int8-dynamic", (1, 1, 1, 1, 1)) is None


def test_plan_quotes_the_costs(own: None, torch_artifact: Artifact) -> None:
    keep(table())

    recipe = plan(torch_artifact, load_profile("rpi4"))

    quantize = next(step for step in recipe.steps if step.name == "quantize-dynamic")
    assert "int8-dynamic 384×1536 1.2 × float32's speed on cortex-a72 (kernel costs, counted)" in quantize.reason
    assert any("4-bit kernels: int4 384×1536 0.5 × float32's speed" in line for line in recipe.left_out)
