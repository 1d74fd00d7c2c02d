"""What a loss may look at in a model: its outputs, and of an encoder its hidden states, queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepipe.structure import encoder_layers
from edgepipe.training.outputs import called

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

PARTS = ("hidden", "queries", "keys", "values")


@dataclass(slots=True)
class Views:
    outputs: dict[str, Tensor]
    hidden: list[Tensor] = field(default_factory=list)  # [batch, seq, hidden]: what enters the first layer, what leaves each
    queries: list[Tensor] = field(default_factory=list)  # [batch, seq, heads · head size], of each layer
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)  # of each layer


class Watched:
    """A model whose insides are kept at every call."""

    def __init__(self, module: nn.Module, *, inside: bool) -> None:
        """`inside`: hidden states and projections too. Raises `ModelError` for families whose layout is not known."""
        self.module = module
        self._kept: dict[tuple[str, int], Any] = {}
        self._layers = encoder_layers(module) if inside else []
        for index, layer in enumerate(self._layers):
            for part, name in (("queries", layer.layout.query), ("keys", layer.layout.key), ("values", layer.layout.value)):
                layer.attention.get_submodule(name).register_forward_hook(self._keeper(part, index))
            layer.layer.register_forward_hook(self._keeper("hidden", index + 1))
            if index == 0:
                layer.layer.register_forward_pre_hook(self._entering)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Views:
        self._kept.clear()
        outputs = called(self.module, inputs)
        seen = {part: [self._kept[key] for key in sorted(self._kept) if key[0] == part] for part in PARTS}
        self._kept.clear()
        return Views(outputs, heads=[layer.heads for layer in self._layers], **seen)

    def _keeper(self, part: str, index: int) -> Any:
        def keep(_: Any, __: Any, output: Any) -> None:
            self._kept[part, index] = output[0] if isinstance(output, tuple) else output

        return keep

    def _entering(self, _: Any, inputs: tuple[Any, ...]) -> None:
        self._kept["hidden", 0] = inputs[0]
