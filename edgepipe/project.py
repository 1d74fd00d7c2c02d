"""Puts a request together: flag > `--set` > project file > recipe > profile > default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.config import PROJECT_FILE, Project, Task, find_project, load_project, pass_places, pass_settings, resolve_path, with_budget
from edgepipe.errors import UsageError
from edgepipe.request import TARGET_SAMPLES, Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def make_request(
    *,
    model: str | None = None,
    profiles: Sequence[str] = (),
    adapters: Sequence[str] = (),
    task: str | None = None,
    data: Mapping[str, str | None] | None = None,
    budget: Sequence[str] = (),
    recipe: str | None = None,
    settings: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | None = None,
    plugins: Sequence[str] = (),
    model_factory: str | None = None,
    teacher: str | None = None,
    force: bool = False,
    strict: bool = False,
    archive: bool = False,
    devices: Sequence[str] = (),
    target_samples: int | None = TARGET_SAMPLES,
    project: str | None = None,
    need_model: bool = True,
    tune: bool = True,
    time_limit: float | None = None,
) -> Request:
    """The request that these flags and the project file make. `data` maps file, train, calibration, dev, test to paths;
    `options` are `settings` as data, from Python.

    Raises `UsageError` when neither names a model, or a file is not what it should be.
    """
    if target_samples is not None and target_samples < 1:
        raise UsageError(f"{target_samples} samples prove nothing", where="target_samples", fix="give a count, or None for all")
    here = Path.cwd()
    found = Path(project) if project else find_project(here)
    base = load_project(found) if found else Project()
    named = resolve_path(model, here) if model else base.model
    composed = bool(base.components) and not model
    if named is None and need_model and not composed:
        raise UsageError(
            "no model is given",
            where=str(found or PROJECT_FILE),
            fix="name it: edgepipe compress MODEL …, or write a project file with `edgepipe init MODEL`",
        )
    own_model = named is not None and (base.model is None or Path(named).resolve() != Path(base.model).resolve())
    if own_model:  # another model than the project's: its name, adapters and licences do not go with it; task and data may
        alien: dict[str, Any] = {
            "name": None,
            "adapters": (),
            "model_factory": None,
            "teacher": None,
            "licences": {},
            "components": {},
            "compress": (),
        }
        base = base.model_copy(update={**alien, "task": base.task if task is None else None})
    paths = {key: resolve_path(value, here) for key, value in (data or {}).items() if value}
    samples = base.data
    if "file" in paths:  # one file for all roles replaces whatever the project names
        samples = samples.model_copy(update={"train": None, "calibration": None, "dev": None, "test": None})
    elif paths.keys() - {"unlabelled"}:
        samples = samples.model_copy(update={"file": None})
    samples = samples.model_copy(update=paths)
    chosen = base.task if task is None else Task(name=task) if base.task is None or base.task.name != task else base.task
    if task is not None and base.task is not None and chosen is not None and not chosen.labels:
        chosen = chosen.model_copy(update={"labels": base.task.labels})
    given = _merged(pass_settings(tuple(settings)), options or {})
    if chosen is None:
        raise UsageError(
            "no task is given",
            where=str(found or PROJECT_FILE),
            fix="name it with --task: what does the model do? Without labels: --task fidelity",
        )
    return Request(
        model=named or "",
        name=base.name or (base.program or "" if composed else ""),
        parts=base.parts,
        profiles=tuple(resolve_path(p, here) if p.endswith(".toml") else p for p in profiles) or base.profiles,
        task=chosen,
        data=samples,
        adapters=tuple(resolve_path(a, here) for a in adapters) or base.adapters,
        budget=with_budget(base.budget, tuple(budget)),
        recipe=resolve_path(recipe, here) if recipe else base.recipe,
        settings=_merged(base.passes, given),
        places={
            **(pass_places(found, base.passes) if found else {}),
            **{(name, key): f"--set {name}.{key}" for name, values in given.items() for key in values},
        },
        model_factory=resolve_path(model_factory, here) if model_factory else base.model_factory,
        teacher=resolve_path(teacher, here) if teacher else base.teacher,
        plugins=(*base.plugins, *(resolve_path(p, here) for p in plugins)),
        licences=dict(base.licences),
        out=Path(resolve_path(out, here)) if out else Path(base.out).absolute(),
        force=force,
        strict=strict,
        archive=archive,
        devices=tuple(devices),
        target_samples=target_samples,
        tune=tune,
        time_limit=time_limit,
    )


def _merged(project: Mapping[str, Mapping[str, Any]], over: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    names = [*project, *(name for name in over if name not in project)]
    return {name: {**project.get(name, {}), **over.get(name, {})} for name in names}
