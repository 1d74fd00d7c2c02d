"""What a loss may look at in a model: its outputs, and of an encoder its hidden states, queries, keys and values."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepipe.factorized import parts
from edgepipe.structure import encoder_layers, transformer_of
from edgepipe.training.outputs import called
from edgepipe.training.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from edgepipe.training.batches import Mix, OtherText

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

    def __init__(self, module: nn.Module, *, inside: bool, precision: Precision | None = None) -> None:
        """`inside`: hidden states and projections too. Raises `ModelError` for families whose layout is not known."""
        self.module, self._precision = module, precision or Precision()
        self._called = False
        self._kept: dict[tuple[str, int], Any] = {}
        self._layers = encoder_layers(module) if inside else []
        for index, layer in enumerate(self._layers):
            for part, name in (("queries", layer.layout.query), ("keys", layer.layout.key), ("values", layer.layout.value)):
                layer.attention.get_submodule(name).register_forward_hook(self._keeper(part, index))
            layer.layer.register_forward_hook(self._keeper("hidden", index + 1))
            if index == 0:
                layer.layer.register_forward_pre_hook(self._entering)

    def __call__(self, inputs: Mapping[str, Tensor], mix: Mix | None = None, other: OtherText | None = None) -> Views:
        """`mix`, and what with: embeddings of texts are mixed."""
        self._kept.clear()
        with embeddings_mixed(self.module, mix, other), self._precision.of_models(), self._watching():
            outputs = {name: value.float() for name, value in called(self.module, inputs).items()}
        seen = {part: [self._kept[key].float() for key in sorted(self._kept) if key[0] == part] for part in PARTS}
        self._kept.clear()
        return Views(outputs, heads=[layer.heads for layer in self._layers], **seen)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Not while layers are computed again for their gradients."""
        self._called = True
        try:
            yield
        finally:
            self._called = False

    def _keeper(self, part: str, index: int) -> Any:
        def keep(layer: Any, _: Any, output: Any) -> None:
            if self._called:
                own = output[0] if isinstance(output, tuple) else output
                self._kept[part, index] = own[:, len(getattr(parts(layer)[-1], "prefix", ())) :]  # a prefix is no position

        return keep

    def _entering(self, _: Any, inputs: tuple[Any, ...]) -> None:
        if self._called:
            self._kept["hidden", 0] = inputs[0]


def token_table(module: nn.Module) -> Any:
    """The layer that embeds tokens, or two of which it is the product; None for a model that takes none or does not say."""
    try:
        table = transformer_of(module).get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return table if hasattr(parts(table)[0], "num_embeddings") else None


@contextmanager
def embeddings_mixed(module: nn.Module, mix: Mix | None, other: OtherText | None) -> Iterator[None]:
    """Meanwhile, what the table of token embeddings gives, [batch, seq, width], is mixed; a text adds nothing where it is padding."""
    if mix is None or other is None:
        yield
        return
    table = token_table(module)

    def mixed(_: Any, __: Any, vectors: Tensor) -> Tensor:
        share = mix.share[:, None, None].to(vectors.dtype)
        ours, theirs = (mask[:, :, None].to(vectors.dtype) for mask in (other.own_mask, other.mask))
        return share * ours * vectors + (1 - share) * theirs * table.forward(other.tokens)

    handle = table.register_forward_hook(mixed)
    try:
        yield
    finally:
        handle.remove()
