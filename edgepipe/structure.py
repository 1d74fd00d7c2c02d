"""structure.json: how a model differs from what its config (or factory) builds, and the cutting and rebuilding that goes with it.

{"layers": [{"heads": 12, "ffn": 1536}, …], attention heads and feed-forward width of each layer of an encoder
 "factors": {"bert.pooler.dense": 64}, ranks of layers that are products of two
 "adapter": 24, "prefix": 16,         what training added to each layer of an encoder
 "shapes": {"layer1.0.weight": [24, 16, 3, 3]}} any other weight that is smaller: channels, hidden width
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepipe.additions import ADDITIONS, additions_of, apply_additions
from edgepipe.errors import ModelError
from edgepipe.factorized import apply_factors, factors_of, parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

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

    linear = parts(linear)[-1]
    linear.weight = nn.Parameter(linear.weight.detach()[rows].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[rows].clone())
    if hasattr(linear, "prefix"):
        linear.prefix = nn.Parameter(linear.prefix.detach()[:, rows].clone())
    linear.out_features = len(rows)


def _keep_inputs(linear: Any, columns: Any) -> None:
    from torch import nn

    linear = parts(linear)[0]
    linear.weight = nn.Parameter(linear.weight.detach()[:, columns].clone())
    linear.in_features = len(columns)


def transformer_of(module: Any) -> Any:
    """The transformers model in a sentence encoder, or the module itself."""
    return module.encoder if type(module).__name__ == "SentenceEncoder" else module


def layers_are_known(module: Any) -> bool:
    """Whether the model is of a family whose layout is known."""
    return getattr(getattr(transformer_of(module), "config", None), "model_type", "") in LAYOUTS


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


def hidden_width(module: Any) -> int:
    """What the layers of an encoder hand on, whatever its config says."""
    return _width(encoder_layers(module)[0].attention_output)


def structure_of(module: Any, plain: Any) -> dict[str, Any]:
    """What `module` has otherwise than `plain`, the same model as its config builds it. Empty where they are alike.

    `plain` is left with the structure of `module`.
    """
    structure: dict[str, Any] = {}
    if factors := factors_of(module):
        structure["factors"] = factors
        apply_factors(plain, factors)
    if layers_are_known(module):
        if additions := additions_of(encoder_layers(module)):
            structure |= additions
            apply_additions(encoder_layers(plain), additions)
        layers = [{"heads": layer.heads, "ffn": _width(layer.ffn_in)} for layer in encoder_layers(module)]
        if layers != [{"heads": layer.heads, "ffn": _width(layer.ffn_in)} for layer in encoder_layers(plain)]:
            structure["layers"] = layers
            _apply_layers(plain, layers)
    ours, theirs = module.state_dict(), plain.state_dict()
    shapes = {name: list(value.shape) for name, value in ours.items() if name in theirs and value.shape != theirs[name].shape}
    if shapes:
        structure["shapes"] = shapes
    return structure


def read_structure(folder: Path) -> dict[str, Any]:
    """What structure.json says; empty where there is none. Raises `ModelError` for a file that no pass writes."""
    path = folder / STRUCTURE_FILE
    if not path.is_file():
        return {}
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        numbers = [layer[part] for layer in data.get("layers", ()) for part in ("heads", "ffn")]
        numbers += [*data.get("factors", {}).values(), *(n for shape in data.get("shapes", {}).values() for n in shape)]
        numbers += [data[name] for name in ADDITIONS if name in data]
        sound = bool(data) and all(type(number) is int and number > 0 for number in numbers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise _untrue("it is not what a pruning pass writes", folder)
    return data


def apply_structure(module: nn.Module, folder: Path) -> None:
    """Give a freshly built model the form of the one in `folder`; its weights are filled afterwards."""
    structure = read_structure(folder)
    if factors := structure.get("factors"):
        modules = dict(module.named_modules())
        if lost := sorted(set(factors) - set(modules)):
            raise _untrue(f"the model has no layer {lost[0]}", folder)
        apply_factors(module, factors)
    if additions := {name: structure[name] for name in ADDITIONS if name in structure}:
        apply_additions(encoder_layers(module), additions)
    if kept := structure.get("layers"):
        found = len(encoder_layers(module))
        if found != len(kept):
            raise _untrue(f"it tells of {len(kept)} layers, the model has {found}", folder)
        _apply_layers(module, kept)
    state = module.state_dict()
    for name, shape in structure.get("shapes", {}).items():
        whole = state.get(name)
        if whole is None or len(shape) != whole.ndim or any(n > of for n, of in zip(shape, whole.shape, strict=True)):
            raise _untrue(f"{name} cannot be {' × '.join(map(str, shape))}", folder)
        resize(module, name, shape)


def _apply_layers(module: nn.Module, kept: Sequence[Mapping[str, int]]) -> None:
    for layer, widths in zip(encoder_layers(module), kept, strict=True):
        if widths["heads"] < layer.heads:
            layer.keep_heads(range(widths["heads"]))
        if widths["ffn"] < _width(layer.ffn_in):
            layer.keep_ffn(range(widths["ffn"]))


def _width(linear: Any) -> int:
    """Outputs of a linear layer, or of one that is a product of two."""
    return int(parts(linear)[-1].out_features)


def resize(module: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Give one parameter or buffer another shape, and its layer the widths that follow from it. Values are lost."""
    import torch
    from torch import nn

    path, _, own = name.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, own)
    new = torch.zeros(tuple(shape), dtype=old.dtype, device=old.device)
    setattr(owner, own, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    if own != "weight":
        return
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = shape
    elif isinstance(owner, nn.Embedding):
        owner.num_embeddings, owner.embedding_dim = shape
    elif isinstance(owner, nn.LayerNorm):
        owner.normalized_shape = tuple(shape)
    elif isinstance(owner, nn.modules.batchnorm._NormBase):
        owner.num_features = shape[0]
    elif isinstance(owner, nn.GroupNorm):
        owner.num_channels = shape[0]
    elif isinstance(owner, nn.PReLU):
        owner.num_parameters = shape[0]
    elif isinstance(owner, nn.modules.conv._ConvNd):
        if owner.groups == owner.in_channels == owner.out_channels:  # one filter for each channel, however many there are
            owner.groups = shape[0]
        outer, inner = shape[0], shape[1] * owner.groups
        if owner.transposed:
            owner.in_channels, owner.out_channels = outer, inner
        else:
            owner.in_channels, owner.out_channels = inner, outer


def _untrue(what: str, folder: Path) -> ModelError:
    return ModelError(
        f"structure.json is not true: {what}", where=str(folder / STRUCTURE_FILE), fix="take the folder as the pruning pass wrote it"
    )
