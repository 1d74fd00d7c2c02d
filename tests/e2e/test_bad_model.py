"""Models and adapters that are missing, broken or hostile: exit code 3, one message, nothing executed, nothing written."""

from __future__ import annotations

import json
import pickle
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.models import bert_config, write_adapter, write_classifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.command import Project

HOST = ("compress", "--profile", "host")


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def change_weight(folder: Path, name: str, value: float, file: str = "model.safetensors") -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / file)
    tensors[name].flat[3] = value
    save_file(tensors, folder / file, metadata={"format": "pt"})


def remove_weight(folder: Path, name: str) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def only_pickle(base: Path, name: str) -> None:
    (base / "model.safetensors").unlink()
    with (base / name).open("wb") as handle:
        pickle.dump({"weight": [1.0]}, handle)


def unsharded(base: Path) -> None:
    (base / "model.safetensors").unlink()
    index = {"weight_map": {"classifier.weight": "model-00001-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_elsewhere(base: Path) -> None:
    shutil.move(base / "model.safetensors", base.parent / "stolen.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"classifier.weight": "../stolen.safetensors"}}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, ("base: no such model",)),
        (lambda base: [path.unlink() for path in base.iterdir()], ("base:", "neither config.json with weights nor an ONNX file")),
        (lambda base: (base / "model.safetensors").unlink(), ("base:", "no weights", "model.safetensors")),
        (lambda base: (base / "model.safetensors").write_bytes(b""), ("model.safetensors:", "empty")),
        (lambda base: truncate(base / "model.safetensors", 0.5), ("model.safetensors:", "truncated or corrupt")),
        (lambda base: truncate(base / "model.safetensors", 0.001), ("model.safetensors:", "truncated")),
        (
            lambda base: (base / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(5000)),
            ("model.safetensors:", "truncated or no safetensors"),
        ),
        (
            lambda base: (base / "model.safetensors").write_bytes((100).to_bytes(8, "little") + b"{" * 200),
            ("model.safetensors:", "header is corrupt"),
        ),
        (
            lambda base: (base / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}"),
            ("model.safetensors:", "holds no tensors"),
        ),
        (lambda base: change_weight(base, "classifier.weight", float("nan")), ('tensor "classifier.weight" holds NaN or infinite values',)),
        (
            lambda base: change_weight(base, "bert.pooler.dense.weight", float("inf")),
            ('tensor "bert.pooler.dense.weight" holds NaN or infinite values',),
        ),
        (lambda base: only_pickle(base, "model.pt"), ("pickled (model.pt)", "unpickling runs code")),
        (lambda base: only_pickle(base, "weights.pkl"), ("pickled (weights.pkl)",)),
        (unsharded, ("shards of the weights are missing", "model-00001-of-00002.safetensors")),
        (shard_elsewhere, ("../stolen.safetensors", "leaves the model folder")),
        (lambda base: (base / "config.json").write_text("{"), ("config.json:", "not readable as JSON")),
        (lambda base: (base / "config.json").write_text("[]"), ("config.json:", "not a JSON object")),
        (lambda base: (base / "config.json").write_text("{}"), ("config.json", "model_type")),
        (lambda base: (base / "tokenizer.json").unlink(), ("base:", "tokenizer is missing (tokenizer.json)")),
        (lambda base: (base / "tokenizer.json").write_text("{}"), ("tokenizer.json:", "not a readable tokenizer")),
        (lambda base: truncate(base / "tokenizer.json", 0.5), ("tokenizer.json:", "not a readable tokenizer")),
    ],
    ids=lambda value: value[-1][:50] if isinstance(value, tuple) else "",
)
def test_broken_model_folder_is_refused_before_anything_runs(
    small: Project, spoil: Callable[[Path], object], says: tuple[str, ...]
) -> None:
    spoil(small.folder / "base")

    errors = small.refuses(*HOST, code=3, says=says)

    assert errors.startswith("error: ")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda base: remove_weight(base, "bert.encoder.layer.1.output.dense.weight"),
            ("weights are missing", "bert.encoder.layer.1.output.dense.weight"),
        ),
        (lambda base: change_config(base, hidden_size=64), ("base:", "config.json and the weights belong together")),
    ],
)
def test_model_that_transformers_cannot_load_is_refused(small: Project, spoil: Callable[[Path], object], says: tuple[str, ...]) -> None:
    spoil(small.folder / "base")

    small.refuses(*HOST, code=3, says=says)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_malicious_pickle_in_bin_weights_is_refused_and_not_executed(small: Project, tmp_path: Path) -> None:
    import torch

    base, proof = small.folder / "base", tmp_path / "executed"
    (base / "model.safetensors").unlink()
    torch.save({"classifier.weight": torch.zeros(2, 32), "bomb": Bomb(proof)}, base / "pytorch_model.bin")

    small.refuses(*HOST, code=3, says=("base/pytorch_model.bin:", "more than weights"))

    assert not proof.exists()


