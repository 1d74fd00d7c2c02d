"""Options of `recover` that say which samples are learned from, and in what form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgepipe.toml import Table

if TYPE_CHECKING:
    from typing import Self

AugmentationName = Literal["token-dropout", "token-swap", "synonyms", "mixup", "crop", "flip", "rotate", "cutmix"]
MIXING = ("mixup", "cutmix")


class DataEfficiency(Table):
    learning_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | Literal["find"] = Field(
        default=3e-4, description='the highest; "find" looks for it in a short sweep first'
    )
    max_samples: int | None = Field(default=None, ge=1, description="of the training data, drawn at random (default: all)")
    max_unlabelled: int | None = Field(default=None, ge=1, description="of the unlabelled data, drawn at random (default: all)")
    sampling: Literal["uniform", "loss", "gradient-norm"] = Field(
        default="uniform", description="draw samples evenly, or the more often the more they had to teach when last seen"
    )
    augment: tuple[AugmentationName, ...] = Field(
        default=(),
        description="change training samples anew in every epoch. Texts: token-dropout, token-swap, synonyms, mixup; images: "
        "crop, flip, rotate, mixup, cutmix",
    )
    augment_strength: float = Field(
        default=0.1, gt=0, le=0.5, description="share of the words, or of an image's sides or of a right angle, that a change reaches"
    )
    augment_share: float = Field(
        default=0.5, gt=0, le=1, description="of the samples that each method changes; mixup, cutmix: of the batches"
    )
    mix_alpha: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="shares come from Beta(α, α) (default: 0.2 for mixup, 1 for cutmix)"
    )
    patience: int = Field(default=4, ge=1, description="judgements on dev without a better one, then training stops")
    judgements: int = Field(default=2, ge=1, description="on dev, in each epoch")

    @model_validator(mode="after")
    def _changes_that_fit(self) -> Self:
        if len(set(self.augment)) < len(self.augment):
            raise ValueError("augment names a method twice")
        mixing = [name for name in self.augment if name in MIXING]
        if mixing and self.sampling != "uniform":
            raise ValueError(f'{mixing[0]} mixes samples, and sampling = "{self.sampling}" tells them apart by their losses: choose one')
        if self.mix_alpha is not None and not mixing:
            raise ValueError("mix_alpha is for mixup and cutmix: name one in augment, or leave it out")
        return self
