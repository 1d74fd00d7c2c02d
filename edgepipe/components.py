"""One component of a program by itself: what passes work on where there are several components, or one with state.

A view is that component as an artifact of its own, which takes tensors; its samples are the inputs that the component was
given while the whole program ran. What passes make of it is put back in its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Artifact
from edgepipe.driver import driver_module
from edgepipe.errors import PassError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from edgepipe.readers import Sample

    Feeds = Mapping[str, np.ndarray]

SAMPLES, INPUTS = 128, 512  # that are recorded of a split: samples that run, and inputs of each component at the most
OWN = ("kind", "component", "task", "preprocess")  # of a view's program; whatever else stands there, passes have put in


def is_composed(artifact: Artifact) -> bool:
    """Whether passes see views of it instead of itself."""
    return bool(artifact.program["kind"] != "single")


def view(artifact: Artifact, role: str) -> Artifact:
    """The component alone, as a single model that takes tensors."""
    program = {"kind": "single", "component": "model", "task": artifact.program["task"], "preprocess": {"kind": "tensors"}}
    kept = {key: value for key, value in _stage(artifact, role).items() if key in ("session",)}
    return Artifact({"model": replace(artifact.components[role], state=())}, (), program | kept)


def put_back(whole: Artifact, role: str, done: Artifact) -> Artifact:
    """The whole with what passes made of a view; it must still take and give the state. Raises `PassError`."""
    component = replace(done.model, state=whole.components[role].state)
    names = {side: {entry["name"] for entry in component.signature[side]} for side in ("inputs", "outputs")}
    for entry in component.state:
        if entry["input"] not in names["inputs"] or entry["output"] not in names["outputs"]:
            raise PassError(
                f'the compressed {role} no longer carries its state ("{entry["input"]}" → "{entry["output"]}")',
                where=f"component {role}",
                fix="leave out the pass that renames or drops inputs and outputs",
            )
    added = {key: value for key, value in done.program.items() if key not in OWN}
    result = whole.with_component(role, component)
    if "stages" not in whole.program:
        return result.with_program(**added)
    stages = [{**stage, **added} if stage["component"] == role else stage for stage in whole.program["stages"]]
    return result.with_program(stages=stages)


def _stage(artifact: Artifact, role: str) -> Mapping[str, Any]:
    stages: Sequence[Mapping[str, Any]] = artifact.program.get("stages") or (artifact.program,)
    return next(stage for stage in stages if stage["component"] == role)


def inputs_of(artifact: Artifact, sample: Sample, driver: Any = None) -> dict[str, list[Feeds]]:
    """What each component was given while the program ran one sample, in order."""
    driver = driver or driver_module().Driver(str(artifact.root))
    found: dict[str, list[Feeds]] = {role: [] for role in artifact.roles}
    driver.executor.observe = lambda role, feeds: found[role].append(dict(feeds))
    try:
        driver.predict(sample)
    finally:
        driver.executor.observe = None
    return found


def record(artifact: Artifact, samples: Sequence[Sample], folders: Mapping[str, Path], threads: int) -> None:
    """Write inputs of each component (those in `folders`) as .npz files, spread evenly over the samples and over each of them.

    Memory: the inputs of one sample.
    """
    import numpy as np

    driver = driver_module().Driver(str(artifact.root), threads=threads)
    chosen = [samples[index] for index in _spread(len(samples), SAMPLES)]
    counts = dict.fromkeys(folders, 0)
    for folder in folders.values():
        folder.mkdir(parents=True)
    for sample in chosen:
        for role, calls in inputs_of(artifact, sample, driver).items():
            if role not in folders:
                continue
            for index in _spread(len(calls), max(1, INPUTS // len(chosen))):
                np.savez(folders[role] / f"{counts[role]:06d}.npz", **dict(calls[index]))  # type: ignore[arg-type]
                counts[role] += 1


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` indices, evenly apart."""
    return list(range(count)) if count <= wanted else [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]
