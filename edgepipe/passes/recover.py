"""recover: train what pruning left to do what the uncompressed model does.

The uncompressed model is the teacher (Hinton et al., arXiv 1503.02531), so that samples without labels teach too; what else is
learned from is chosen among the objectives in `edgepipe.training.objectives`, each with its source.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from edgepipe.errors import DataError
from edgepipe.passes import Check, PassOptions, register_pass
from edgepipe.training.data_efficiency import DataEfficiency
from edgepipe.training.memory_options import MemoryOptions
from edgepipe.training.methods.options import MethodOptions
from edgepipe.training.objectives.options import ObjectiveOptions

if TYPE_CHECKING:
    from typing import Self

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.training.loop import Fitted


class Recover(MethodOptions, MemoryOptions, ObjectiveOptions, DataEfficiency, PassOptions):
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=32, ge=1)
    warm_up: float = Field(default=0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    weight_decay: float = Field(default=0.01, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="while it trains: what the teacher says is no noise to be forgotten")
    minutes: float | None = Field(default=None, gt=0, description="time limit; what comes out then depends on the machine's speed")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _views_that_differ(self) -> Self:
        if self.positives == "dropout" and not self.dropout:
            raise ValueError('positives = "dropout" compares a model with itself under other dropout: set dropout above 0, such as 0.1')
        return self


@register_pass(
    "recover",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=Recover,
    after=("merge-lora",),
    before=("quantization-aware-training", "export-onnx"),
    data=("train", "dev"),
    optional_data=("unlabelled",),
    checks=(Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers", "safetensors", "peft", "adapters", "bitsandbytes"),
    teacher=True,
)
def recover(artifact: Artifact, options: Recover, ctx: Context) -> Artifact:
    """Train on the training data with the uncompressed model as teacher; the best state on dev is kept."""
    from edgepipe.saving import save_torch
    from edgepipe.training.processes import together
    from edgepipe.training.recovery import Course, recovery

    options.check_device()
    samples = samples_to_learn(options, ctx)
    course = Course(artifact, ctx.teacher, options, samples, ctx.data("dev"), ctx.checkpoints, ctx.deadline)
    with TemporaryDirectory(dir=ctx.workdir) as folder, together(course, Path(folder)) as ranks:
        done = recovery(course, ctx.progress, ranks)
    if done.fitted.ended == "deadline":
        ctx.incomplete(f"the time limit ended training after {done.fitted.steps} of {done.steps} steps")
    if done.sweep:
        ctx.record("learning_rate", {"found": done.sweep.rate, "curve": [list(point) for point in done.sweep.curve]})
    ctx.record("training", curves(done.fitted, done.steps))
    ctx.record("trained", {"what": options.train, "parameters": done.trained})
    return artifact.with_component("model", save_torch(done.module, artifact, ctx.workdir))


def samples_to_learn(options: Recover, ctx: Context) -> list[Any]:
    """The training data, and behind it what has no labels."""
    from edgepipe.training.batches import drawn

    samples = drawn(ctx.data("train"), options.max_samples, options.seed)
    if not ctx.has("unlabelled"):
        return samples
    if set(options.objectives) == {"task"}:
        raise DataError(
            "there is unlabelled data, and nothing is learned but labels",
            where="recover.objectives",
            fix="add logits, so that the teacher says what the samples are, or leave the unlabelled data out",
        )
    return samples + drawn(ctx.data("unlabelled"), options.max_unlabelled, options.seed)


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
