"""quantization-aware-training: train the model a little while its weights are rounded, for grids that rounding alone ruins.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877, section 3. The model before the pass is the teacher (Hinton et al., arXiv 1503.02531), so that
samples without labels teach too. Weights leave on their grid: a later pass that quantizes them with the same one rounds
nothing more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgepipe.errors import DataError
from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from typing import Self

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.training.batches import Batches


class QuantizationAwareTraining(PassOptions):
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="of the weights of linear layers and convolutions")
    group_size: int = Field(
        default=32, ge=-1, description="weights along the input that share a scale; 0: per channel, -1: the whole tensor"
    )
    symmetric: bool = Field(default=True, description="zero in the middle of the grid, or a zero point for each group")
    reduced_range: bool = Field(default=False, description="7 bits of 8, for x86 kernels that sum in 16 bits")
    learned_step: bool = Field(default=False, description="scales of symmetric grids are trained too (LSQ, arXiv 1902.08153)")
    activations: bool = Field(default=False, description="also round the inputs of layers to 8 bits, as dynamic quantization will")
    tables: Literal[2, 3, 4, 8] | None = Field(default=None, description="bits of embedding tables (default: they stay as they are)")
    exclude: tuple[str, ...] = Field(default=(), description="names of layers that stay as they are, as patterns: encoder.layer.0.*")
    epochs: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, le=1, allow_inf_nan=False)
    batch_size: int = Field(default=32, ge=1)
    max_samples: int | None = Field(default=None, ge=1, description="of the training data, drawn at random (default: all)")
    distill: float = Field(
        default=1.0, ge=0, le=1, description="weight of the distance to the model before the pass; the rest is that of the labels' own loss"
    )
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False, description="of the teacher's class probabilities")
    patience: int = Field(default=3, ge=1, description="judgements on dev (two an epoch) without a better one, then training stops")
    minutes: float | None = Field(default=None, gt=0, description="time limit; what comes out then depends on the machine's speed")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _steps_of_symmetric_grids(self) -> Self:
        if self.learned_step and not self.symmetric:
            raise ValueError("learned_step is for symmetric grids: set symmetric = true, or leave it out")
        return self


@register_pass(
    "quantization-aware-training",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=QuantizationAwareTraining,
    after=("merge-lora", "prune-heads", "prune-ffn", "recover"),
    before=("export-onnx",),
    data=("train", "dev"),
    checks=(Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers", "safetensors"),
)
def quantization_aware_training(artifact: Artifact, options: QuantizationAwareTraining, ctx: Context) -> Artifact:
    """Fine-tune with rounded weights on the training data; the best state on dev is kept, its weights on the grid."""
    from edgepipe.loader import load_torch
    from edgepipe.quantization.fake_quantized_model import FakeQuantizedModel, sites_of
    from edgepipe.quantization.rounding import Grid
    from edgepipe.saving import save_torch
    from edgepipe.training.batches import Batches, drawn
    from edgepipe.training.loop import Schedule, fit

    module = load_torch(artifact)
    grid = Grid(options.bits, options.symmetric, options.group_size, options.reduced_range)
    tables = Grid(options.tables, options.symmetric, options.group_size) if options.tables else None
    model = FakeQuantizedModel(
        module,
        sites_of(module, grid, tables, options.exclude),
        learned_step=options.learned_step,
        activations=options.activations,
    )
    train = Batches(artifact, drawn(ctx.data("train"), options.max_samples, options.seed), options.batch_size, seed=options.seed)
    dev = Batches(artifact, ctx.data("dev"), options.batch_size)
    trained = model.parameters()
    module.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    loss = _loss(artifact, module, options, trained, train, dev)
    schedule = Schedule(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        patience=options.patience,
        minutes=options.minutes,
        seed=options.seed,
    )
    with model.hooked():
        fitted = fit(
            trained, lambda batch: loss(model, batch), train, dev, schedule, ctx.progress, where="pass quantization-aware-training"
        )
    ctx.progress(f"putting weights on the grid, dev loss {fitted.best:.4f} (from {fitted.start:.4f})", fitted.steps, fitted.steps)
    model.project()
    return artifact.with_component("model", save_torch(module, artifact, ctx.workdir))


def _loss(
    artifact: Artifact, module: Any, options: QuantizationAwareTraining, trained: dict[str, Any], train: Batches, dev: Batches
) -> Any:
    """The task's loss, with a copy of the model as it is now for a teacher where one is asked for."""
    import copy

    import torch

    from edgepipe.training.losses import Loss, gives_classes
    from edgepipe.training.outputs import called

    for split, batches in (("train", train), ("dev", dev)):
        if not batches.labelled and not options.distill:
            raise DataError(
                f"the {split} data has no classes to learn, and nothing is learned from the model itself",
                where="quantization-aware-training.distill",
                fix="set distill above 0",
            )
    with torch.no_grad():
        outputs = called(module, next(train.in_order()).inputs)
    own = {id(parameter) for parameter in trained.values()}
    shared = {id(parameter): parameter for parameter in module.parameters() if id(parameter) not in own}  # what never moves
    teacher = copy.deepcopy(module, shared) if options.distill else None
    return Loss(gives_classes(artifact, outputs), teacher, options.distill, options.temperature)
