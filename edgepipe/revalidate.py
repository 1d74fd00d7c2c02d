"""Judges a finished bundle again: on its own profile or others, with its own budget or another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.build import CompressResult, baseline_of, source_digest
from edgepipe.bundle import read_bundle
from edgepipe.config import Budget, with_budget
from edgepipe.data import Splits
from edgepipe.errors import DataError, UsageError, reading
from edgepipe.figures import measured_on
from edgepipe.machine import machine_facts, usable_cores
from edgepipe.manifest import created, result_rows, versions
from edgepipe.memory_fit import check_fits
from edgepipe.pipeline import Setting
from edgepipe.profile import HOST, Profile, load_profile, with_devices
from edgepipe.progress import Silent
from edgepipe.project import make_request
from edgepipe.request import TARGET_SAMPLES, check_data, prepare, recipe_for
from edgepipe.result import exit_code, overall
from edgepipe.store import Store
from edgepipe.tasks import load_task
from edgepipe.toml import parse
from edgepipe.verdict import judge
from edgepipe.worker_process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.progress import Progress


def revalidate(
    folder: Path,
    profiles: Sequence[str],
    *,
    test: str | None = None,
    budget: Sequence[str] = (),
    project: str | None = None,
    strict: bool = False,
    devices: Sequence[str] = (),
    target_samples: int | None = TARGET_SAMPLES,
    progress: Progress | None = None,
) -> list[CompressResult]:
    """One result a profile (default: the bundle's own). Raises `ModelError` for a bundle that was tampered with."""
    progress = progress or Silent()
    artifact, manifest = read_bundle(folder)
    named = with_devices([load_profile(name) for name in profiles] or [_own_profile(manifest, folder)], devices)
    limits = with_budget(parse(Budget, manifest.get("budget", {}), source=str(folder / "manifest.json")), tuple(budget))
    request = make_request(task=artifact.program["task"], project=project, data={"test": test}, need_model=False)
    task = load_task(request.task)
    splits = Splits(request.data, task.columns)
    with reading(DataError):
        check_data(splits, task, artifact, ("test",))
    store = Store.default()
    results = []
    with store.workdir() as workdir, WorkerProcess(workdir / "run.log", progress) as worker:
        kept = store.put(artifact)
        for profile in named:
            check_fits(artifact, profile)
            setting = Setting(store, worker, progress, profile, request.data, splits, usable_cores(), request.plugins)
            baseline = _baseline(manifest, store, setting, request)
            measured = measured_on(kept, baseline, setting, task, request.task, target_samples)
            rows = judge(measured, kept, baseline, profile, task, limits)
            fresh = {
                **manifest,
                "profile": profile.name,
                "profile_title": profile.title,
                "device": profile.model_dump(mode="json", exclude={"reach": {"address"}}),
                "created": created(),
                "results": result_rows(rows, profile, kept),
                "verdict": overall(rows),
                "exit_code": exit_code(rows, strict=strict),
                "budget": limits.model_dump(),
                "machine": machine_facts(),
                "versions": versions(),
            }
            results.append(
                CompressResult(
                    profile.name, fresh["verdict"], fresh["exit_code"], folder, folder / "report.html", fresh, measured.to_json()
                )
            )
    return results


def _own_profile(manifest: dict[str, Any], folder: Path) -> Profile:
    """The device a bundle was built for, from the bundle itself: its profile may have been a file of the user's."""
    if manifest["profile"] == HOST:
        return load_profile(HOST)
    return parse(Profile, manifest.get("device", {}), source=str(folder / "manifest.json"))


def _baseline(manifest: dict[str, Any], store: Store, setting: Setting, request: Any) -> Artifact:
    """The float32 model the bundle was compared with: from the store, or built again from the project's model."""
    kept = store.get(manifest.get("baseline_model", {}).get("artifact", ""))
    if kept is not None:
        return kept
    source = manifest.get("source", {})
    prepared = prepare(request, with_data=False) if request.model or request.parts.components else None
    if prepared is None or source.get("sha256", source_digest(prepared.artifact)) != source_digest(prepared.artifact):
        what = "the float32 model this bundle is compared with is no longer in the store" + (
            ", and the project's model is another" if prepared else ""
        )
        fix = "run where the edgepipe.toml it was built with is, so that it can be built again; a build from flags alone must be repeated"
        raise UsageError(what, where=f'source model "{source.get("model")}"', fix=fix)
    built = baseline_of(recipe_for(prepared, setting.profile), store.put(prepared.artifact), setting)
    if built.digest != manifest.get("baseline_model", {}).get("artifact", built.digest):
        raise UsageError(
            "the float32 model could be built again, but it is another than the bundle was compared with",
            where=f'source model "{source.get("model")}"',
            fix="the recipe, its options or the versions of the libraries have changed: build the bundle again",
        )
    return built
