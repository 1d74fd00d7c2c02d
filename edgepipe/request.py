"""What a build is asked for, read and checked before anything runs: the request, the model, the data, the recipes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.bundle import check_target
from edgepipe.component_recipes import check_components, is_onnx, plan_components
from edgepipe.config import Budget, Data, Recipe, Task, load_recipe
from edgepipe.data import ALL_DATA, SPLITS, Splits, check_fit
from edgepipe.errors import DataError, ModelError, OperatorError, UsageError, nearest, reading
from edgepipe.intake import find_source, make_artifact
from edgepipe.memory_fit import check_fits
from edgepipe.ocr import ocr_artifact
from edgepipe.operators import unknown_here
from edgepipe.parts import Parts
from edgepipe.passes import load_plugin
from edgepipe.profile import load_profile, with_devices
from edgepipe.recipe_check import baseline_recipe, check_recipe
from edgepipe.runners import check_address
from edgepipe.streams import check_audio, sample_inputs
from edgepipe.tasks import load_task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.config import Step
    from edgepipe.data import Split
    from edgepipe.passes import PassSpec
    from edgepipe.profile import Profile
    from edgepipe.tasks import TaskSpec


TARGET_SAMPLES = 200


@dataclass(frozen=True, slots=True)
class Request:
    """Everything a build is asked for, after flags and project file were put together."""

    model: str
    profiles: tuple[str, ...]
    task: Task
    name: str = ""
    data: Data = Data()
    adapters: tuple[str, ...] = ()
    budget: Budget = Budget()
    recipe: str | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[tuple[str, str], str] = field(default_factory=dict)  # (pass, option) → where it was set, for errors
    model_factory: str | None = None
    teacher: str | None = None  # folder of a model that recovery learns from instead of the uncompressed one
    plugins: tuple[str, ...] = ()
    licences: dict[str, str] = field(default_factory=dict)
    out: Path = Path("build")
    force: bool = False
    strict: bool = False
    archive: bool = False
    devices: tuple[str, ...] = ()
    tune: bool = True  # choose by measurement how each layer is quantized, where the recipe leaves it open
    time_limit: float | None = None  # minutes for all builds together; training then ends with the best it has
    parts: Parts = field(default_factory=Parts)  # several components, or state
    target_samples: int | None = TARGET_SAMPLES  # random samples that an emulated device runs; None: all


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request read and checked: nothing has run yet."""

    request: Request
    task: TaskSpec
    splits: Splits
    artifact: Artifact
    teacher: Artifact | None = None  # that the user named


def prepare(request: Request, *, with_data: bool = True) -> Prepared:
    """Read model, data and plugins. Raises before anything runs for all that can be seen to be wrong."""
    for plugin in request.plugins:
        load_plugin(Path(plugin))
    task = load_task(request.task)
    with reading(ModelError):
        if request.parts.components:
            labels: tuple[str, ...] = ()
            artifact = ocr_artifact(request.parts, task.name)
        else:
            source = find_source(request.model)
            labels = tuple(request.task.labels or source.labels)
            artifact = make_artifact(source, request.adapters, task, labels, request.data, request.model_factory, request.parts.stream)
    splits = Splits(request.data, task.columns)
    if task.name.endswith("classification") and not labels:
        raise UsageError(
            "the model's config names no labels", where="[task] labels", fix='name them in output order: labels = ["negative", "positive"]'
        )
    if with_data:
        with reading(DataError):
            splits("test")  # needed, whatever else is given
            check_data(splits, task, artifact, tuple(split for split in ALL_DATA if splits.has(split)))
            splits.check_overlap()
    if is_onnx(artifact) and (unknown := unknown_here(artifact)):
        raise OperatorError(
            f"onnxruntime has no kernel for {', '.join(unknown)}",
            where=", ".join(str(artifact.components[role].main_file) for role in artifact.roles),
            fix="export the model with operators that it has",
        )
    return Prepared(request, task, splits, artifact, _teacher(request, task, labels))


def _teacher(request: Request, task: TaskSpec, labels: tuple[str, ...]) -> Artifact | None:
    """Raises `ModelError` for one that knows other labels than the model, or the same in another order."""
    if not request.teacher:
        return None
    with reading(ModelError):
        source = find_source(request.teacher)
        teacher = make_artifact(source, (), task, tuple(source.labels) or labels, request.data, None)
    if teacher.model.format != "torch":
        raise ModelError("the teacher is no torch model", where=request.teacher, fix="name a transformers folder")
    if labels and source.labels and tuple(source.labels) != labels:
        raise ModelError(
            f"teacher and model know different labels: {', '.join(source.labels)} against {', '.join(labels)}",
            where=request.teacher,
            fix="take a teacher that was trained for the same labels, in the same order",
        )
    return teacher


