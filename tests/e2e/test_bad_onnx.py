"""ONNX files that are broken, hostile, too new or of no use to the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.e2e.command import manifest_of
from tests.onnx_models import bag_of_words, make_model, one_node, write_external

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.command import Project

HOST = ("compress", "--profile", "host")


def save(folder: Path, model: Any) -> None:
    onnx.save_model(model, folder / "model.onnx")


def external_at(folder: Path, location: str) -> None:
    """The model's weights in a file beside it, under another name in the graph."""
    write_external(folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    save(folder, model)


def missing_external(folder: Path) -> None:
    write_external(folder)
    (folder / "weights.bin").unlink()


def truncated_external(folder: Path) -> None:
    write_external(folder)
    (folder / "weights.bin").write_bytes((folder / "weights.bin").read_bytes()[:100])


def linked_external(folder: Path) -> None:
    write_external(folder)
    (folder / "weights.bin").rename(folder.parent / "elsewhere.bin")
    (folder / "weights.bin").symlink_to(folder.parent / "elsewhere.bin")


def corrupt(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])


def with_weight(value: float) -> Any:
    model = bag_of_words()
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "embedding")
    array = onnx.numpy_helper.to_array(weights).copy()
    array[3, 3] = value
    weights.CopyFrom(onnx.numpy_helper.from_array(array, "embedding"))
    return model


