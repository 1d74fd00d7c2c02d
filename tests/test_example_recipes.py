"""Recipes that examples ship are ones that this version takes: passes, options, order."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepipe.artifact import Artifact
from edgepipe.config import load_recipe
from edgepipe.passes import passes
from edgepipe.recipe_check import check_recipe
from tests.models import write_adapter, write_classifier
from tests.passes.running import artifact_of

RECIPES = sorted((Path(__file__).parent.parent / "examples").glob("*/recipes/*.toml"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Artifact]:
    """A torch model with an adapter, and one without."""
    base = write_classifier(tmp_path_factory.mktemp("models") / "base")
    adapter = write_adapter(base, base.parent / "adapter")
    return {True: artifact_of(base, adapters=[adapter]), False: artifact_of(base)}


def test_there_are_recipes() -> None:
    assert {path.parent.parent.name for path in RECIPES} >= {"sentiment", "similarity", "fashion"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_recipe_of_an_example_can_run(path: Path, models: dict[bool, Artifact]) -> None:
    recipe = load_recipe(path)

    steps = check_recipe(recipe, models[recipe.steps[0].name == "merge-lora"], str(path))

    assert [step.name for step, _, _ in steps] == [step.name for step in recipe.steps]
    assert all(step.name in passes() for step in recipe.steps)
