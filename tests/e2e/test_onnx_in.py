"""Models that are ONNX already: any shape, any kind of input, and never torch."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.e2e.command import Project, manifest_of
from tests.models import write_images
from tests.onnx_models import make_model

if TYPE_CHECKING:
    from pathlib import Path

HOST = ("compress", "--profile", "host")
LOOSE = ("--budget", "max_size_ratio=2", "--budget", "max_latency_ratio=20", "--budget", "max_accuracy_drop=25")
FIDELITY = ("--task", "fidelity", *LOOSE)
# Imported by Python at its start: to whoever asks after that, there is no torch.
NO_TORCH = """\
import sys

sys.modules.update(dict.fromkeys(["torch", "transformers", "peft", "optimum", "safetensors"]))
"""


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def perceptron() -> Any:
    """x [batch, 32] → y [batch, 5] through one hidden layer."""
    weights = {"w1": random(32, 64), "b1": random(64, seed=1), "w2": random(64, 5, seed=2)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    return make_model(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        weights,
    )


def convolutional(labels: int = 3) -> Any:
    """pixel_values [batch, 3, 32, 32] → logits [batch, labels]: two convolutions, the mean, a matrix."""
    weights = {"c1": random(8, 3, 3, 3), "c2": random(16, 8, 3, 3, seed=1), "w": random(16, labels, seed=2)}
    nodes = [
        helper.make_node("Conv", ["pixel_values", "c1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "c2"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 32, 32])]
    return make_model(nodes, inputs, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])], weights)


def stateful() -> Any:
    """frame [1, 64] and gain [] → y [1, 64]: an input that is a scalar."""
    nodes = [helper.make_node("Mul", ["frame", "gain"], ["scaled"]), helper.make_node("MatMul", ["scaled", "w"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("frame", TensorProto.FLOAT, [1, 64]),
        helper.make_tensor_value_info("gain", TensorProto.FLOAT, []),
    ]
    return make_model(nodes, inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])], {"w": random(64, 64)})


@pytest.fixture
def torchless(e2e_cache: Path, tmp_path: Path) -> Project:
    """An empty folder whose commands have no torch, transformers, peft, optimum and safetensors."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NO_TORCH)
    folder = tmp_path / "project"
    folder.mkdir()
    path = ":".join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return Project(folder, e2e_cache, {"PYTHONPATH": path})


def test_torch_is_absent_in_these_tests(torchless: Project) -> None:
    done = torchless.execute(["python", "-c", "import torch"])

    assert "import of torch halted" in done.stderr


@pytest.mark.parametrize("layout", ["rows of one file", "a file for each sample"])
def test_perceptron_by_fidelity_needs_no_labels_and_no_torch(torchless: Project, layout: str) -> None:
    folder = torchless.folder
    onnx.save_model(perceptron(), folder / "mlp.onnx")
    rows = random(60, 1, 32)
    if layout == "rows of one file":
        np.savez(folder / "samples.npz", x=rows)
    else:
        (folder / "samples.npz").mkdir()
        for index, row in enumerate(rows):
            np.savez(folder / "samples.npz" / f"{index}.npz", x=row)

    torchless.passes(*HOST, "mlp.onnx", *FIDELITY, "--data", "samples.npz", "--no-tune", "--quiet")

    manifest = manifest_of(folder / "build")
    assert [step["name"] for step in manifest["passes"]] == ["optimize-graph", "quantize-static"]
    assert manifest["results"][0]["metric"] == "agreement" and manifest["results"][0]["value"] > 95
    assert "torch" not in {node.domain for node in onnx.load(folder / "build" / "model" / "model.onnx").graph.node}


def test_scalar_inputs_are_fed_as_scalars(torchless: Project) -> None:
    onnx.save_model(stateful(), torchless.folder / "stream.onnx")
    np.savez(torchless.folder / "samples.npz", frame=random(40, 1, 64), gain=random(40))

    torchless.passes(*HOST, "stream.onnx", *FIDELITY, "--data", "samples.npz", "--quiet")

    assert manifest_of(torchless.folder / "build")["verdict"] in ("held", "unproven")


