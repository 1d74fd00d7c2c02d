"""Runs a recipe on a program of several components, or with state: on one component at a time, each put back in its place.

Where a program is a single model, this is `run_recipe`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepipe.components import inputs_of, is_composed, put_back, record, view
from edgepipe.config import Data
from edgepipe.data import Splits
from edgepipe.errors import DataError
from edgepipe.pipeline import run_recipe
from edgepipe.worker import CountFlops

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.config import Step
    from edgepipe.passes import PassSpec
    from edgepipe.pipeline import PassRun, Setting

    Steps = Sequence[tuple[Step, PassSpec, Any]]

NO_LABEL = "(recorded inputs have no labels)"  # no array of theirs is taken for one


def run_components(steps: Steps, start: Artifact, setting: Setting, *, label: str = "") -> tuple[Artifact, list[PassRun]]:
    """Run the steps from `start` (already in the store), each on the roles it names (`Step.on`; none: every role).

    Passes see a view of one component (`components.view`), and as samples the inputs that it was given in `start`.
    """
    if not is_composed(start):
        return run_recipe(steps, start, setting, label=label)
    whole, runs = start, []
    with component_settings(steps, start, setting) as settings:
        for role, own in settings.items():
            done, ran = run_recipe(steps_on(role, steps), setting.store.put(view(whole, role)), own, label=f"{label}{role}: ")
            whole = setting.store.put(put_back(whole, role, done))
            runs += [replace(run, on=role) for run in ran]
    return whole, runs


def steps_on(role: str, steps: Steps) -> Steps:
    return [entry for entry in steps if not entry[0].on or role in entry[0].on]


@contextmanager
def component_settings(steps: Steps, start: Artifact, setting: Setting) -> Iterator[dict[str, Setting]]:
    """role → setting whose data are that component's own inputs, for every role that steps run on.

    The inputs are recorded from `start`, in files that are there as long as the block runs: for the splits that the passes
    declare, and the one that checks compare on. Raises `DataError` for a component that the samples never reach.
    """
    roles = [role for role in start.roles if steps_on(role, steps)]
    needed = {split for _, spec, _ in steps for split in (*spec.data, *spec.optional_data) if setting.splits.has(split)}
    if seen := setting.splits.to_look_at:
        needed.add(seen)
    with setting.store.workdir() as folder:
        for split in sorted(needed):
            samples = setting.splits(split)
            setting.progress.update("record", f"inputs of {', '.join(roles)} over the {split} data")
            record(start, samples, {role: folder / role / split for role in roles}, setting.threads)
            for role in roles:
                if not any((folder / role / split).iterdir()):
                    raise DataError(
                        f"the {role} is never run on the {split} data: no stage before it gives it anything",
                        where=str(getattr(setting.data, split) or setting.data.file),
                        fix="give it samples that the whole program does something with",
                    )
        result = {}
        for role in roles:
            data = Data.model_validate({"label": NO_LABEL, **{split: str(folder / role / split) for split in needed}})
            result[role] = replace(setting, data=data, splits=Splits(data, ()))
        yield result


def count_component_flops(artifact: Artifact, setting: Setting) -> dict[str, Any]:
    """{"flops", "shape"} of the first test sample: every component as often as the sample runs it."""
    total, shapes = 0, {}
    for role, calls in inputs_of(artifact, setting.splits("test")[0]).items():
        alone, counted = view(artifact, role), dict[str, int]()
        for feeds in calls:
            shape = {name: list(value.shape) for name, value in feeds.items()}
            if (key := str(shape)) not in counted:
                counted[key] = setting.worker.ask(CountFlops(alone, setting.threads, {"tensors": feeds}), "validate").value["flops"]
                shapes[f"{role} {len(counted)}"] = shape
            total += counted[key]
    return {"flops": total, "shape": shapes}
