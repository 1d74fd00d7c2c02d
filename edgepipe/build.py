"""One build: model × profiles → bundles. What the command line, CI jobs and `edgepipe.compress` all call."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import digest
from edgepipe.bundle import check_target, write_bundle
from edgepipe.config import Budget, Data, Recipe, Task, load_recipe
from edgepipe.data import SPLITS, Splits
from edgepipe.errors import PassError, UsageError
from edgepipe.intake import find_source, make_artifact
from edgepipe.machine import machine_facts, usable_cores
from edgepipe.measure import Measurement, measure
from edgepipe.passes import load_plugin
from edgepipe.pipeline import Setting, baseline_recipe, check_recipe, library_version, run_recipe
from edgepipe.plan import plan
from edgepipe.profile import load_profile
from edgepipe.progress import Logged, Silent
from edgepipe.runners import runner_for
from edgepipe.store import Store
from edgepipe.tasks import load_task
from edgepipe.validate import judge
from edgepipe.worker import CountFlops
from edgepipe.worker_process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepipe.artifact import Artifact
    from edgepipe.passes import PassSpec
    from edgepipe.pipeline import PassRun
    from edgepipe.profile import Profile
    from edgepipe.progress import Progress
    from edgepipe.tasks import TaskSpec
    from edgepipe.validate import Result


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
    model_factory: str | None = None
    plugins: tuple[str, ...] = ()
    licences: dict[str, str] = field(default_factory=dict)
    out: Path = Path("build")
    force: bool = False
    strict: bool = False
    archive: bool = False


@dataclass(frozen=True, slots=True)
class CompressResult:
    """What one build for one profile gave."""

    profile: str
    verdict: str  # held | broken | unproven
    exit_code: int
    bundle: Path  # OUT, or OUT.rejected when a budget broke
    report: Path
    manifest: dict[str, Any]
    measurements: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request read and checked: nothing has run yet."""

    request: Request
    task: TaskSpec
    splits: Splits
    artifact: Artifact


def prepare(request: Request, *, with_data: bool = True) -> Prepared:
    """Read model, data and plugins. Raises before anything runs for all that can be seen to be wrong."""
    for plugin in request.plugins:
        load_plugin(Path(plugin))
    task = load_task(request.task)
    source = find_source(request.model)
    labels = request.task.labels or source.labels
    if task.name.endswith("classification") and not labels:
        raise UsageError("the model's config names no labels", where="[task] labels", fix='name them in output order: labels = ["negative", "positive"]')
    splits = Splits(request.data, task.columns)
    artifact = make_artifact(source, request.adapters, task, tuple(labels), request.data, request.model_factory)
    if with_data:
        splits("test")
        splits.check_overlap()
        for split in SPLITS:
            if task.check_labels and splits.has(split):
                task.check_labels(splits(split), labels, str(getattr(request.data, split) or request.data.file))
    return Prepared(request, task, splits, artifact)


def recipe_for(prepared: Prepared, profile: Profile) -> Recipe:
    """The recipe a build will run: the user's or the planner's, with the project's and `--set` options over it."""
    named = prepared.request.recipe
    recipe = load_recipe(Path(named)) if named else plan(prepared.artifact, profile)
    names = {step.name for step in recipe.steps}
    for name in prepared.request.settings:
        if name not in names:
            raise UsageError(f'options are set for "{name}", which is not in the recipe', where="--set or [passes]", fix=f"the recipe has {', '.join(sorted(names))}")
    steps = tuple(
        step.model_copy(update={"options": {**step.options, **prepared.request.settings.get(step.name, {})}}) for step in recipe.steps
    )
    return recipe.model_copy(update={"steps": steps})


def compress(request: Request, progress: Progress | None = None) -> list[CompressResult]:
    """Build, validate and hand over one bundle a profile. Raises an `EdgepipeError`; a broken budget is no error but
    a verdict, and its bundle goes to `OUT.rejected`."""
    progress = progress or Silent()
    profiles = [load_profile(name) for name in request.profiles]
    if not profiles:
        raise UsageError("no profile is given", where="--profile", fix="name the device: --profile rpi4, or --profile host for this machine")
    outs = [request.out if len(profiles) == 1 else request.out / profile.name for profile in profiles]
    for out in outs:
        check_target(out, force=request.force)
    prepared = prepare(request)
    recipes = [recipe_for(prepared, profile) for profile in profiles]
    steps = [check_recipe(recipe, prepared.artifact, request.recipe or "recipe") for recipe in recipes]
    store = Store.default()
    results = []
    with store.workdir() as workdir, _kept_log(store, workdir / "run.log") as log:
        display = Logged(progress, log)
        with WorkerProcess(log, display) as worker:
            start = store.put(prepared.artifact)
            for profile, recipe, planned, out in zip(profiles, recipes, steps, outs, strict=True):
                setting = Setting(store, worker, display, profile, request.data, prepared.splits, usable_cores(), request.plugins)
                results.append(_build(prepared, recipe, planned, start, setting, out, log))
    return results


