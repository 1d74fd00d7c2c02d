"""recover: train what pruning left to do what the uncompressed model does.

The uncompressed model is the teacher (Hinton et al., arXiv 1503.02531), so that samples without labels teach too; what else is
learned from is chosen among the objectives in `edgepipe.training.objectives`, each with its source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.training.loop import Fitted

ObjectiveName = Literal["task", "logits", "hidden", "attention", "relations"]


class Recover(PassOptions):
    objectives: dict[ObjectiveName, float] = Field(
        default_factory=dict,
        description="what is learned from, and its weight: task (labels), logits (the teacher's outputs), hidden (its layers), attention, "
        "relations (default: logits, and hidden where the model is an encoder whose layers are known)",
    )
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False, description="of class probabilities, the teacher's and its own")
    epochs: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0, le=1, allow_inf_nan=False)
    batch_size: int = Field(default=32, ge=1)
    warm_up: float = Field(default=0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    weight_decay: float = Field(default=0.01, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="while it trains: what the teacher says is no noise to be forgotten")
    max_samples: int | None = Field(default=None, ge=1, description="of the training data, drawn at random (default: all)")
    patience: int = Field(default=4, ge=1, description="judgements on dev (two an epoch) without a better one, then training stops")
    minutes: float | None = Field(default=None, gt=0, description="time limit; what comes out then depends on the machine's speed")
    seed: int = Field(default=0, ge=0)

    @field_validator("objectives")
    @classmethod
    def _weights_that_count(cls, value: dict[str, float]) -> dict[str, float]:
        if any(not 0 < weight < float("inf") for weight in value.values()):
            raise ValueError("a weight is a number above 0; leave out an objective that does not count")
        return value


@register_pass(
    "recover",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=Recover,
    after=("merge-lora",),
    before=("quantization-aware-training", "export-onnx"),
    data=("train", "dev"),
    checks=(Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers", "safetensors"),
    teacher=True,
)
def recover(artifact: Artifact, options: Recover, ctx: Context) -> Artifact:
    """Train on the training data with the uncompressed model as teacher; the best state on dev is kept."""
    import torch

    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.training.batches import Batches
    from edgepipe.training.checkpoint import Checkpoint
    from edgepipe.training.lessons import lessons
    from edgepipe.training.loop import Schedule, fit

    module = load_torch(artifact)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = options.dropout
    train = Batches(
        artifact, drawn(ctx.data("train"), options.max_samples, options.seed), options.batch_size, seed=options.seed, teacher=ctx.teacher
    )
    dev = Batches(artifact, ctx.data("dev"), options.batch_size, teacher=ctx.teacher)
    taught = lessons(artifact, ctx.teacher, module, options, train)
    schedule = Schedule(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        warm_up=options.warm_up,
        weight_decay=options.weight_decay,
        patience=options.patience,
        minutes=options.minutes,
        deadline=ctx.deadline,
        seed=options.seed,
    )
    parameters = {**dict(module.named_parameters()), **taught.parameters()}
    fitted = fit(
        parameters,
        taught,
        train,
        dev,
        schedule,
        ctx.progress,
        where="pass recover",
        buffers=list(module.buffers()),
        checkpoint=Checkpoint(ctx.checkpoints),
    )
    if fitted.ended == "deadline":
        ctx.incomplete(f"the time limit ended training after {fitted.steps} of {options.epochs * len(train)} steps")
    ctx.record("training", curves(fitted, options.epochs * len(train)))
    return artifact.with_component("model", save_torch(module.eval(), artifact, ctx.workdir))


def drawn(samples: list[Any], count: int | None, seed: int) -> list[Any]:
    """All samples, or as many of them as asked, at random."""
    import random

    return samples if count is None or len(samples) <= count else random.Random(seed).sample(samples, count)


POINTS = 200  # of a curve in the manifest


def curves(fitted: Fitted, steps: int) -> dict[str, Any]:
    """The losses of a run as plain data: `train` [(step, mean loss since the last)], `dev` [(step, loss)], and how it ended."""
    stride = max(1, -(-len(fitted.train) // POINTS))
    pieces = [fitted.train[start : start + stride] for start in range(0, len(fitted.train), stride)]
    return {
        "train": [[min((index + 1) * stride, len(fitted.train)), sum(piece) / len(piece)] for index, piece in enumerate(pieces)],
        "dev": [list(point) for point in fitted.dev],
        "best_step": fitted.best_step,
        "steps": fitted.steps,
        "of_steps": steps,
        "ended": fitted.ended,
    }
