"""Weight files are read without executing them, and a damaged one is never anything but a ModelError."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save, save_file

from edgepipe.errors import ModelError
from edgepipe.weights import (
    all_nodes,
    check_finite,
    check_onnx_finite,
    external_files,
    load_onnx,
    onnx_component,
    onnx_parameters,
    onnx_signature,
    safetensors_header,
    torch_component,
)
from tests.onnx_models import HIDDEN, VOCABULARY, bag_of_words, write_external

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(4, dtype=np.int64),
    "half": np.ones((2, 2), dtype=np.float16),
}
WHOLE = save(TENSORS)
ODD = st.one_of(st.none(), st.floats(), st.text(max_size=2), st.just([1]), st.booleans())
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["F32", "BF16", "I8", "F8_E4M3", "?"]), ODD),
        "shape": st.one_of(st.lists(st.integers(-3, 4), max_size=3), st.lists(st.one_of(st.integers(0, 2), ODD), max_size=3), ODD),
        "data_offsets": st.one_of(
            st.tuples(st.integers(-70, 70), st.integers(-70, 70)), st.lists(st.one_of(st.integers(0, 9), ODD), max_size=3), ODD
        ),
    }
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights") / "model.safetensors"


def header_of(path: Path, header: object, data: bytes = bytes(64)) -> Path:
    """A safetensors file with this header, whatever it is."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def save_onnx(path: Path, model: Any) -> Path:
    onnx.save_model(model, path)
    return path


def test_header_lists_every_tensor(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})

    found = {info.name: (info.dtype, info.shape, info.parameters) for info in safetensors_header(tmp_path / "model.safetensors")}

    assert found == {"a.weight": ("F32", (2, 3), 6), "b": ("I64", (4,), 4), "half": ("F16", (2, 2), 4)}