@contextmanager
def _kept_log(store: Store, log: Path) -> Iterator[Path]:
    """The run log, kept when a pass fails: it has the traceback its author wants."""
    try:
        yield log
    except PassError as error:
        if log.is_file():
            kept = store.keep_log(log)
            error.fix = (error.fix or "the run log tells more").replace("the run log", str(kept))
        raise


def _build(
    prepared: Prepared, recipe: Recipe, planned: list[tuple[Any, PassSpec, Any]], start: Artifact, setting: Setting, out: Path, log: Path
) -> CompressResult:
    artifact, runs = run_recipe(planned, start, setting)
    baseline = baseline_of(recipe, start, setting)
    measured = measured_on(artifact, baseline, setting, prepared.task)
    results = judge(measured, artifact, baseline, setting.profile, prepared.task, prepared.request.budget)
    return _hand_over(prepared, artifact, baseline, recipe, runs, results, measured, setting, out, log)


def baseline_of(recipe: Recipe, start: Artifact, setting: Setting) -> Artifact:
    """The uncompressed float32 model on the same runtime; mostly the recipe's own first steps, so mostly cached."""
    shorter = baseline_recipe(recipe)
    return run_recipe(check_recipe(shorter, start), start, setting, label="baseline ")[0] if shorter else start


def measured_on(artifact: Artifact, baseline: Artifact, setting: Setting, task: TaskSpec) -> Measurement:
    """Raw figures from the profile's runner; kept by content, since the same files on the same machine tell the same."""
    runner = runner_for(setting.profile)
    threads = min(setting.profile.runtime.threads, usable_cores())
    key = digest(
        {
            "measure": [artifact.digest, baseline.digest], "data": setting.splits.digest("test"), "task": task.name, "runner": runner.name,
            "threads": threads, "machine": machine_facts(), "versions": [library_version(name) for name in ("edgepipe", "onnxruntime", "numpy", "tokenizers")],
            "sources": _validator_sources(),
        }
    )  # fmt: skip
    setting.progress.stage("validate", f"on {setting.profile.name} through {runner.name}")
    kept = setting.store.get_result(key)
    if kept is None:
        measured = measure(artifact, baseline, runner, task, setting.splits("test"), threads, setting.progress)
        setting.store.put_result(key, measured.to_json())
        setting.progress.finish("validate", f"{len(measured.baseline_counts)} samples")
        return measured
    setting.progress.finish("validate", "cached")
    return Measurement.from_json(kept)


def _validator_sources() -> str:
    from edgepipe.artifact import sha256_file
    from edgepipe.resources import resource

    here = Path(__file__).parent
    files = [here / "measure.py", *sorted((here / "tasks").glob("*.py")), *sorted((here / "runners").glob("*.py")), *sorted(resource("devices").glob("*.py"))]
    return digest([sha256_file(path) for path in files])


def _flops(artifact: Artifact, setting: Setting) -> dict[str, Any]:
    key = digest({"flops": artifact.digest, "version": library_version("edgepipe")})
    kept = setting.store.get_result(key)
    if kept is None:
        given = artifact.program["preprocess"]["kind"] == "tensors"
        sample = setting.splits("test")[0] if given else None
        kept = setting.worker.ask(CountFlops(artifact, setting.threads, sample), "validate").value
        setting.store.put_result(key, kept)
    return dict(kept)


def _hand_over(
    prepared: Prepared, artifact: Artifact, baseline: Artifact, recipe: Recipe, runs: list[PassRun], results: list[Result],
    measured: Measurement, setting: Setting, out: Path, log: Path,
) -> CompressResult:  # fmt: skip
    from edgepipe.manifest import make_manifest
    from edgepipe.report.html import render_html
    from edgepipe.report.model_card import render_model_card

    request = prepared.request
    flops = {"model": _flops(artifact, setting), "baseline": _flops(baseline, setting)}
    context = {
        "source": {"model": request.name or Path(request.model).name, "adapters": [Path(adapter).name for adapter in request.adapters], "task": prepared.task.name,
                   "licences": request.licences, "rows": {split: len(prepared.splits(split)) for split in SPLITS if prepared.splits.has(split)}},
        "baseline_model": {"artifact": baseline.digest},
        "budget": request.budget.model_dump(),
    }  # fmt: skip
    manifest = make_manifest(artifact, baseline, setting.profile, recipe, runs, results, flops, strict=request.strict, context=context)
    measurements = measured.to_json()
    texts = {
        "manifest.json": json.dumps(manifest, indent=1, ensure_ascii=False) + "\n",
        "measurements.json": json.dumps(measurements, ensure_ascii=False) + "\n",
        "model_card.md": render_model_card(manifest),
        "report.html": render_html([manifest], [measurements]),
        "run.log": log.read_text(encoding="utf-8", errors="replace") if log.exists() else "",
    }
    bundle = write_bundle(artifact, out, texts, broken=manifest["verdict"] == "broken", archive=request.archive)
    return CompressResult(setting.profile.name, manifest["verdict"], manifest["exit_code"], bundle, bundle / "report.html", manifest, measurements)
