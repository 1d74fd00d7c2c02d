"""Options of `recover` that say what of the model is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from edgepipe.toml import Table

if TYPE_CHECKING:
    from typing import Self

OWNERS = {"rank": "lora", "adapter_size": "bottleneck", "prefix_length": "prefix", "share": "fish", "density": "movement"}


class MethodOptions(Table):
    train: Literal["full", "lora", "bottleneck", "prefix", "bitfit", "fish", "movement"] = Field(
        default="full",
        description="all weights; low-rank updates that are merged afterwards; adapters or prefixes that stay in the model; biases; "
        "the weights with the most Fisher information; all weights and which of them stay (sparse)",
    )
    rank: int = Field(default=8, ge=1, description="lora: of the updates")
    adapter_size: int = Field(default=24, ge=1, description="bottleneck: neurons of each adapter, two a layer")
    prefix_length: int = Field(default=16, ge=1, le=256, description="prefix: keys and values in front of every layer's own")
    share: float = Field(default=0.01, gt=0, le=1, description="fish: of the weights, trained beside the head")
    density: float = Field(default=0.5, gt=0, lt=1, description="movement: share of the weights of each layer that stay")

    @model_validator(mode="after")
    def _options_of_methods(self) -> Self:
        for name, method in OWNERS.items():
            if self.train != method and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name} is for train = "{method}", and train is "{self.train}": leave it out')
        return self