def write_vision_project(folder: Path) -> None:
    (folder / "model").mkdir()
    onnx.save_model(convolutional(), folder / "model" / "model.onnx")
    write_images(folder / "images", per_label=10)
    settings = {
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "edgepipe.toml").write_text(
        'model = "model"\n[task]\nname = "image-classification"\nlabels = ["cat", "dog", "fox"]\n[data]\nfile = "images"\n'
    )


def test_image_classifier_reads_folders_through_its_preprocessor(torchless: Project) -> None:
    write_vision_project(torchless.folder)

    done = json.loads(torchless.passes(*HOST, *LOOSE, "--json").stdout)

    assert done["program"]["preprocess"]["kind"] == "image"
    assert done["program"]["labels"] == ["cat", "dog", "fox"]
    assert done["results"][0]["n"] == 9
    image = torchless.folder / "images" / "cat" / "0.png"
    answer = json.loads(torchless.execute(["python", "build/run.py", str(image)]).stdout)
    assert answer["label"] in ("cat", "dog", "fox") and 0 < answer["score"] <= 1


def test_preprocessor_beside_an_onnx_file_can_be_named(torchless: Project) -> None:
    write_vision_project(torchless.folder)
    (torchless.folder / "model" / "preprocessor_config.json").rename(torchless.folder / "elsewhere.json")
    torchless.refuses(*HOST, code=3, says=("preprocessor_config.json is missing", "[data] preprocessor"))

    torchless.toml().write_text(torchless.toml().read_text() + 'preprocessor = "elsewhere.json"\n')
    torchless.passes(*HOST, *LOOSE, "--dry-run")


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (lambda folder: (folder / "images" / "cat" / "0.png").write_bytes(b"no image"), 3, ("cat/0.png",)),
        (lambda folder: (folder / "images" / "cat").rename(folder / "images" / "wolf"), 3, ('unknown label "wolf"',)),
        (
            lambda folder: [path.rename(folder / "images" / path.name) for path in (folder / "images" / "cat").iterdir()],
            3,
            ("no label", "folder per label"),
        ),
        (lambda folder: (folder / "model" / "preprocessor_config.json").write_text("{"), 3, ("preprocessor_config.json:", "JSON")),
        (
            lambda folder: (folder / "model" / "preprocessor_config.json").write_text('{"size": {"height": 16, "width": 16}}'),
            3,
            ("preprocessor_config.json", "pixel_values"),
        ),
    ],
    ids=["corrupt image", "unknown label", "no label folders", "corrupt preprocessor", "other size"],
)
def test_broken_image_data_is_refused(torchless: Project, spoil: Any, code: int, says: tuple[str, ...]) -> None:
    write_vision_project(torchless.folder)
    spoil(torchless.folder)

    torchless.refuses(*HOST, *LOOSE, code=code, says=says)


def test_labels_that_do_not_number_the_outputs_are_refused(torchless: Project) -> None:
    write_vision_project(torchless.folder)
    torchless.toml().write_text(torchless.toml().read_text().replace('"fox"]', '"fox", "owl"]'))

    torchless.refuses(*HOST, code=2, says=("4 labels", "3 outputs"))


def test_torch_model_without_torch_says_what_to_install(torchless: Project, classifier: Path, small_source: Path) -> None:
    torchless.refuses(
        *HOST,
        classifier,
        "--task",
        "text-classification",
        "--data",
        small_source / "samples.csv",
        code=2,
        says=("torch, which is not installed", "edgepipe[torch]"),
    )


def test_text_classifier_in_onnx_needs_no_torch(torchless: Project, onnx_project: Project) -> None:
    text = Project(onnx_project.folder, onnx_project.cache, torchless.variables)

    text.passes(*HOST, "--force", "--quiet")
    answer = json.loads(text.execute(["python", "build/run.py", "a very good film"]).stdout)

    assert answer["label"] in ("negative", "positive")