def check_data(splits: Splits, task: TaskSpec, artifact: Artifact, roles: Sequence[Split]) -> None:
    """Raises `DataError` for samples that the model does not take, and labels that it does not know."""
    for split in roles:
        samples = splits(split)
        where = str(getattr(splits.config, split) or f"{splits.config.file}, its {split} share of {len(samples)} samples")
        check_fit(samples, artifact.program["preprocess"]["kind"], sample_inputs(artifact), where)
        check_audio(artifact, samples)
        if task.check_labels and split != "unlabelled":
            task.check_labels(samples, artifact.program.get("labels", ()), where)


def recipe_for(prepared: Prepared, profile: Profile) -> Recipe:
    """The recipe a build will run: the user's or the planner's, with the project's and `--set` options over it."""
    named = prepared.request.recipe
    recipe = load_recipe(Path(named)) if named else _planned(prepared, profile)
    names = {step.name for step in recipe.steps}
    for name in prepared.request.settings:
        if name not in names:
            place = next((place for (owner, _), place in prepared.request.places.items() if owner == name), f"[passes.{name}]")
            raise UsageError(f'options are set for "{name}", which is not in the recipe', where=place, fix=nearest(name, names))
    steps = tuple(
        step.model_copy(update={"options": {**step.options, **prepared.request.settings.get(step.name, {})}}) for step in recipe.steps
    )
    tune = recipe.tune and prepared.request.tune and not any(name.startswith("quantize-") for name in prepared.request.settings)
    return recipe.model_copy(update={"steps": steps, "tune": tune})


def _planned(prepared: Prepared, profile: Profile) -> Recipe:
    request, splits = prepared.request, prepared.splits
    given = [split for split in SPLITS if splits.has(split)]
    return plan_components(prepared.artifact, profile, request.parts.compress, splits=given, budget=request.budget)


@dataclass(frozen=True, slots=True)
class Planned:
    """What will be built for one profile, and where it goes."""

    profile: Profile
    recipe: Recipe
    steps: list[tuple[Step, PassSpec, Any]]
    out: Path


def planned(request: Request, *, whole: bool = True) -> tuple[Prepared, list[Planned]]:
    """Read and check everything that can be seen to be wrong before anything runs.

    Without `whole`, samples are not read and the output folder may exist: enough for a plan.
    """
    profiles = [load_profile(name) for name in request.profiles]
    if not profiles:
        raise UsageError(
            "no profile is given", where="--profile", fix="name the device: --profile rpi4, or --profile host for this machine"
        )
    names = [profile.name for profile in profiles]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f'two profiles are named "{twice}", and each needs a folder of its own', where="--profile", fix="name each device once"
        )
    profiles = with_devices(profiles, request.devices)
    for profile in profiles:
        check_address(profile)
    outs = [request.out if len(profiles) == 1 else request.out / name for name in names]
    if whole:
        for out in outs:
            check_target(out, force=request.force, archive=request.archive)
    prepared = prepare(request, with_data=whole)
    builds = []
    for profile, out in zip(profiles, outs, strict=True):
        check_fits(prepared.artifact, profile, compressed=False)
        recipe = recipe_for(prepared, profile)
        steps = check_components(recipe, prepared.artifact, request.parts.compress, request.recipe, request.places)
        if (shorter := baseline_recipe(recipe)) or not is_onnx(prepared.artifact):
            _check_baseline(shorter, prepared, request)
        if whole:
            _check_splits(prepared.splits, steps)
        builds.append(Planned(profile, recipe, steps, out))
    return prepared, builds


def _check_splits(splits: Splits, steps: Sequence[tuple[Step, PassSpec, Any]]) -> None:
    """The data that passes ask for must be there before the first of them runs."""
    for step, spec, options in steps:
        for split in (*spec.data, *options.needed_data):
            if not splits.has(split):
                raise DataError(
                    f"{step.name} needs {split} data, and none is given",
                    where="[data]",
                    fix=f"name it with --{split} FILE, or give --data FILE for all four roles",
                )


def _check_baseline(shorter: Recipe | None, prepared: Prepared, request: Request) -> None:
    """The float32 model that the result is compared with must come out of the recipe too."""
    try:
        if shorter is None:
            raise UsageError("no step exports it")
        check_recipe(shorter, prepared.artifact)
    except UsageError as error:
        raise UsageError(
            f"the recipe gives no float32 model to compare with: {error.what}",
            where=request.recipe or "recipe",
            fix="use merge-lora and export-onnx, or register your own merging and exporting passes with baseline=True",
        ) from None
