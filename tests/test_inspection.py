"""Looking into a model without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgepipe.cost.flops import LENGTH, count_flops
from edgepipe.errors import ModelError
from edgepipe.inspection import binding, inspect_model, part_of
from edgepipe.profile import Profile, load_profile
from tests.conftest import read_classifier
from tests.onnx_models import HIDDEN, VOCABULARY, write_external, write_onnx_classifier

CLASSIFIER_PARAMETERS = (
    128 * 32 + 64 * 32 + 2 * 32 + 64 + 2 * (4 * (32 * 32 + 32) + 64 + 2 * 32 * 64 + 64 + 32 + 64) + (32 * 32 + 32) + (2 * 32 + 2)
)


def test_torch_model_is_counted_part_by_part(classifier: Path) -> None:
    found = inspect_model(str(classifier))

    assert (found["format"], found["family"], found["labels"]) == ("torch", "bert", ["negative", "positive"])
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"]) == CLASSIFIER_PARAMETERS
    assert found["size_bytes"] == (classifier / "model.safetensors").stat().st_size
    assert sum(part["bytes"] for part in found["parts"]) == 4 * CLASSIFIER_PARAMETERS


def test_parts_are_listed_largest_first(classifier: Path) -> None:
    sizes = [part["bytes"] for part in inspect_model(str(classifier))["parts"]]

    assert sizes == sorted(sizes, reverse=True)


def test_onnx_model_shows_its_operators_and_signature(onnx_classifier: Path) -> None:
    found = inspect_model(str(onnx_classifier))

    assert found["operators"] == {"ReduceSum": 2, "Gather": 1, "Cast": 1, "Unsqueeze": 1, "Mul": 1, "Div": 1, "MatMul": 1, "Add": 1}
    assert found["opset"] == {"ai.onnx": 17}
    assert [entry["name"] for entry in found["inputs"]] == ["input_ids", "attention_mask"]
    assert found["flops"] == 2 * HIDDEN * 2 * LENGTH


@pytest.mark.parametrize("location", ["model.onnx.data", "weights.bin"])
def test_external_weights_count_as_bytes_of_the_model(tmp_path: Path, location: str) -> None:
    write_external(tmp_path, location)

    found = inspect_model(str(tmp_path / "model.onnx"))

    assert found["size_bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 4}')
    save_file({"encoder.layer.0.dense.weight": np.full((4, 8), np.nan, np.float16)}, tmp_path / "model.safetensors")

    found = inspect_model(str(tmp_path))

    assert found["parts"] == [{"part": "encoder.layer", "parameters": 32, "bytes": 64}]
    assert found["flops"] == 2 * 32 * LENGTH


def test_embedding_tables_are_no_arithmetic(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 4}')
    save_file({"embeddings.word_embeddings.weight": np.ones((4, 8), np.float32)}, tmp_path / "model.safetensors")

    assert inspect_model(str(tmp_path))["flops"] == 0


def test_arithmetic_of_images_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"stem.conv.weight": np.ones((4, 3, 3, 3), np.float32)}, tmp_path / "model.safetensors")

    found = inspect_model(str(tmp_path))

    assert found["flops"] is None
    assert binding(found, load_profile("rpi4"))["binds"].startswith("unknown")


def test_model_that_is_none_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        inspect_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.attention.self"), ("classifier.weight", "classifier"),
        ("embedding", "embedding"), ("/encoder/layer.3/MatMul_output", "encoder"), ("", "(constants)"), ("123", "(constants)"),
    ],
)  # fmt: skip
def test_part_of_a_tensor_is_its_path_without_numbers(name: str, part: str) -> None:
    assert part_of(name) == part


def found_model(flops: float, size: int) -> dict[str, Any]:
    return {"flops": flops, "size_bytes": size}


def test_roofline_compares_arithmetic_with_reading_the_weights() -> None:
    rpi4 = load_profile("rpi4")  # 4 lanes × 2 × 4 cores × 1.8 GHz = 57.6 GFLOP/s; 12.8 GB/s

    bound = binding(found_model(57.6e9, 12_800_000), rpi4)

    assert (bound["arithmetic_floor_ms"], bound["bandwidth_floor_ms"], bound["binds"]) == (
        pytest.approx(1000),
        pytest.approx(1),
        "arithmetic",
    )
    assert binding(found_model(57.6e6, 12_800_000_000), rpi4)["binds"] == "memory bandwidth"
    assert bound["share_of_ram"] == pytest.approx(0.003, abs=1e-4)


def test_profile_without_a_bandwidth_binds_nothing() -> None:
    rpi4 = load_profile("rpi4")
    silent: Profile = rpi4.model_copy(update={"memory": rpi4.memory.model_copy(update={"bandwidth_gb_s": None})})

    bound = binding(found_model(1e9, 10**6), silent)

    assert bound["bandwidth_floor_ms"] is None
    assert bound["binds"].startswith("unknown")


def test_arithmetic_of_a_run_is_counted_from_its_shapes(tmp_path: Path) -> None:
    found = count_flops(read_classifier(write_onnx_classifier(tmp_path)), threads=1)

    assert found["flops"] == 2 * HIDDEN * 2  # one row of mean vectors times the matrix
    assert found["shape"] == {"input_ids": [1, 64], "attention_mask": [1, 64]}


def test_vocabulary_is_in_the_table_that_holds_it(onnx_classifier: Path) -> None:
    parts = {part["part"]: part["parameters"] for part in inspect_model(str(onnx_classifier))["parts"]}

    assert parts["embedding"] == VOCABULARY * HIDDEN
    assert json.loads((onnx_classifier / "config.json").read_text())["vocab_size"] == VOCABULARY
