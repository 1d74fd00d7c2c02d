"""Memory that fits: a bound that no run goes under, refusal before anything runs, and weights that are mapped."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe.artifact import Artifact, Component
from edgepipe.errors import ResourceError
from edgepipe.memory_fit import check_fits, least_memory
from edgepipe.passes.map_weights import PAGE_BYTES, mapped_weights
from edgepipe.profile import load_profile
from edgepipe.weights import onnx_component
from tests.onnx_models import HIDDEN, VOCABULARY, bag_of_words, make_model

PROGRAM = {"kind": "single", "component": "model", "preprocess": {"kind": "text", "max_length": 32, "vocab_size": 128}}
RPI = load_profile("rpi4")
PEAK = """
import json, sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": np.ones((1, 1024), np.float32)})
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({key: int(status[key].split()[0]) * 1024 for key in ("VmHWM", "RssAnon")}))
"""


def artifact_of(component: Component) -> Artifact:
    return Artifact({"model": component}, (), PROGRAM)


@pytest.fixture
def component(tmp_path: Path) -> Component:
    onnx.save_model(bag_of_words(), tmp_path / "model.onnx")
    made: Component = onnx_component(tmp_path)
    return made


def wide(folder: Path, layers: int = 6) -> Component:
    """x [1, 1024] through `layers` products of 4.2 MB each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.standard_normal((1024, 1024)) / 32).astype(np.float32) for i in range(layers)}
    names = ["x", *(f"h{i}" for i in range(1, layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1024]) for name in "xy"]
    onnx.save_model(make_model(nodes, values[:1], values[1:], weights), folder / "model.onnx")
    made: Component = onnx_component(folder)
    return made


def peak(path: Path) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    measured: dict[str, int] = json.loads(done.stdout)
    return measured


def test_need_counts_weights_and_the_widest_node_at_the_longest_input(component: Component) -> None:
    need = least_memory(artifact_of(component))

    assert need.weights_bytes == component.size_bytes
    words, mask = 32 * HIDDEN * 4, 32 * 4
    assert need.activations_bytes == words + mask + words  # Mul: words, mask → present


def test_model_to_be_compressed_counts_four_bits_a_weight(component: Component) -> None:
    need = least_memory(artifact_of(replace(component, format="torch", parameters=1000)), compressed=False)

    assert (need.weights_bytes, need.activations_bytes) == (500, 0)


def test_model_that_fits_is_let_through(component: Component) -> None:
    check_fits(artifact_of(component), RPI)


def test_model_over_the_boards_memory_is_refused_with_figures(component: Component) -> None:
    giant = artifact_of(replace(component, parameters=20_000_000_000))

    with pytest.raises(ResourceError, match=r"at least 10,020 MB .* even at 4 bits .* Raspberry Pi 4") as caught:
        check_fits(giant, RPI, compressed=False)
    assert caught.value.exit_code == 6


def test_finished_model_over_the_boards_memory_is_refused(component: Component) -> None:
    giant = replace(component, files=(replace(component.files[0], bytes=5_000_000_000),))

    with pytest.raises(ResourceError, match="weights 5,000"):
        check_fits(artifact_of(giant), RPI)


def test_tables_that_are_mapped_and_looked_up_in_count_nothing(tmp_path: Path) -> None:
    model = bag_of_words()
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=1024)
    component = onnx_component(tmp_path)

    assert least_memory(artifact_of(component)).weights_bytes == component.size_bytes - VOCABULARY * HIDDEN * 4


def test_mapped_weights_give_the_same_outputs_and_bytes(tmp_path: Path) -> None:
    import onnxruntime

    component = wide(tmp_path / "one")
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written.append(mapped_weights(component, tmp_path / name))

    assert [ref.path for ref in written[0].files] == ["model.onnx", "model.onnx.data"]
    assert written[0] == written[1]
    assert written[0].parameters == component.parameters
    offsets = [
        int(entry.value)
        for tensor in onnx.load(str(written[0].main_file), load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert len(offsets) == 6
    assert all(offset % PAGE_BYTES == 0 for offset in offsets)
    x = {"x": np.random.default_rng(1).standard_normal((1, 1024)).astype(np.float32)}
    run = [
        onnxruntime.InferenceSession(str(c.main_file), providers=["CPUExecutionProvider"]).run(None, x)[0] for c in (component, written[0])
    ]
    np.testing.assert_array_equal(run[0], run[1])


def test_small_model_stays_in_one_file(tmp_path: Path) -> None:
    onnx.save_model(make_small(), tmp_path / "model.onnx")
    (tmp_path / "out").mkdir()

    written = mapped_weights(onnx_component(tmp_path), tmp_path / "out")

    assert [ref.path for ref in written.files] == ["model.onnx"]


def make_small() -> object:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    return make_model([helper.make_node("Add", ["x", "w"], ["y"])], values[:1], values[1:], {"w": np.ones(4, np.float32)})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_mapped_weights_lower_the_peak_and_no_run_goes_under_the_bound(tmp_path: Path) -> None:
    component = wide(tmp_path / "one")
    (tmp_path / "two").mkdir()
    mapped = mapped_weights(component, tmp_path / "two")

    one, two = peak(component.main_file), peak(mapped.main_file)

    assert two["VmHWM"] < one["VmHWM"]
    assert two["RssAnon"] < one["RssAnon"]
    bound = least_memory(Artifact({"model": mapped}, (), {"kind": "single", "preprocess": {"kind": "tensors"}})).total_bytes
    assert bound <= min(one["VmHWM"], two["VmHWM"])
