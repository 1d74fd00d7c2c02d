"""What was cut out of an encoder, found by its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.artifact import Artifact
from edgepipe.loader import load_torch
from edgepipe.structure import encoder_layers
from tests.passes.running import torch_outputs


def structure(artifact: Artifact) -> list[dict[str, int]]:
    layers: list[dict[str, int]] = json.loads((artifact.model.folder / "structure.json").read_text())["layers"]
    return layers


def kept_rows(before: Any, after: Any) -> list[int]:
    """Which outputs of a linear layer its pruned self still has, found by their weights."""
    rows = [np.flatnonzero((before.weight.detach().numpy() == row).all(1)) for row in after.weight.detach().numpy()]
    assert all(len(found) == 1 for found in rows)
    return [int(found[0]) for found in rows]


def silenced(module: Any, pruned: Any) -> Any:
    """The unpruned model with what the pruned one lost multiplied by zero: they must compute the same."""
    import torch

    for whole, cut in zip(encoder_layers(module), encoder_layers(pruned), strict=True):
        name = whole.layout.query
        pairs = [
            (whole.attention.get_submodule(name), cut.attention.get_submodule(name), whole.attention_output),
            (whole.ffn_in, cut.ffn_in, whole.ffn_out),
        ]
        for before, after, reader in pairs:
            lost = sorted(set(range(before.out_features)) - set(kept_rows(before, after)))
            with torch.no_grad():
                reader.weight[:, lost] = 0
    return module


def assert_cut_cleanly(before: Artifact, after: Artifact, feeds: dict[str, np.ndarray]) -> None:
    pruned = load_torch(after)
    assert structure(after) == [{"heads": layer.heads, "ffn": layer.ffn_in.out_features} for layer in encoder_layers(pruned)]
    for layer in encoder_layers(pruned):
        width = layer.heads * layer.head_size
        assert [
            layer.attention.get_submodule(part).weight.shape[0] for part in (layer.layout.query, layer.layout.key, layer.layout.value)
        ] == [width] * 3
        assert layer.attention_output.weight.shape[1] == width
        assert layer.ffn_in.weight.shape[0] == layer.ffn_out.weight.shape[1] == layer.ffn_in.out_features
    np.testing.assert_allclose(torch_outputs(pruned, feeds), torch_outputs(silenced(load_torch(before), pruned), feeds), atol=1e-5)


def quietened(source: Path, folder: Path, readers: dict[str, Sequence[int]]) -> Path:
    """A copy in which these columns of these weights are zero, so that what feeds them cannot matter."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    state = load_file(folder / "model.safetensors")
    for name, columns in readers.items():
        state[name][:, list(columns)] = 0
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder
