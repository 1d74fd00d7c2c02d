"""Whether a recipe can run, before anything does: known passes and options, in an order that fits, on formats that meet."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.checks import CHECKS
from edgepipe.errors import PassError, UsageError, nearest
from edgepipe.passes import PassSpec, passes
from edgepipe.toml import located, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.artifact import Artifact
    from edgepipe.config import Recipe, Step


def check_recipe(
    recipe: Recipe, start: Artifact, file: str | None = None, places: Mapping[tuple[str, str], str] | None = None
) -> list[tuple[Step, PassSpec, Any]]:
    """Steps with their pass and validated options. Raises `UsageError` for a wrong order, formats that do not meet, an
    adapter that is not merged, unknown passes and options, before anything runs.

    `file` is the recipe's, `places` says where options came from that stand elsewhere.
    """
    formats: dict[str, str] = {role: component.format for role, component in start.components.items()}
    names, known = [step.name for step in recipe.steps], passes()
    result = []
    for index, step in enumerate(recipe.steps):
        where = _place(file, index, step.name)
        spec = known.get(step.name)
        if spec is None:
            raise UsageError(f'unknown pass "{step.name}"', where=where, fix=nearest(step.name, known))
        for check in spec.checks:
            if check.name not in CHECKS:
                raise PassError(
                    f'{step.name} asks for a check "{check.name}", which there is not', where=where, fix=nearest(check.name, CHECKS)
                )
        options = parse(spec.options, step.options, source=partial(_option_place, file, index, step.name, places or {}))
        for earlier in names[:index]:
            if earlier in spec.before:
                raise UsageError(f"{step.name} must come before {earlier}", where=where, fix=f"move {step.name} up")
        for later in names[index + 1 :]:
            if later in spec.after:
                raise UsageError(f"{step.name} must come after {later}", where=where, fix=f"move {step.name} down")
        for role, wanted in spec.takes.items():
            if formats.get(role) != wanted:
                have = f"there it is {formats[role]}" if role in formats else f"there is no {role} there"
                raise UsageError(
                    f"{step.name} takes a {wanted} {role}, but {have}", where=where, fix=_format_fix(role, formats.get(role), wanted)
                )
        merged = "peft" in spec.takes.values()
        formats = {role: kind for role, kind in formats.items() if role not in spec.takes and not (merged and kind == "peft")} | dict(
            spec.gives
        )
        result.append((step, spec, options))
    if "peft" in formats.values():
        fix = (
            "put merge-lora first, or leave the adapter out"
            if start.model.format == "torch"
            else "merge it into the torch model before that is exported"
        )
        raise UsageError("an adapter is given, but the recipe does not merge it", where=file or "recipe", fix=fix)
    if formats.get("model") != "onnx":
        raise UsageError("the recipe ends with a torch model, which no device runs", where=file or "recipe", fix="add export-onnx")
    return result


def _place(file: str | None, index: int, name: str, *below: str) -> str:
    return located(Path(file), ("step", str(index), *below)) if file else f"recipe, step {index + 1} ({name})"


def _option_place(file: str | None, index: int, name: str, places: Mapping[tuple[str, str], str], loc: tuple[str, ...]) -> str:
    elsewhere = places.get((name, loc[0])) if loc else None
    return elsewhere or _place(file, index, name, "options", *loc)


def _format_fix(role: str, have: str | None, wanted: str) -> str:
    if role == "adapter":
        return "name the adapter with --adapter, or leave merge-lora out"
    return (
        "add export-onnx before it" if wanted == "onnx" else "the step must come before export-onnx" if have else f"give the build a {role}"
    )


def baseline_recipe(recipe: Recipe) -> Recipe | None:
    """The steps that make the uncompressed float32 model (merging, exporting). None for models that are ONNX already."""
    known = passes()
    steps = tuple(step for step in recipe.steps if known[step.name].baseline)
    return recipe.model_copy(update={"steps": steps}) if steps else None
