"""One recovery from models and samples to weights, in this process alone or in each of several that train together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.training.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.readers import Sample
    from edgepipe.training.loop import Fitted

    Progress = Callable[[str, int, int], None]

WHERE = "pass recover"


@dataclass(frozen=True, slots=True)
class Course:
    """What is trained, on what, and how. `options` are those of the pass."""

    student: Artifact
    teacher: Artifact
    options: Any
    train: Sequence[Sample]
    dev: Sequence[Sample]
    checkpoints: Path
    deadline: float | None  # as `time.time` counts


@dataclass(frozen=True, slots=True)
class Recovered:
    module: Any  # a plain model with the best weights
    fitted: Fitted
    steps: int  # of the whole schedule
    trained: int  # parameters
    sweep: Any  # of learning rates, where one was looked for


def recovery(course: Course, progress: Progress, ranks: Ranks = Ranks()) -> Recovered:  # noqa: B008  it is frozen
    """Raises `PassError` and `DataError` for options that do not fit the models or the samples, and for training that diverges."""
    import torch

    from edgepipe.loader import load_torch
    from edgepipe.training.augmentation import Setup, make_augmentation
    from edgepipe.training.batches import Batches
    from edgepipe.training.checkpoint import Checkpoint
    from edgepipe.training.gradient_checkpointing import checkpoint_layers
    from edgepipe.training.importance_sampling import ImportanceSampler
    from edgepipe.training.learning_rate_finder import find_learning_rate
    from edgepipe.training.lessons import lessons
    from edgepipe.training.loop import Schedule, fit
    from edgepipe.training.methods import Setup as MethodSetup
    from edgepipe.training.methods import finish, make_method
    from edgepipe.training.pieces import on_device

    student, teacher, options = course.student, course.teacher, course.options
    module = load_torch(student).to(options.device)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = options.dropout
    sampler = None if options.sampling == "uniform" else ImportanceSampler(len(course.train), options.sampling, options.seed)
    train = Batches(
        student,
        course.train,
        options.batch_size,
        seed=options.seed,
        teacher=teacher,
        augmentation=make_augmentation(Setup(student, module, teacher, options)),
        sampler=sampler,
    )
    dev = Batches(student, course.dev, options.batch_size, teacher=teacher)
    method = make_method(MethodSetup(student, module, options, train))
    taught = lessons(student, teacher, method.module, options, train)
    trained = method.begin(taught)
    parameters = {**trained, **taught.parameters()}
    if options.gradient_checkpointing:
        checkpoint_layers(module)
    moved: dict[str, Any] = {"where": WHERE, "buffers": list(module.buffers())}
    sweep = None
    if options.learning_rate == "find":
        sweep = find_learning_rate(parameters, taught, train, progress, weight_decay=options.weight_decay, seed=options.seed, **moved)
    schedule = Schedule(
        epochs=options.epochs,
        learning_rate=sweep.rate if sweep else options.learning_rate,
        warm_up=options.warm_up,
        weight_decay=options.weight_decay,
        judgements=options.judgements,
        patience=options.patience,
        minutes=options.minutes,
        deadline=course.deadline,
        seed=options.seed,
        precision=options.precision,
        accumulate=options.accumulate,
        optimizer=options.optimizer,
    )
    taught.sampler = sampler
    kept: dict[str, Any] = {"checkpoint": Checkpoint(course.checkpoints), "sampler": sampler, "form": method.form, "ranks": ranks}
    fitted = fit(parameters, taught, train, dev, schedule, progress, **moved, **kept)
    finished = finish(method, on_device(next(dev.in_order()), options.device)).cpu()
    return Recovered(finished, fitted, options.epochs * len(train), sum(each.numel() for each in trained.values()), sweep)
