"""Runs a recipe: every pass in the worker, its result cached by content, so that a killed run resumes."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Artifact, digest, sha256_file
from edgepipe.cost.table import load_table
from edgepipe.errors import ModelError, PassError
from edgepipe.machine import machine_facts
from edgepipe.profile import HOST, needs_exact_sums
from edgepipe.resources import resource
from edgepipe.store import cache_root, write_atomic
from edgepipe.worker import MeasureFusions, run_job
from edgepipe.worker_context import Job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.config import Data, Step
    from edgepipe.data import Splits
    from edgepipe.passes import PassSpec
    from edgepipe.profile import Profile
    from edgepipe.progress import Progress
    from edgepipe.store import Store
    from edgepipe.worker_process import WorkerProcess

# What several built-in passes share: a change in one of these changes what they give.
SHARED_SOURCES = (
    "loader.py",
    "model_factory.py",
    "adapters.py",
    "structure.py",
    "factorized.py",
    "additions.py",
    "bottleneck.py",
    "prefix.py",
    "saving.py",
    "layers.py",
    "channels.py",
    "linear_layers.py",
    "low_rank.py",
    "width.py",
    "weights.py",
    "checks.py",
    "probes.py",
    "sentence_encoder.py",
    "worker.py",
    "worker_context.py",
    "data.py",
    "readers.py",
    "npz.py",
    "dataset_folder.py",
    "onnx_file.py",
    "segments.py",
    "preprocess.py",
    "tasks/classification.py",
)


@dataclass(frozen=True, slots=True)
class PassRun:
    """What one pass did, for manifest and report."""

    name: str
    on: str
    options: dict[str, Any]
    reason: str
    seconds: float
    peak_rss_bytes: int
    size_bytes_before: int
    size_bytes_after: int
    cached: bool
    checks: list[dict[str, Any]]
    artifact: str
    parameters: int
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Setting:
    """What the passes of one build may draw on."""

    store: Store
    worker: WorkerProcess
    progress: Progress
    profile: Profile
    data: Data
    splits: Splits
    threads: int
    plugins: tuple[str, ...] = ()
    teacher: Artifact | None = None  # that the user named
    deadline: float | None = None  # of the build, as `time.time` counts


def run_recipe(
    steps: Sequence[tuple[Step, PassSpec, Any]], start: Artifact, setting: Setting, *, label: str = ""
) -> tuple[Artifact, list[PassRun]]:
    """Run the steps from `start` (already in the store); each result is kept before the next begins.

    `label` names what is run, where it is not the recipe itself.
    """
    artifact, uncompressed, runs = start, start, []
    for step, spec, options in steps:
        teacher = (setting.teacher or uncompressed) if spec.teacher else None
        artifact, run = _run_step(step, spec, options, artifact, setting, label, teacher)
        if spec.baseline and artifact.model.format == "torch":
            uncompressed = artifact
        runs.append(run)
    return artifact, runs


def _run_step(
    step: Step, spec: PassSpec, options: Any, before: Artifact, setting: Setting, label: str, teacher: Artifact | None
) -> tuple[Artifact, PassRun]:
    setting.progress.stage(label + step.name, step.reason)
    costs = {name: cost for name, cost in fusion_costs(setting).items() if name in spec.costs} if spec.costs else {}
    facts = {name: setting.profile.facts().get(name) for name in spec.facts}
    key = cache_key(spec, options, before, setting, facts, costs, teacher)
    kept = setting.store.get_result(key)
    after = setting.store.get(kept["artifact"]) if kept else None
    if kept is None or after is None:
        with setting.store.workdir() as workdir:
            job = job_of(
                step, options, before, setting, workdir, teacher, facts=facts, costs=costs, checkpoints=setting.store.unfinished(key)
            )
            try:
                done = setting.worker.ask(job, step.name) if _known_to_worker(spec) else run_job(job, io.BytesIO())
            except ModelError as error:
                if str(workdir) not in (error.where or ""):
                    raise
                what = f"it wrote a broken model: {error.what}"
                raise PassError(what, where=f"pass {step.name}", fix="leave the pass out of the recipe, and tell its author") from None
            after = setting.store.put(done.value)
        kept = {"artifact": after.digest, "seconds": round(done.seconds, 3), "peak_rss_bytes": done.peak_rss_bytes, "checks": done.checks}
        kept["figures"] = done.figures | ({"incomplete": done.incomplete} if done.incomplete else {})
        if not done.incomplete:  # else the next run, which may have more time, goes on from its checkpoints
            setting.store.put_result(key, kept)
            setting.store.finished(key)
        cached = False
    else:
        cached = True
    run = PassRun(
        step.name,
        next(iter(spec.gives)),
        options.model_dump(mode="json"),
        step.reason,
        kept["seconds"],
        kept["peak_rss_bytes"],
        before.model.size_bytes,
        after.model.size_bytes,
        cached,
        kept["checks"],
        after.digest,
        after.model.parameters,
        kept.get("figures", {}),
    )
    if not (cached and label):  # the baseline is mostly the recipe's own first steps, told of already
        setting.progress.finish(label + step.name, "cached" if cached else f"{run.seconds:.1f} s")
    return after, run


def job_of(
    step: Step,
    options: Any,
    artifact: Artifact,
    setting: Setting,
    workdir: Path,
    teacher: Artifact | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    costs: Mapping[str, float] | None = None,
    checkpoints: Path | None = None,
) -> Job:
    """What a worker needs to run one step."""
    return Job(
        step.name,
        options.model_dump(mode="json"),
        artifact,
        workdir,
        setting.data,
        setting.splits.columns,
        dict(facts or {}),
        dict(costs or {}),
        setting.threads,
        setting.plugins,
        teacher,
        checkpoints,
        setting.deadline,
        needs_exact_sums(setting.profile),
    )


def _known_to_worker(spec: PassSpec) -> bool:
    """Whether a worker can find the pass: built in, of a plugin file or an installed package. One that a script
    registers itself runs in the script's process: a worker could import it only by running the script again."""
    home = spec.function.__module__
    return home.startswith(("edgepipe.", "edgepipe_plugin_")) or spec.name in {
        point.name for point in entry_points(group="edgepipe.passes")
    }


