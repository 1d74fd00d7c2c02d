"""Write the JSON Schemas that editors complete by; a test keeps them in step with the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgepipe.config import Project, Recipe
from edgepipe.manifest import manifest_schema
from edgepipe.profile import Profile

HERE = Path(__file__).parent


def schemas() -> dict[str, dict[str, Any]]:
    """Schema by file name: project file, recipe, profile (facts may come from `extends`), manifest."""
    profile = Profile.model_json_schema()
    profile["properties"]["extends"] = {
        "type": "string",
        "description": "a profile, or a file beside this one, whose facts this one changes",
    }
    profile["anyOf"] = [{"required": profile.pop("required")}, {"required": ["extends"]}]
    return {
        "project.schema.json": Project.model_json_schema(),
        "recipe.schema.json": Recipe.model_json_schema(by_alias=True),
        "profile.schema.json": profile,
        "manifest.schema.json": manifest_schema(),
    }


def main() -> None:
    for name, schema in schemas().items():
        (HERE / name).write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