def test_nan_in_bin_weights_is_refused(small: Project) -> None:
    import torch
    from safetensors.torch import load_file

    base = small.folder / "base"
    weights = load_file(base / "model.safetensors")
    weights["bert.pooler.dense.weight"][0, 0] = float("nan")
    (base / "model.safetensors").unlink()
    torch.save(weights, base / "pytorch_model.bin")

    small.refuses(*HOST, code=3, says=("base/pytorch_model.bin:", "bert.pooler.dense.weight", "NaN"))


def adapter_of_another_width(project: Project) -> None:
    other = write_classifier(project.folder / "other", hidden_size=48)
    shutil.rmtree(project.folder / "adapter")
    write_adapter(other, project.folder / "adapter")


def adapter_of_a_deeper_model(project: Project) -> None:
    other = write_classifier(project.folder / "other", num_hidden_layers=4)
    shutil.rmtree(project.folder / "adapter")
    write_adapter(other, project.folder / "adapter")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (adapter_of_another_width, ("adapter:", "other widths", "layer.0.attention.self.query")),
        (adapter_of_a_deeper_model, ("adapter:", "does not have", "layer.2.attention.self.query")),
    ],
)
def test_adapter_for_another_model_is_refused_naming_layers(
    small: Project, spoil: Callable[[Project], None], says: tuple[str, ...]
) -> None:
    spoil(small)

    small.refuses(*HOST, code=3, says=says)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda adapter: (adapter / "adapter_config.json").unlink(), ("adapter:", "no adapter_config.json")),
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), ("adapter:", "no adapter_model.safetensors")),
        (lambda adapter: (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin"), ("pickled (adapter_model.bin)",)),
        (lambda adapter: truncate(adapter / "adapter_model.safetensors", 0.5), ("adapter_model.safetensors:", "truncated or corrupt")),
        (lambda adapter: (adapter / "adapter_config.json").write_text('{"peft_type": "IA3"}'), ('type "IA3"', "LoRA")),
        (lambda adapter: (adapter / "adapter_config.json").write_text("nonsense"), ("adapter_config.json:", "JSON")),
        (shutil.rmtree, ("adapter",)),
    ],
)
def test_broken_adapter_is_refused_before_anything_runs(small: Project, spoil: Callable[[Path], object], says: tuple[str, ...]) -> None:
    spoil(small.folder / "adapter")

    errors = small.refuses(*HOST, code=3, says=says)

    assert errors.startswith("error: ")


def test_nan_in_the_adapter_is_refused(small: Project) -> None:
    from safetensors.numpy import load_file

    name = sorted(load_file(small.folder / "adapter" / "adapter_model.safetensors"))[0]
    change_weight(small.folder / "adapter", name, float("nan"), "adapter_model.safetensors")

    small.refuses(*HOST, code=3, says=("adapter_model.safetensors:", "NaN"))


def test_adapter_folder_given_as_the_model_is_refused(small: Project) -> None:
    small.refuses(
        "compress", "adapter", "--profile", "host", "--task", "text-classification", code=3, says=("adapter, not a model", "--adapter")
    )


def test_model_without_a_trained_head_is_refused(small: Project) -> None:
    from transformers import BertModel

    base = small.folder / "headless"
    BertModel(bert_config()).save_pretrained(base)
    shutil.copy(small.folder / "base" / "tokenizer.json", base)
    small.toml().write_text(small.toml().read_text().replace("[data]", 'labels = ["negative", "positive"]\n\n[data]'))

    small.refuses("compress", "headless", "--profile", "host", code=3, says=("classifier.weight", "no trained head"))


def test_hub_model_without_revision_is_refused(small: Project) -> None:
    small.refuses("compress", "hf://org/name", "--profile", "host", "--task", "fidelity", code=2, says=("hf://org/name", "revision"))
