"""The JSON Schemas that editors complete by are in step with the models, and fit the files we ship."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgepipe.resources import resource
from tests.conftest import GOLDEN

ROOT = Path(__file__).parent.parent
NAMES = ["manifest.schema.json", "profile.schema.json", "project.schema.json", "recipe.schema.json"]


def generated() -> dict[str, dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("make_schemas", resource("schemas") / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, dict[str, Any]] = module.schemas()
    return found


def validate(toml: str, name: str) -> None:
    jsonschema.validate(tomllib.loads(toml), json.loads((resource("schemas") / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", NAMES)
def test_file_is_what_make_generates(name: str) -> None:
    text = (resource("schemas") / name).read_text(encoding="utf-8")

    assert text == json.dumps(generated()[name], indent=1) + "\n", "run python schemas/make.py"


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_a_valid_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(generated()[name])


def test_no_schema_is_forgotten() -> None:
    assert sorted(generated()) == sorted(path.name for path in resource("schemas").glob("*.json")) == NAMES


@pytest.mark.parametrize("path", sorted(resource("profiles").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_profiles_fit(path: Path) -> None:
    validate(path.read_text(encoding="utf-8"), "profile.schema.json")


def test_profile_that_extends_another_may_leave_everything_else_out() -> None:
    validate('extends = "rpi4"\n[memory]\nram_bytes = 8589934592\n', "profile.schema.json")
    with pytest.raises(jsonschema.ValidationError):
        validate('name = "x"\n', "profile.schema.json")


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("plan_*.toml")), ids=lambda path: path.stem)
def test_planned_recipes_fit(path: Path) -> None:
    validate(path.read_text(encoding="utf-8"), "recipe.schema.json")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/edgepipe.toml")), ids=lambda path: path.parent.name)
def test_example_projects_fit(path: Path) -> None:
    validate(path.read_text(encoding="utf-8"), "project.schema.json")


@pytest.mark.parametrize(
    ("toml", "name"),
    [
        ("modle = 1", "project.schema.json"),
        ("[budget]\nmax_size = 1", "project.schema.json"),
        ("step = []", "recipe.schema.json"),
        ("[[step]]\nname = 'x'\npas = 1", "recipe.schema.json"),
    ],
)
def test_unknown_keys_do_not_fit(toml: str, name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(toml, name)
