"""The planner: the device's facts decide, and every line says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe.artifact import Artifact
from edgepipe.config import Data, Task, dump_recipe
from edgepipe.errors import UsageError
from edgepipe.intake import find_source, make_artifact
from edgepipe.plan import plan
from edgepipe.profile import load_profile, profile_names
from edgepipe.recipe_check import check_recipe
from edgepipe.tasks import load_task
from tests.models import write_adapter
from tests.onnx_models import make_model, one_node

SHIPPED = [name for name in profile_names() if name != "host"]


def of(folder: Path, *adapters: Path, task: str = "fidelity") -> Artifact:
    source = find_source(str(folder))
    return make_artifact(source, [str(path) for path in adapters], load_task(Task(name=task)), source.labels, Data(), None)


def names(artifact: Artifact, profile: str = "rpi4") -> list[str]:
    return [step.name for step in plan(artifact, load_profile(profile)).steps]


def convolution(folder: Path) -> Path:
    """A model whose only weights are a convolution's."""
    weights = {"w": np.ones((4, 3, 3, 3), np.float32)}
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, 8, 8]) for name, channels in (("x", 3), ("y", 4))]
    model = make_model([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], value[:1], value[1:], weights)
    onnx.save_model(model, folder / "model.onnx")
    return folder


@pytest.mark.parametrize("profile", ["rpi4", "rpi5", "x86-avx2", "x86-vnni"])
def test_recipe_of_the_classifier_is_the_golden_one(torch_artifact: Artifact, golden: Callable[[str, str], None], profile: str) -> None:
    golden(f"plan_{profile}.toml", dump_recipe(plan(torch_artifact, load_profile(profile))))
    golden(f"plan_{profile}_calibrated.toml", dump_recipe(plan(torch_artifact, load_profile(profile), splits=("calibration",))))


@pytest.mark.parametrize("profile", SHIPPED)
def test_recipe_for_every_shipped_profile_can_run_and_has_reasons(torch_artifact: Artifact, profile: str) -> None:
    for calibrated in (False, True):
        recipe = plan(torch_artifact, load_profile(profile), splits=("calibration",) if calibrated else ())

        check_recipe(recipe, torch_artifact)
        assert recipe.tune
        assert all(step.reason and step.reason != "the recipe says so" for step in recipe.steps)


@pytest.mark.parametrize("profile", SHIPPED)
def test_the_pass_is_left_to_cut_weights_to_seven_bits_and_the_plan_tells_where_it_may(torch_artifact: Artifact, profile: str) -> None:
    target = load_profile(profile)

    recipe = plan(torch_artifact, target)

    assert all("reduce_range" not in step.options for step in recipe.steps)
    assert any("7 bits" in line and "cpu.isa" in line for line in recipe.left_out) is target.cpu.int8_saturates


def test_planning_again_gives_the_same_recipe(torch_artifact: Artifact) -> None:
    assert plan(torch_artifact, load_profile("rpi4")) == plan(torch_artifact, load_profile("rpi4"))


def test_adapter_is_merged_first(classifier: Path, tmp_path: Path) -> None:
    artifact = of(classifier, write_adapter(classifier, tmp_path / "adapter"), task="text-classification")

    recipe = plan(artifact, load_profile("rpi4"))

    assert recipe.steps[0].name == "merge-lora"
    assert recipe.steps[0].reason.startswith("1 adapter:")
    check_recipe(recipe, artifact)


def test_onnx_model_is_not_exported(onnx_artifact: Artifact) -> None:
    recipe = plan(onnx_artifact, load_profile("rpi4"))

    assert [step.name for step in recipe.steps] == ["optimize-graph", "quantize-dynamic"]
    assert "export-onnx: the model is ONNX already" in recipe.left_out


def test_what_is_left_out_says_why(torch_artifact: Artifact) -> None:
    left_out = plan(torch_artifact, load_profile("rpi4")).left_out

    assert any(line.startswith("merge-lora: ") for line in left_out)
    assert any(line.startswith("4-bit kernels: ") and "0.9 × float32's speed on cortex-a72" in line for line in left_out)


def test_convolutions_are_not_quantized_dynamically(tmp_path: Path) -> None:
    artifact = of(convolution(tmp_path))

    assert names(artifact) == ["optimize-graph", "quantize-weights"]
    stored = plan(artifact, load_profile("rpi4")).steps[-1]
    assert (stored.options["kernel"], stored.options["bits"]) == ("float32", 8)
    assert "no calibration data" in stored.reason or "× float32's speed" in stored.reason


def test_scales_from_calibration_data_are_planned_where_there_is_some(tmp_path: Path, torch_artifact: Artifact) -> None:
    board = load_profile("rpi5")

    convolutions = plan(of(convolution(tmp_path)), board, splits=("calibration",))
    encoder = plan(torch_artifact, board, splits=("calibration",))

    assert [step.name for step in convolutions.steps] == ["optimize-graph", "quantize-static"]
    assert [step.name for step in encoder.steps] == ["export-onnx", "optimize-graph", "quantize-static", "quantize-dynamic"]
    assert list(encoder.steps[-1].options["operators"]) == ["Gather"]


def test_each_kind_of_weight_is_planned_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "one": np.array([1]), "table": rng.standard_normal((256, 32)).astype(np.float32), "w": rng.standard_normal((1, 64, 32)).astype(np.float32),
        "r": rng.standard_normal((1, 64, 16)).astype(np.float32), "head": rng.standard_normal((16, 4)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("LSTM", ["words", "w", "r"], ["hidden"], hidden_size=16),
        helper.make_node("Squeeze", ["hidden", "one"], ["states"]),
        helper.make_node("MatMul", ["states", "head"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, [5, "batch"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, "batch", 4])]
    onnx.save_model(make_model(nodes, inputs, outputs, weights), tmp_path / "model.onnx")

    steps = plan(of(tmp_path), load_profile("rpi5")).steps

    operators = {operator for step in steps[1:] for operator in step.options["operators"]}
    assert {"Gather", "LSTM", "MatMul"} <= operators


@pytest.mark.parametrize("operator", ["MatMulInteger", "DequantizeLinear", "QLinearMatMul"])
def test_model_that_is_quantized_leaves_nothing_to_do(tmp_path: Path, operator: str) -> None:
    onnx.save_model(one_node(operator), tmp_path / "model.onnx")

    with pytest.raises(UsageError, match="nothing to do"):
        names(of(tmp_path))


def test_weights_that_are_much_of_the_memory_are_mapped(classifier: Path, tmp_path: Path) -> None:
    artifact = of(classifier, task="text-classification")
    share = artifact.model.parameters / load_profile("rpi3").memory.ram_bytes  # of int8 weights
    own = tmp_path / "tiny.toml"
    ram = artifact.model.parameters * 30
    own.write_text(f'extends = "rpi3"\nname = "tiny"\n[memory]\nram_bytes = {ram}\n', encoding="utf-8")

    assert share < 0.02
    assert "map-weights" not in names(artifact, "rpi3")
    assert names(artifact, str(own))[-1] == "map-weights"


def test_iphones_and_browsers_get_weights_in_one_file(classifier: Path, tmp_path: Path) -> None:
    artifact = of(classifier, task="text-classification")
    for base in ("iphone-current", "browser-wasm"):
        own = tmp_path / f"{base}.toml"
        own.write_text(f'extends = "{base}"\nname = "tiny"\n[memory]\nram_bytes = {artifact.model.parameters * 30}\n', encoding="utf-8")

        assert "map-weights" not in names(artifact, str(own))