def cache_key(
    spec: PassSpec,
    options: Any,
    before: Artifact,
    setting: Setting,
    facts: Mapping[str, Any],
    costs: Mapping[str, float],
    teacher: Artifact | None = None,
) -> str:
    """Full sha256 over everything that decides what a pass gives."""
    return digest(
        {
            "input": before.digest,
            "pass": spec.name,
            "source": hashlib.sha256(spec.source.encode()).hexdigest(),
            "shared": shared_digest(),
            "options": options.model_dump(mode="json"),
            "data": {
                split: setting.splits.digest(split)
                for split in (*spec.data, *(each for each in spec.optional_data if setting.splits.has(each)))
            },
            **({"teacher": teacher.digest} if teacher else {}),
            "probes": setting.splits.digest(seen) if (seen := setting.splits.to_look_at) else None,
            "facts": dict(facts),
            "costs": dict(costs),
            "threads": setting.threads,
            "cpu": machine_facts()["flags"],  # whose kernels the checks ran on
            "exact": "onnx" in spec.gives.values() and needs_exact_sums(setting.profile),
            "versions": {name: library_version(name) for name in (*spec.libraries, "edgepipe", "numpy")},
        }
    )


@cache
def shared_digest() -> str:
    here = Path(__file__).parent
    files = [*(here / name for name in SHARED_SOURCES), resource("devices") / "driver.py"]
    files += [
        path
        for folder in ("importance", "quantization", "rewrites", "sparsity", "training", "vocabulary")
        for path in sorted((here / folder).rglob("*.py"))
    ]
    return sources_digest(files)


def sources_digest(files: Sequence[Path]) -> str:
    return digest([sha256_file(path) for path in files])


@cache
def library_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def fusion_costs(setting: Setting) -> dict[str, float]:
    """Costs of fused operators: the device's own where its table of kernel costs has them, else measured on this machine,
    once per machine kind and runtime, then kept."""
    if setting.profile.name != HOST and (table := load_table(setting.profile)):
        return table.fusions
    kind = {key: value for key, value in machine_facts().items() if key != "ram_bytes"}
    name = digest([kind, library_version("onnxruntime"), setting.threads])[:16]
    path = cache_root() / "devices" / f"host-{name}" / "fusions.json"
    try:
        stored: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["ratios"]
        return stored
    except (OSError, ValueError, KeyError):
        pass
    setting.progress.update("optimize-graph", "measuring fusions on this machine")
    ratios: dict[str, float] = setting.worker.ask(MeasureFusions(setting.threads), "optimize-graph").value
    write_atomic(path, json.dumps({"machine": kind, "ratios": ratios}, indent=1).encode())
    return ratios
