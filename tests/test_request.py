"""What is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepipe.config import Data, Task
from edgepipe.errors import DataError, UsageError
from edgepipe.request import Request, planned
from tests.models import sentences, write_csv

PRUNING = '[[step]]\npass = "prune-ffn"\n[[step]]\npass = "export-onnx"\n'
OWN_EXPORT = """
import edgepipe

@edgepipe.register_pass("own-export", takes={"model": "torch"}, gives={"model": "onnx"})
def own_export(artifact, options, ctx):
    return artifact
"""


def request(classifier: Path, folder: Path, recipe: str, **more: object) -> Request:
    (folder / "recipe.toml").write_text(recipe)
    test = write_csv(folder / "test.csv", sentences(40))
    data = Data(test=str(test))
    return Request(
        str(classifier),
        ("host",),
        Task(name="text-classification"),
        data=data,
        recipe=str(folder / "recipe.toml"),
        out=folder / "out",
        **more,
    )  # type: ignore[arg-type]


def test_recipe_whose_data_is_missing_is_refused(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prune-ffn needs calibration data"):
        planned(request(classifier, tmp_path, PRUNING))


def test_recipe_that_gives_no_float32_model_to_compare_with_is_refused(classifier: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(OWN_EXPORT)

    with pytest.raises(UsageError, match="no float32 model to compare with"):
        planned(request(classifier, tmp_path, '[[step]]\npass = "own-export"\n', plugins=(str(plugin),)))
