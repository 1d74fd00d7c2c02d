"""One build: model × profiles → bundles. What the command line, CI jobs and `edgepipe.compress` all call."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import digest
from edgepipe.browser_page import browser_files, has_page
from edgepipe.bundle import write_bundle
from edgepipe.component_runs import count_component_flops
from edgepipe.components import is_composed
from edgepipe.config import dump_recipe
from edgepipe.data import ALL_DATA
from edgepipe.errors import EdgepipeError, Interrupted, ModelError, PassError, UsageError
from edgepipe.figures import measured_on
from edgepipe.machine import usable_cores
from edgepipe.memory_fit import check_fits
from edgepipe.mobile import accelerators_of
from edgepipe.ort_format import ort_files
from edgepipe.pipeline import Setting, library_version, run_recipe
from edgepipe.progress import Logged, Silent
from edgepipe.recipe_check import baseline_recipe, check_recipe
from edgepipe.request import planned
from edgepipe.store import Store
from edgepipe.training_time import minutes_of_training
from edgepipe.tuned_runs import run_tuned, run_untuned
from edgepipe.verdict import judge
from edgepipe.worker import CountFlops
from edgepipe.worker_process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgepipe.artifact import Artifact
    from edgepipe.config import Recipe
    from edgepipe.measure import Measurement
    from edgepipe.passes import PassSpec
    from edgepipe.progress import Progress
    from edgepipe.request import Planned, Prepared, Request
    from edgepipe.result import Result
    from edgepipe.tuned_runs import TunedRun


LONG_MIN = 5.0  # of training, from which on a person is asked


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


def compress(request: Request, progress: Progress | None = None, agreed: Callable[[float], bool] | None = None) -> list[CompressResult]:
    """Build, validate and hand over one bundle a profile. Raises an `EdgepipeError`; a broken budget is no error but
    a verdict, and its bundle goes to `OUT.rejected`. `agreed` is asked before training of so many minutes (`LONG_MIN` and more).
    """
    deadline = time.time() + 60 * request.time_limit if request.time_limit else None
    progress = progress or Silent()
    prepared, builds = planned(request)
    _check_installed([spec for build in builds for _, spec, _ in build.steps])
    store = Store.default()
    results = []
    with store.workdir() as workdir, _kept_log(store, workdir / "run.log") as log:
        display = Logged(progress, log)
        start = store.put(prepared.artifact)
        teacher = store.put(prepared.teacher) if prepared.teacher else None
        with _own_paths(start, prepared.artifact), WorkerProcess(log, display) as worker:
            for build in builds:
                setting = Setting(
                    store, worker, display, build.profile, request.data, prepared.splits, usable_cores(), request.plugins, teacher, deadline
                )
                _tell_time(build, start, setting, agreed)
                results.append(_build(prepared, build, start, setting, log))
    return results


def _tell_time(build: Planned, start: Artifact, setting: Setting, agreed: Callable[[float], bool] | None) -> None:
    """Say how long training will take before it starts. Raises `Interrupted` when that is not wanted."""
    if not any("train" in spec.data for _, spec, _ in build.steps):
        return
    minutes = minutes_of_training(build.steps, start, setting)
    if not minutes:
        return
    setting.progress.stage("train", f"up to about {minutes:.0f} min on this machine")
    setting.progress.finish("train", f"will take up to about {max(1, round(minutes))} min on this machine")
    if minutes >= LONG_MIN and agreed and not agreed(minutes):
        raise Interrupted("nothing was trained; --time-limit MINUTES ends training sooner, with the best it has by then")


def _check_installed(specs: list[PassSpec]) -> None:
    """The base install has no torch: say so before anything runs, not from inside a pass."""
    optional = {"optimum", "optimum-onnx", "adapters", "bitsandbytes"}  # passes do without, or say what they are for
    for spec in specs:
        for name in spec.libraries:
            if name not in optional and find_spec(name) is None:
                raise UsageError(
                    f"{spec.name} needs {name}, which is not installed",
                    where="environment",
                    fix="pip install 'edgepipe[torch]'; the README tells how to get torch's CPU build",
                )


@contextmanager
def _own_paths(stored: Artifact, given: Artifact) -> Iterator[None]:
    """Errors name the user's folders, not the store's copies of them."""
    try:
        yield
    except EdgepipeError as error:
        for role, component in given.components.items():
            kept, own = str(stored.components[role].folder), str(component.folder)
            error.what, error.where = error.what.replace(kept, own), error.where and error.where.replace(kept, own)
        raise


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


def _build(prepared: Prepared, build: Planned, start: Artifact, setting: Setting, log: Path) -> CompressResult:
    if build.recipe.tune:
        baseline = baseline_of(build.recipe, start, setting)
        done = run_tuned(build.steps, start, baseline, setting, prepared.task, prepared.request.budget)
    else:
        done = run_untuned(build.steps, start, setting)
        baseline = baseline_of(build.recipe, start, setting)
    artifact = done.artifact
    check_fits(artifact, setting.profile)
    measured = measured_on(artifact, baseline, setting, prepared.task, prepared.request.task, prepared.request.target_samples)
    results = judge(measured, artifact, baseline, setting.profile, prepared.task, prepared.request.budget)
    return _hand_over(prepared, done, baseline, build.recipe, results, measured, setting, build.out, log)


def baseline_of(recipe: Recipe, start: Artifact, setting: Setting) -> Artifact:
    """The uncompressed float32 model on the same runtime; mostly the recipe's own first steps, so mostly cached."""
    shorter = baseline_recipe(recipe)
    return run_recipe(check_recipe(shorter, start), start, setting, label="baseline ")[0] if shorter else start


