"""The examples' models as the benchmarks take them: built for a profile as `edgepipe compress` would, and one model of each
set apart where a program has several."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo import ROOT

from edgepipe.build import baseline_of
from edgepipe.component_recipes import check_components
from edgepipe.component_runs import component_settings
from edgepipe.components import is_composed, put_back, view
from edgepipe.machine import usable_cores
from edgepipe.pipeline import Setting
from edgepipe.probes import single_runs
from edgepipe.profile import load_profile
from edgepipe.progress import Silent
from edgepipe.project import make_request
from edgepipe.request import prepare, recipe_for
from edgepipe.store import Store, cache_root
from edgepipe.tuned_runs import run_tuned
from edgepipe.tuning.site_costs import typical_feeds
from edgepipe.worker_process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from edgepipe.artifact import Artifact, Component
    from edgepipe.request import Prepared

    Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model of an example. `role`: of a program's components the one that is compressed; `samples`: of the test data;
    `smaller`: how many times the build is asked to be, else what the example's project says."""

    example: str
    samples: int
    role: str = "model"
    model: str | None = None
    smaller: float | None = None


SUBJECTS = {
    "OCR detector": Subject("ocr", 70, "detector", smaller=3.5),
    "OCR classifier": Subject("ocr", 70, "classifier"),
    "OCR recogniser": Subject("ocr", 70, "recogniser", smaller=3.5),
    "Silero VAD": Subject("voice_activity", 20),
    "Fashion-MNIST residual": Subject("fashion", 2000, model="residual"),
    "Fashion-MNIST depthwise": Subject("fashion", 2000, model="depthwise"),
}


@dataclass(frozen=True, slots=True)
class Built:
    """A subject before and after. `baseline` and `compressed` are whole programs; `before` and `after` their one model alone,
    which takes `typical` inputs and was calibrated with `calibration`."""

    prepared: Prepared
    role: str
    baseline: Artifact
    compressed: Artifact
    before: Artifact
    after: Artifact
    calibration: list[Feeds]
    typical: Feeds
    tuning: dict[str, Any]

    def with_model(self, component: Component, store: Store) -> tuple[Artifact, Artifact]:
        """(whole program, model alone) with another file in the model's place."""
        alone = store.put(self.before.with_component("model", component))
        return (store.put(put_back(self.baseline, self.role, alone)) if is_composed(self.baseline) else alone), alone


def built(subject: Subject, profile_name: str, *, threads: int | None = None) -> Built:
    """What `edgepipe compress --profile …` gives for the subject, before anything is validated."""
    profile, store = load_profile(profile_name), Store.default()
    prepared = asked(subject, profile_name)
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        setting = Setting(store, worker, Silent(), profile, prepared.request.data, prepared.splits, threads or usable_cores())
        start = store.put(prepared.artifact)
        recipe = recipe_for(prepared, profile)
        steps = check_components(recipe, start, prepared.request.parts.compress)
        baseline, role = baseline_of(recipe, start, setting), subject.role
        composed = is_composed(baseline)

        def alone(whole: Artifact) -> Artifact:
            return store.put(view(whole, role)) if composed else whole

        with component_settings(steps, baseline, setting) if composed else nullcontext({role: setting}) as settings:
            before = alone(baseline)
            calibration = list(single_runs(before, settings[role].splits("calibration")))
            typical = typical_feeds(before, settings[role])
        done = run_tuned(steps, start, baseline, setting, prepared.task, prepared.request.budget)
    return Built(prepared, role, baseline, done.artifact, before, alone(done.artifact), calibration, typical, done.tuning)


def asked(subject: Subject, profile_name: str) -> Prepared:
    """The example's own project; of several components, one is compressed."""
    model = str(cache_root() / "downloads" / subject.example / subject.model / "model.onnx") if subject.model else None
    project = str(ROOT / "examples" / subject.example / "edgepipe.toml")
    budget = [f"max_size_ratio={1 / subject.smaller:.4f}"] if subject.smaller else []
    request = make_request(project=project, model=model, profiles=[profile_name], budget=budget)
    if subject.role != "model":
        request = replace(request, parts=replace(request.parts, compress=(subject.role,)))
    return prepare(request)


def taken(model: Artifact, feeds: Feeds) -> dict[str, Any]:
    """Of the inputs those that the model takes: some became constants."""
    return {entry["name"]: feeds[entry["name"]] for entry in model.model.signature["inputs"]}