@given(cut=st.integers(0, len(WHOLE) - 1))
def test_truncated_file_is_a_model_error(scratch: Path, cut: int) -> None:
    scratch.write_bytes(WHOLE[:cut])

    with pytest.raises(ModelError, match="empty" if cut == 0 else "truncated|corrupt"):
        safetensors_header(scratch)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_file_with_flipped_bytes_is_read_or_refused(scratch: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    scratch.write_bytes(data)

    assert_read_or_refused(scratch)


@given(st.dictionaries(st.text(max_size=4), st.one_of(ENTRIES, st.none(), st.lists(st.integers(), max_size=2)), max_size=2))
@settings(max_examples=400)
def test_header_of_any_json_is_read_or_refused(scratch: Path, header: dict[str, Any]) -> None:
    assert_read_or_refused(header_of(scratch, header))


def assert_read_or_refused(path: Path) -> None:
    """What the header says lies inside the file, or the file is refused."""
    try:
        infos = safetensors_header(path)
        check_finite(path, infos)
    except ModelError as error:
        assert error.where == str(path)
        return
    assert all(8 <= info.start <= info.end <= path.stat().st_size and info.parameters >= 0 for info in infos)


@pytest.mark.parametrize(
    "header", [[], None, 3, {"a": {"dtype": "F32"}}, "[" * 100_000], ids=["list", "null", "number", "no-shape", "text"]
)
def test_header_of_another_shape_is_corrupt(tmp_path: Path, header: object) -> None:
    with pytest.raises(ModelError, match="header is corrupt"):
        safetensors_header(header_of(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("offsets", [[8, 4], [0, 65], [64, 72]])
def test_tensor_outside_its_file_is_refused_by_name(tmp_path: Path, offsets: list[int]) -> None:
    path = header_of(tmp_path / "x.safetensors", {"new": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": offsets}})

    with pytest.raises(ModelError, match='"new" does not fit'):
        safetensors_header(path)


def test_deeply_nested_header_is_corrupt(tmp_path: Path) -> None:
    text = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)

    with pytest.raises(ModelError, match="header is corrupt"):
        safetensors_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, dtype: type, value: float) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"fine": np.ones(3, dtype), "layer.bad": np.array([1, value], dtype)}, path)

    with pytest.raises(ModelError, match=r'"layer\.bad" holds NaN or infinite'):
        check_finite(path, safetensors_header(path))


@pytest.mark.parametrize(("bits", "finite"), [(0x3F80, True), (0x7F7F, True), (0x7F80, False), (0x7FC0, False), (0xFF80, False)])
def test_bfloat16_weights_are_checked_too(tmp_path: Path, bits: int, finite: bool) -> None:
    path = header_of(tmp_path / "x.safetensors", {"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, bits.to_bytes(2, "little"))
    infos = safetensors_header(path)

    if finite:
        check_finite(path, infos)
    else:
        with pytest.raises(ModelError, match="NaN or infinite"):
            check_finite(path, infos)


def test_integers_and_empty_tensors_are_finite(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"whole": np.array([2**62]), "empty": np.zeros((0, 3), np.float32)}, path)

    check_finite(path, safetensors_header(path))


@given(cut=st.integers(0, 400))
def test_truncated_onnx_file_is_a_model_error(scratch: Path, cut: int) -> None:
    scratch.write_bytes(bag_of_words().SerializeToString()[:cut])

    with pytest.raises(ModelError, match="ONNX file"):
        load_onnx(scratch)


def test_text_in_place_of_an_onnx_file_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")

    with pytest.raises(ModelError, match="not a readable ONNX file"):
        load_onnx(tmp_path / "model.onnx")


def test_opset_of_the_future_is_refused(tmp_path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()

    with pytest.raises(ModelError, match=f"opset {newest + 1} is newer than opset {newest}"):
        load_onnx(save_onnx(tmp_path / "model.onnx", bag_of_words(opset=newest + 1)))


def test_external_weights_are_loaded_only_when_asked(tmp_path: Path) -> None:
    path = write_external(tmp_path)

    plain, whole = load_onnx(path), load_onnx(path, data=True)

    assert external_files(plain) == ["weights.bin"]
    assert (len(plain.graph.initializer[0].raw_data), len(whole.graph.initializer[0].raw_data)) == (0, 4 * VOCABULARY * HIDDEN)


def test_missing_external_weights_are_named(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    (tmp_path / "weights.bin").unlink()

    with pytest.raises(ModelError, match=r'external data file "weights\.bin" is missing'):
        load_onnx(path)


def test_truncated_external_weights_are_a_model_error(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"short")

    with pytest.raises(ModelError, match="weights"):
        check_onnx_finite(load_onnx(path), path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "sub/../../weights.bin"])
def test_external_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    path = write_external(tmp_path / "inner")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = location
    (tmp_path / "weights.bin").touch()

    with pytest.raises(ModelError, match="leaves the model folder"):
        load_onnx(save_onnx(path, model))


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = write_external(tmp_path / "inner")
    (tmp_path / "inner/weights.bin").rename(tmp_path / "outside.bin")
    (tmp_path / "inner/weights.bin").symlink_to(tmp_path / "outside.bin")

    with pytest.raises(ModelError, match="leaves the model folder"):
        load_onnx(path)


def test_onnx_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = bag_of_words()
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full((HIDDEN, 2), np.nan, np.float32), "classifier.weight"))
    path = save_onnx(tmp_path / "model.onnx", model)

    with pytest.raises(ModelError, match=r'"classifier\.weight" holds NaN'):
        check_onnx_finite(load_onnx(path), path)


def test_minus_infinity_of_an_attention_mask_is_allowed(tmp_path: Path) -> None:
    model = bag_of_words()
    model.graph.initializer.append(numpy_helper.from_array(np.full((4, 4), -np.inf, np.float32), "mask"))
    path = save_onnx(tmp_path / "model.onnx", model)

    check_onnx_finite(load_onnx(path), path)


def test_signature_keeps_names_of_free_dimensions() -> None:
    found = onnx_signature(bag_of_words())

    assert found["inputs"] == [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in ("input_ids", "attention_mask")]
    assert found["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}]


def test_initializers_that_are_listed_as_inputs_are_none() -> None:
    model = bag_of_words()
    model.graph.input.append(helper.make_tensor_value_info("classifier.bias", TensorProto.FLOAT, [2]))

    assert [entry["name"] for entry in onnx_signature(model)["inputs"]] == ["input_ids", "attention_mask"]


def test_parameters_leave_out_scales_and_zero_points() -> None:
    model = bag_of_words()
    before = onnx_parameters(model)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ones(16, np.float32), name) for name in ("w_scale", "w_zero_point", "w_quantized_zero_point")
    )

    assert onnx_parameters(model) == before
    assert before >= VOCABULARY * HIDDEN + 2 * HIDDEN + 2


def test_nodes_and_weights_of_subgraphs_are_found() -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "branch", [], [value], [numpy_helper.from_array(np.ones(2, np.float32), "w")]
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [value],
    )
    model = helper.make_model(graph)

    assert [node.op_type for node in all_nodes(model.graph)] == ["If", "Identity", "Identity"]
    assert onnx_parameters(model) == 4


def test_onnx_component_holds_the_graph_first_then_its_data(tmp_path: Path) -> None:
    component = onnx_component(write_external(tmp_path).parent)

    assert [ref.path for ref in component.files] == ["model.onnx", "weights.bin"]
    assert component.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_torch_component_holds_the_config_first(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text("{}")

    component = torch_component(tmp_path, {"inputs": [], "outputs": []})

    assert ([ref.path for ref in component.files], component.parameters) == (["config.json", "a.safetensors"], 14)
