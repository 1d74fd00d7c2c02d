"""Recipes for programs of several components, or with state: planned and checked one component at a time.

Where a program is a single model, these are the planner and the pipeline's own check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.components import is_composed, view
from edgepipe.config import Recipe
from edgepipe.errors import UsageError, nearest
from edgepipe.plan import plan
from edgepipe.recipe_check import check_recipe
from edgepipe.streams import step_shapes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.config import Budget, Step
    from edgepipe.data import Split
    from edgepipe.passes import PassSpec
    from edgepipe.profile import Profile


def is_onnx(artifact: Artifact) -> bool:
    return all(artifact.components[role].format == "onnx" for role in artifact.roles)


def plan_components(
    artifact: Artifact, profile: Profile, compress: Sequence[str], *, splits: Collection[Split] = (), budget: Budget | None = None
) -> Recipe:
    """The planner's recipe, for each role in `compress` (none: every one); what it left out says of which."""
    if not is_composed(artifact):
        return plan(artifact, profile, splits=splits, budget=budget)
    several = len(artifact.roles) > 1
    steps: list[Step] = []
    left_out: dict[str, None] = {}
    for role in _compressed(artifact, compress):
        try:
            found = plan(view(artifact, role), profile, splits=splits, budget=budget)
        except UsageError as error:
            left_out[f"{role}: {error.what}"] = None
            continue
        steps += [step.model_copy(update={"on": (role,)}) if several else step for step in _with_constants(found.steps, artifact)]
        left_out |= dict.fromkeys(f"{role}: {line}" if several else line for line in found.left_out)
    if not steps:
        raise UsageError("there is nothing to do", where="plan", fix="name the passes you want with --recipe")
    tuned = any(step.name.startswith("quantize-") for step in steps)
    return Recipe(step=tuple(steps), left_out=tuple(left_out), tune=tuned)


def _with_constants(steps: Sequence[Step], artifact: Artifact) -> list[Step]:
    """Before everything else, inputs that never change become constants, and shapes are fixed: branches on them fold away."""
    constants, shapes = artifact.program.get("constants", {}), step_shapes(artifact)
    if not constants and not shapes:
        return list(steps)
    told = [f"{name} = {value}" for name, value in constants.items()]
    told += [f"{name} {' × '.join(map(str, shape))}" for name, shape in shapes.items()]
    reason = f"every step has {', '.join(told)}: branches on it are decided once, and those never taken are not shipped"
    options: dict[str, Any] = {"values": dict(constants)} if constants else {}
    return [_step("fix-inputs", reason, options | ({"shapes": shapes} if shapes else {})), *steps]


def _step(name: str, reason: str, options: dict[str, Any]) -> Step:
    from edgepipe.config import Step

    return Step.model_validate({"pass": name, "reason": reason, "options": options})


def _compressed(artifact: Artifact, compress: Sequence[str]) -> tuple[str, ...]:
    """The roles that passes run on. Raises `UsageError` for one that is not there."""
    for role in compress:
        if role not in artifact.roles:
            raise UsageError(f'there is no component "{role}"', where="compress", fix=nearest(role, artifact.roles))
    return tuple(role for role in artifact.roles if not compress or role in compress)


def check_components(
    recipe: Recipe,
    artifact: Artifact,
    compress: Sequence[str] = (),
    file: str | None = None,
    places: Mapping[tuple[str, str], str] | None = None,
) -> list[tuple[Step, PassSpec, Any]]:
    """`pipeline.check_recipe` for every component that steps run on; the steps then name those (`Step.on`).

    Raises `UsageError` for roles that are not there, as for all that `check_recipe` refuses.
    """
    if not is_composed(artifact):
        if named := next((step for step in recipe.steps if step.on), None):
            raise UsageError(
                f"{named.name} is to run on {', '.join(named.on)}, but the program has one component only",
                where=file or "recipe",
                fix="leave `on` out",
            )
        return check_recipe(recipe, artifact, file, places)
    roles = _compressed(artifact, compress)
    for step in recipe.steps:
        if wrong := next((role for role in step.on if role not in artifact.roles), None):
            raise UsageError(
                f'{step.name} is to run on "{wrong}", which is no component', where=file or "recipe", fix=nearest(wrong, artifact.roles)
            )
    checked: dict[int, tuple[Step, PassSpec, Any]] = {}
    for role in roles:
        own = [(index, step) for index, step in enumerate(recipe.steps) if not step.on or role in step.on]
        if own:
            alone = recipe.model_copy(update={"steps": tuple(step for _, step in own)})
            whole = len(own) == len(recipe.steps)  # else lines of the file would be told wrong
            found = check_recipe(alone, view(artifact, role), file if whole else None, places)
            checked |= {index: entry for (index, _), entry in zip(own, found, strict=True)}
    if not checked:
        raise UsageError("no step runs on a component that is to be compressed", where=file or "recipe", fix="name their roles with `on`")
    result = []
    for _, (step, spec, options) in sorted(checked.items()):
        result.append((step.model_copy(update={"on": tuple(role for role in roles if not step.on or role in step.on)}), spec, options))
    return result