def source_digest(artifact: Artifact) -> str:
    """Over the files of the model and its adapters as the user gave them: what a bundle was made from."""
    return digest({role: [ref.to_json() for ref in component.files] for role, component in artifact.components.items()})


def _flops(artifact: Artifact, setting: Setting) -> dict[str, Any]:
    key = digest({"flops": artifact.digest, "version": library_version("edgepipe")})
    kept = setting.store.get_result(key)
    if kept is None and is_composed(artifact):
        kept = count_component_flops(artifact, setting)
        setting.store.put_result(key, kept)
    if kept is None:
        given = artifact.program["preprocess"]["kind"] == "tensors"
        sample = setting.splits("test")[0] if given else None
        kept = setting.worker.ask(CountFlops(artifact, setting.threads, sample), "validate").value
        setting.store.put_result(key, kept)
    return dict(kept)


def _phone_files(artifact: Artifact, setting: Setting, workdir: Path) -> dict[str, Path]:
    """The model in the runtime's own format, where the device is a phone and the runtime can write it."""
    try:
        return ort_files(artifact, workdir) if accelerators_of(setting.profile) else {}
    except ModelError as error:  # the bundle is whole without it
        setting.progress.update("validate", f"no .ort file in the bundle: {error.what}")
        return {}


def _hand_over(
    prepared: Prepared,
    done: TunedRun,
    baseline: Artifact,
    recipe: Recipe,
    results: list[Result],
    measured: Measurement,
    setting: Setting,
    out: Path,
    log: Path,
) -> CompressResult:
    from edgepipe.manifest import make_manifest
    from edgepipe.report.html import render_html
    from edgepipe.report.model_card import render_model_card

    request, artifact = prepared.request, done.artifact
    flops = {"model": _flops(artifact, setting), "baseline": _flops(baseline, setting)}
    context = {
        "source": {
            "model": request.name or Path(request.model).name,
            "adapters": [Path(adapter).name for adapter in request.adapters],
            "task": prepared.task.name,
            "sha256": source_digest(prepared.artifact),
            "licences": request.licences,
            "rows": {split: len(prepared.splits(split)) for split in ALL_DATA if prepared.splits.has(split)},
        },
        "baseline_model": {"artifact": baseline.digest},
        "budget": request.budget.model_dump(),
        **({"tuning": done.tuning} if done.tuning else {}),
    }
    manifest = make_manifest(artifact, baseline, setting.profile, recipe, done.runs, results, flops, strict=request.strict, context=context)
    measurements = measured.to_json()
    texts = {
        "manifest.json": json.dumps(manifest, indent=1, ensure_ascii=False) + "\n",
        "measurements.json": json.dumps(measurements, ensure_ascii=False) + "\n",
        **({"recipe.toml": dump_recipe(recipe.model_copy(update={"steps": done.steps, "tune": False}))} if done.steps else {}),
        "model_card.md": render_model_card(manifest),
        "report.html": render_html([manifest], [measurements]),
        "run.log": log.read_text(encoding="utf-8", errors="replace") if log.exists() else "",
    }
    with setting.store.workdir() as workdir:
        extra = _phone_files(artifact, setting, workdir)
        extra |= browser_files() if has_page(setting.profile) else {}
        bundle = write_bundle(
            artifact,
            out,
            texts,
            broken=manifest["verdict"] == "broken",
            archive=request.archive,
            threads=measured.threads,
            extra=extra,
        )
    return CompressResult(
        setting.profile.name, manifest["verdict"], manifest["exit_code"], bundle, bundle / "report.html", manifest, measurements
    )
