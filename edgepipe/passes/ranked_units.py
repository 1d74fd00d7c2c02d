"""What passes that cut the least important units (heads, neurons, channels) let be chosen alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgepipe.passes import PassOptions

if TYPE_CHECKING:
    from typing import Self

    from edgepipe.data import Split

Importance = Literal["taylor", "activation", "magnitude"]


class RankedUnits(PassOptions):
    """A pass adds how many units go (`ratio`) or stay (`keep`): one of the two."""

    ratio: float | None
    keep: Any
    scope: Literal["global", "layer"] = Field(default="global", description="rank units over the whole model, or within each layer")
    importance: Importance = Field(
        default="taylor",
        description="what matters: how the loss would move (taylor), what units give on calibration data (activation), or weights alone (magnitude)",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.keep and self.ratio is not None:
            raise ValueError("keep and ratio say the same thing: give one of them")
        return self

    @property
    def needed_data(self) -> tuple[Split, ...]:
        return () if self.importance == "magnitude" else ("calibration",)
