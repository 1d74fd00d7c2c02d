"""Options of `recover` that say what is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from edgepipe.toml import Table

if TYPE_CHECKING:
    from typing import Self

ObjectiveName = Literal["task", "logits", "hidden", "attention", "relations", "masked-tokens", "causal", "contrastive"]


class ObjectiveOptions(Table):
    objectives: dict[ObjectiveName, float] = Field(
        default_factory=dict,
        description="what is learned from, and its weight: task (labels), logits (the teacher's outputs), hidden (its layers), attention, "
        "relations, masked-tokens, causal, contrastive (default: logits, and hidden where the model is an encoder whose layers are known)",
    )
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False, description="of class probabilities, the teacher's and its own")
    masking: Literal["random", "whole-word", "span"] = Field(default="random", description="which tokens masked-tokens hides")
    mask_rate: float = Field(default=0.15, gt=0, lt=1, description="share of the tokens that masked-tokens hides")
    output_sampling: int | None = Field(
        default=None, ge=1, description="masked-tokens and causal score this many tokens, drawn by how often they occur (default: all)"
    )
    output_estimate: Literal["softmax", "nce"] = Field(
        default="softmax", description="with output_sampling: a softmax over the sample, or noise-contrastive estimation"
    )
    positives: Literal["teacher", "dropout"] = Field(
        default="teacher", description="contrastive: the other view of a sample is the teacher's, or its own under other dropout"
    )
    contrast_temperature: float = Field(default=0.05, gt=0, allow_inf_nan=False, description="of the cosines that contrastive compares")

    @field_validator("objectives")
    @classmethod
    def _weights_that_count(cls, value: dict[str, float]) -> dict[str, float]:
        if any(not 0 < weight < float("inf") for weight in value.values()):
            raise ValueError("a weight is a number above 0; leave out an objective that does not count")
        return value

    @model_validator(mode="after")
    def _options_of_objectives(self) -> Self:
        owners = {
            "masking": {"masked-tokens"},
            "mask_rate": {"masked-tokens"},
            "output_sampling": {"masked-tokens", "causal"},
            "output_estimate": {"masked-tokens", "causal"},
            "positives": {"contrastive"},
            "contrast_temperature": {"contrastive"},
        }
        for name, objectives in owners.items():
            if getattr(self, name) != type(self).model_fields[name].default and not objectives & set(self.objectives):
                raise ValueError(f"{name} is for {' and '.join(sorted(objectives))}: name that in objectives, or leave {name} out")
        if self.output_estimate != "softmax" and self.output_sampling is None:
            raise ValueError("output_estimate says how a sample of the tokens is scored: give output_sampling too")
        return self
