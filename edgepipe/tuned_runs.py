"""Runs a recipe whose quantization is chosen by measurement: the steps before it, what `tune` chose, the steps after.

Where a program has several components, each is tuned by itself and judged as part of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepipe.component_runs import component_settings, run_components, steps_on
from edgepipe.components import is_composed, put_back, view
from edgepipe.pipeline import run_recipe
from edgepipe.tune import tune
from edgepipe.tune_pruning import with_widths
from edgepipe.tuning.evaluation import dev_points
from edgepipe.worker_context import DECIDED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.config import Budget, Step
    from edgepipe.passes import PassSpec
    from edgepipe.pipeline import PassRun, Setting
    from edgepipe.tasks import TaskSpec

    Steps = Sequence[tuple[Step, PassSpec, Any]]


@dataclass(frozen=True, slots=True)
class TunedRun:
    """What a build gives: the artifact, what each pass did, the recipe as it was run, and the figures behind its choices."""

    artifact: Artifact
    runs: list[PassRun]
    steps: tuple[Step, ...]
    tuning: dict[str, Any]


def run_untuned(steps: Steps, start: Artifact, setting: Setting) -> TunedRun:
    artifact, runs = run_components(steps, start, setting)
    return TunedRun(artifact, runs, tuple(step for step, _, _ in steps) if is_composed(start) else _pinned(steps, runs), {})


def _pinned(steps: Steps, runs: Sequence[PassRun]) -> tuple[Step, ...]:
    """The steps with the options that their passes decided by measuring, which another day may decide otherwise."""
    decided = (run.figures.get(DECIDED, {}) for run in runs)
    return tuple(step.model_copy(update={"options": {**step.options, **own}}) for (step, _, _), own in zip(steps, decided, strict=True))


def run_tuned(steps: Steps, start: Artifact, baseline: Artifact, setting: Setting, task: TaskSpec, budget: Budget) -> TunedRun:
    """`baseline` is the uncompressed model, which gives the sizes and points that budgets compare with."""
    share = min(budget.max_size_ratio, (budget.max_size_bytes or float("inf")) / size_of(baseline))
    if not is_composed(start):
        limit = share * size_of(baseline)
        steps, widths = with_widths(steps, start, baseline, setting, budget, limit)
        done = _one(steps, start, setting, budget, limit, _dev(lambda done: done, baseline, setting, task))
        return replace(done, tuning={**done.tuning, **({"pruning": widths} if widths else {})})
    whole, runs, used, tuning = start, [], [], {}
    with component_settings(steps, start, setting) as settings:
        for role, own in settings.items():
            now = whole

            def judged(done: Artifact, role: str = role, now: Artifact = now) -> Artifact:
                return setting.store.put(put_back(now, role, done))

            alone = setting.store.put(view(whole, role))
            limit = share * baseline.components[role].size_bytes
            found = _one(steps_on(role, steps), alone, own, budget, limit, _dev(judged, baseline, setting, task))
            whole = judged(found.artifact)
            runs += [replace(run, on=role) for run in found.runs]
            several = len(settings) > 1
            used += [step.model_copy(update={"on": (role,) if several else ()}) for step in found.steps]
            tuning[role] = found.tuning
    return TunedRun(whole, runs, tuple(used), {"components": tuning} if len(tuning) > 1 else next(iter(tuning.values()), {}))


def size_of(artifact: Artifact) -> int:
    return sum(component.size_bytes for component in artifact.components.values())


def _dev(whole: Callable[[Artifact], Artifact], baseline: Artifact, setting: Setting, task: TaskSpec) -> Callable[[Artifact], float] | None:
    """The points that a candidate loses on the dev data; None where there is none."""
    if not setting.splits.has("dev"):
        return None
    return lambda candidate: dev_points(whole(candidate), baseline, setting, task).drop


def _one(
    steps: Steps, start: Artifact, setting: Setting, budget: Budget, limit: float, dev: Callable[[Artifact], float] | None
) -> TunedRun:
    places = [index for index, (step, _, _) in enumerate(steps) if step.name.startswith("quantize-")]
    if not places:
        return run_untuned(steps, start, setting)
    first, last = places[0], places[-1] + 1
    before, runs = run_recipe(steps[:first], start, setting)
    tuned = tune(before, setting, budget, limit, dev)
    after, more = run_recipe(steps[last:], tuned.artifact, setting)
    kept = (*_pinned(steps[:first], runs), *tuned.steps, *_pinned(steps[last:], more))
    return TunedRun(after, [*runs, *tuned.runs, *more], kept, tuned.report)
