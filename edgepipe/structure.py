"""structure.json: what pruning changed in a transformer encoder, and the cutting and rebuilding that goes with it.

{"layers": [{"heads": 12, "ffn": 1536}, …]}: attention heads and feed-forward width kept in each layer.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from edgepipe.artifact import Artifact, Component

STRUCTURE_FILE = "structure.json"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a family of encoders keeps its parts, as paths from a layer."""

    layers: str
    attention: str
    query: str
    key: str
    value: str
    output: str
    ffn_in: str
    ffn_out: str
    heads: str
    width: str | None


_BERT = Layout(
    "encoder.layer",
    "attention.self",
    "query",
    "key",
    "value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    "num_attention_heads",
    "all_head_size",
)
_VIT = replace(_BERT, attention="attention.attention")
_DISTILBERT = Layout(
    "transformer.layer", "attention", "q_lin", "k_lin", "v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2", "n_heads", "dim"
)
LAYOUTS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "vit": _VIT,
    "distilbert": _DISTILBERT,
}


@dataclass(slots=True)
class EncoderLayer:
    """One layer's prunable parts."""

    layer: Any
    layout: Layout

    @property
    def attention(self) -> Any:
        return self.layer.get_submodule(self.layout.attention)

    @property
    def head_size(self) -> int:
        return int(self.attention.attention_head_size)

    @property
    def heads(self) -> int:
        return int(getattr(self.attention, self.layout.heads))

    @property
    def ffn_in(self) -> Any:
        return self.layer.get_submodule(self.layout.ffn_in)

    @property
    def ffn_out(self) -> Any:
        return self.layer.get_submodule(self.layout.ffn_out)

    @property
    def attention_output(self) -> Any:
        return self.layer.get_submodule(self.layout.output)

    def keep_heads(self, kept: Sequence[int]) -> None:
        """Cut the layer down to these heads, in order."""
        import torch

        size = self.head_size
        rows = torch.cat([torch.arange(h * size, (h + 1) * size) for h in kept])
        for name in (self.layout.query, self.layout.key, self.layout.value):
            _keep_outputs(self.attention.get_submodule(name), rows)
        _keep_inputs(self.attention_output, rows)
        setattr(self.attention, self.layout.heads, len(kept))
        if self.layout.width:
            setattr(self.attention, self.layout.width, len(kept) * size)

    def keep_ffn(self, kept: Sequence[int]) -> None:
        """Cut the feed-forward part down to these neurons, in order."""
        import torch

        index = torch.as_tensor(list(kept))
        _keep_outputs(self.ffn_in, index)
        _keep_inputs(self.ffn_out, index)


def _keep_outputs(linear: Any, rows: Any) -> None:
    from torch import nn

    linear.weight = nn.Parameter(linear.weight.detach()[rows].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[rows].clone())
    linear.out_features = len(rows)


def _keep_inputs(linear: Any, columns: Any) -> None:
    from torch import nn

    linear.weight = nn.Parameter(linear.weight.detach()[:, columns].clone())
    linear.in_features = len(columns)


def transformer_of(module: Any) -> Any:
    """The transformers model in a sentence encoder, or the module itself."""
    return module.encoder if type(module).__name__ == "SentenceEncoder" else module


def encoder_layers(module: Any) -> list[EncoderLayer]:
    """The prunable layers of a model; `ModelError` for a family whose layout is not known."""
    module = transformer_of(module)
    family = getattr(module.config, "model_type", "")
    layout = LAYOUTS.get(family)
    if layout is None:
        raise ModelError(
            f'models of type "{family}" cannot be pruned here',
            where="model_type in config.json",
            fix=f"known: {', '.join(sorted(LAYOUTS))}; leave the pass out of the recipe",
        )
    base = getattr(module, module.base_model_prefix, module)
    return [EncoderLayer(layer, layout) for layer in base.get_submodule(layout.layers)]


def structure_of(module: Any) -> dict[str, Any]:
    return {"layers": [{"heads": layer.heads, "ffn": layer.ffn_in.out_features} for layer in encoder_layers(module)]}


def read_structure(folder: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads((folder / STRUCTURE_FILE).read_text(encoding="utf-8"))
        sound = all(int(layer[part]) > 0 for layer in data["layers"] for part in ("heads", "ffn"))
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise _untrue("it is not what a pruning pass writes", folder)
    return data


def apply_structure(module: nn.Module, folder: Path) -> None:
    """Give a freshly built model the widths of the pruned one in `folder`; its weights are filled afterwards."""
    structure, layers = read_structure(folder), encoder_layers(module)
    if len(layers) != len(structure["layers"]):
        raise _untrue(f"it tells of {len(structure['layers'])} layers, the model has {len(layers)}", folder)
    for layer, kept in zip(layers, structure["layers"], strict=True):
        if kept["heads"] < layer.heads:
            layer.keep_heads(range(kept["heads"]))
        if kept["ffn"] < layer.ffn_in.out_features:
            layer.keep_ffn(range(kept["ffn"]))


def _untrue(what: str, folder: Path) -> ModelError:
    return ModelError(
        f"structure.json is not true: {what}", where=str(folder / STRUCTURE_FILE), fix="take the folder as the pruning pass wrote it"
    )


def save_torch(module: Any, artifact: Artifact, workdir: Path, *, structure: Mapping[str, Any] | None = None) -> Component:
    """Write a torch model as a component: config, safetensors, and structure.json where it was pruned."""
    from edgepipe.weights import torch_component

    folder = workdir / "model"
    folder.mkdir()
    if hasattr(module, "save_pretrained"):
        module.save_pretrained(folder) if structure is None else _save_pruned(module, folder)
    else:
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / "model.safetensors")
        shutil.copyfile(artifact.model.folder / "config.json", folder / "config.json")
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        source = artifact.model.folder / name
        if source.is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
    if structure is not None:
        (folder / STRUCTURE_FILE).write_text(json.dumps(structure, indent=1) + "\n", encoding="utf-8")
    component: Component = torch_component(folder, artifact.model.signature)
    return component


def _save_pruned(module: Any, folder: Path) -> None:
    """State under its own names, since only our loader can rebuild it; tied weights are written once."""
    from safetensors.torch import save_model

    module.config.save_pretrained(folder)
    save_model(transformer_of(module), str(folder / "model.safetensors"))