def dangling() -> Any:
    model = bag_of_words()
    model.graph.node[-1].input[0] = "nowhere"
    return model


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), ("onnx:", "no weights")),
        (lambda folder: (folder / "model.onnx").write_bytes(b""), ("model.onnx:",)),
        (lambda folder: (folder / "model.onnx").write_bytes(b"<html>not found</html>"), ("model.onnx:", "not a readable ONNX file")),
        (corrupt, ("model.onnx:", "not a readable ONNX file")),
        (lambda folder: save(folder, with_weight(float("nan"))), ('tensor "embedding" holds NaN',)),
        (lambda folder: save(folder, bag_of_words(opset=99)), ("model.onnx:", "opset 99 is newer")),
        (lambda folder: external_at(folder, "../../secrets.bin"), ("../../secrets.bin", "leaves the model folder")),
        (lambda folder: external_at(folder, "/etc/passwd"), ("/etc/passwd", "leaves the model folder")),
        (linked_external, ("weights.bin", "leaves the model folder")),
        (missing_external, ("model.onnx:", '"weights.bin" is missing')),
        (truncated_external, ("model.onnx:", "truncated or corrupt", '"embedding"')),
        (
            lambda folder: (save(folder, bag_of_words()), onnx.save_model(bag_of_words(), folder / "two.onnx")),
            ("2 ONNX files", "model.onnx, two.onnx"),
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_broken_onnx_model_is_refused_before_anything_runs(
    onnx_project: Project, spoil: Callable[[Path], object], says: tuple[str, ...]
) -> None:
    spoil(onnx_project.folder / "onnx")

    errors = onnx_project.refuses(*HOST, code=3, says=says)

    assert errors.startswith("error: ")


def not_a_number() -> Any:
    model = bag_of_words()
    model.graph.node[-1].CopyFrom(helper.make_node("Log", ["scores"], ["logits"]))
    return model


@pytest.mark.parametrize("model", [dangling(), not_a_number()], ids=["dangling input", "not a number"])
def test_graph_that_does_not_run_is_one_message(onnx_project: Project, model: Any) -> None:
    save(onnx_project.folder / "onnx", model)

    done = onnx_project.run(*HOST)

    assert done.returncode in (3, 4), done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert not (onnx_project.folder / "build").exists()


def test_external_data_inside_the_folder_is_taken(onnx_project: Project) -> None:
    folder = onnx_project.folder / "onnx"
    onnx.save_model(bag_of_words(), folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)

    onnx_project.passes(*HOST, "--quiet")


@pytest.mark.parametrize("profile", ["rpi4", "host"])
def test_operator_without_a_kernel_is_exit_code_15(onnx_project: Project, profile: str) -> None:
    model = bag_of_words()
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "FlyingAdd", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    save(onnx_project.folder / "onnx", model)

    onnx_project.refuses("compress", "--profile", profile, code=15, says=("com.example:FlyingAdd", "model.onnx"))


def test_operator_that_only_the_device_lacks_breaks_the_operators_axis(onnx_project: Project, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((30, 4)).astype(np.float32)
    np.savez(onnx_project.folder / "rows.npz", x=rows[:, None])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    weights = {"w": np.random.default_rng(1).random((4, 4)).astype(np.float32)}
    node = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("FusedMatMul", ["z", "w"], ["y"], domain="com.microsoft")]
    model = make_model(node, value[:1], value[1:], weights)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save_model(model, onnx_project.folder / "fused.onnx")
    command = ("compress", "fused.onnx", "--task", "fidelity", "--data", "rows.npz", "--budget", "max_size_ratio=9")

    done = onnx_project.run(*command, "--profile", "browser-wasm")

    missing = [row for row in manifest_of(onnx_project.folder / "build")["results"] if row["axis"] == "operators"]
    assert done.returncode == 0, done.stderr + done.stdout
    assert missing[0]["value"] == 0


def test_quantized_model_has_nothing_left_to_do(onnx_project: Project) -> None:
    onnx_project.passes(*HOST, "--no-tune", "--quiet")
    (onnx_project.folder / "onnx" / "model.onnx").write_bytes((onnx_project.folder / "build" / "model" / "model.onnx").read_bytes())

    onnx_project.refuses(*HOST, "--out", "again", code=2, says=("nothing to do", "quantized already"))


def test_quantizing_twice_is_refused(onnx_project: Project) -> None:
    onnx_project.passes(*HOST, "--no-tune", "--quiet")
    (onnx_project.folder / "onnx" / "model.onnx").write_bytes((onnx_project.folder / "build" / "model" / "model.onnx").read_bytes())
    (onnx_project.folder / "recipe.toml").write_text('[[step]]\npass = "quantize-dynamic"\n')

    onnx_project.refuses(*HOST, "--recipe", "recipe.toml", "--out", "again", code=4, says=("quantize-dynamic", "already quantized"))


def test_model_with_nothing_to_quantize_is_told_so(onnx_project: Project) -> None:
    onnx.save_model(one_node("Relu"), onnx_project.folder / "relu.onnx")
    np.savez(onnx_project.folder / "rows.npz", x=np.random.default_rng(0).random((30, 4)).astype(np.float32))
    (onnx_project.folder / "recipe.toml").write_text('[[step]]\npass = "quantize-dynamic"\n')

    onnx_project.refuses(
        "compress",
        "relu.onnx",
        "--task",
        "fidelity",
        "--data",
        "rows.npz",
        "--profile",
        "host",
        "--recipe",
        "recipe.toml",
        code=4,
        says=("quantize-dynamic", "MatMul"),
    )


def test_samples_that_do_not_fit_the_models_inputs_are_refused(onnx_project: Project) -> None:
    onnx.save_model(one_node("Relu"), onnx_project.folder / "relu.onnx")
    np.savez(onnx_project.folder / "rows.npz", wrong=np.random.default_rng(0).random((30, 4)).astype(np.float32))

    onnx_project.refuses(
        "compress", "relu.onnx", "--task", "fidelity", "--data", "rows.npz", "--profile", "host", code=3, says=("rows.npz", '"x"')
    )


@pytest.mark.parametrize(
    "array", [np.arange(120).reshape(30, 4), np.random.default_rng(0).random((30, 4, 1)).astype(np.float32)], ids=["type", "rank"]
)
def test_samples_of_the_wrong_type_or_rank_are_refused(onnx_project: Project, array: np.ndarray) -> None:
    onnx.save_model(one_node("Relu"), onnx_project.folder / "relu.onnx")
    np.savez(onnx_project.folder / "rows.npz", x=array)

    onnx_project.refuses(
        "compress",
        "relu.onnx",
        "--task",
        "fidelity",
        "--data",
        "rows.npz",
        "--profile",
        "host",
        code=3,
        says=("rows.npz", '"x"', "float32"),
    )
