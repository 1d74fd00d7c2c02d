"""Raw figures of a candidate from the profile's device, kept by content: the same files on the same device tell the same."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.artifact import digest
from edgepipe.components import is_composed
from edgepipe.emulation import emulated
from edgepipe.errors import AXIS_EXIT_CODES, DeviceError
from edgepipe.machine import machine_facts
from edgepipe.measure import Measurement, measure, retime
from edgepipe.measure_emulated import measure_emulated
from edgepipe.passes import source_of
from edgepipe.pipeline import library_version, sources_digest
from edgepipe.predicted import predict_latencies
from edgepipe.predicted_components import predict_components
from edgepipe.profile import needs_exact_sums
from edgepipe.resources import resource
from edgepipe.runners import runner_for
from edgepipe.store import cache_root, disk_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.artifact import Artifact
    from edgepipe.config import Task
    from edgepipe.pipeline import Setting
    from edgepipe.runners import Runner
    from edgepipe.tasks import TaskSpec


def measured_on(
    artifact: Artifact, baseline: Artifact, setting: Setting, task: TaskSpec, config: Task, target_samples: int | None
) -> Measurement:
    """Visit the device, or look up what the last visit gave. `target_samples` random samples run on an emulated device,
    None: all."""
    with closing(runner_for(setting.profile)) as runner:
        key = digest(
            {
                "measure": [artifact.digest, baseline.digest],
                "data": setting.splits.digest("test"),
                "task": config.model_dump(mode="json"),
                "runner": runner.name,
                "device": runner.device,
                "samples": target_samples if runner.emulates else None,
                "threads": runner.threads,
                "machine": machine_facts(),
                "versions": [library_version(name) for name in ("edgepipe", "onnxruntime", "numpy", "tokenizers", "pillow")],
                "sources": [_sources(), source_of(task.metric), source_of(type(runner))],
            }
        )
        progress, samples = setting.progress, setting.splits("test")
        progress.stage("validate", f"on {setting.profile.name} through {runner.name}")
        kept = setting.store.get_result(key)
        try:
            found = Measurement.from_json(kept) if kept else None
        except (KeyError, TypeError, AttributeError):  # damaged: taken again
            found = None
        if found is not None and not found.disturbed:
            outcome, found.proofs = "cached", _proofs(runner, found.proofs)
        else:
            if found is not None:  # outputs do not change with what else a machine does; times do
                found = retime(found, artifact, baseline, runner, samples, progress)
            elif runner.emulates:
                found = measure_emulated(
                    artifact, baseline, runner, task, samples, progress, target_samples, exact=needs_exact_sums(setting.profile)
                )
            else:
                found = measure(artifact, baseline, runner, task, samples, runner.threads, progress)
            found.proofs = _proofs(runner, found.proofs)
            outcome = f"{len(found.baseline_counts)} samples"
            setting.store.put_result(key, found.to_json())
        if runner.emulates:  # from counts that are kept by themselves: what is known of the core may have changed since
            _add_latency(found, artifact, baseline, setting)
    progress.finish("validate", outcome)
    return found


def _proofs(runner: Runner, noted: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """What figures are worth for the profile that asks, which need not be the one they were taken for; notes of then stay."""
    proofs = {axis: asdict(runner.proof(axis)) for axis in AXIS_EXIT_CODES}
    return {axis: {**proof, "note": proof["note"] or noted.get(axis, {}).get("note", "")} for axis, proof in proofs.items()}


def _add_latency(found: Measurement, candidate: Artifact, baseline: Artifact, setting: Setting) -> None:
    """Predict what cannot be timed; what stands in the way is told, and the axis stays unproven."""
    profile = setting.profile
    if profile.cpu.arch != "aarch64":
        found.unpredicted = f"latency is predicted for ARM cores only, and {profile.title} is {profile.cpu.arch}"
        return
    try:
        with disk_errors(cache_root()):
            predicting = predict_components if is_composed(candidate) else predict_latencies
            result = predicting(candidate, baseline, profile, emulated(profile), setting.splits("test"), setting.store, setting.progress)
    except DeviceError as error:
        found.unpredicted = ": ".join(text for text in (error.what, error.fix) if text)
        return
    found.predicted, found.scaling, found.costliest, found.roofline = result.entries, result.scaling, result.costliest, result.roofline
    found.unpredicted = ""


def _sources() -> str:
    here = Path(__file__).parent
    files = [
        *(here / f"{name}.py" for name in ("measure", "measure_emulated", "transfer", "probes", "gaps", "figures")),
        *sorted((here / "tasks").glob("*.py")),
        *sorted((here / "runners").glob("*.py")),
        *sorted(path for path in resource("devices").rglob("*") if path.suffix in (".py", ".js", ".c", ".toml")),
    ]
    return sources_digest(files)
