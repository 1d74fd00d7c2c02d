"""What is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe.config import Data, Task
from edgepipe.errors import DataError, UsageError
from edgepipe.request import Request, planned
from tests.models import sentences, write_csv
from tests.onnx_models import make_model

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


def test_image_classifier_takes_arrays_with_labels_and_needs_no_preprocessor(tmp_path: Path) -> None:
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 1, 2, 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    onnx.save(make_model([helper.make_node("Flatten", ["pixel_values"], ["logits"])], [pixels], [logits], {}), str(tmp_path / "model.onnx"))
    np.savez(tmp_path / "test.npz", pixel_values=np.random.default_rng(0).random((8, 1, 1, 2, 2), np.float32), label=np.arange(8) % 4)
    task = Task(name="image-classification", labels=("a", "b", "c", "d"))
    data = Data(test=str(tmp_path / "test.npz"))

    prepared, _ = planned(Request(str(tmp_path / "model.onnx"), ("host",), task, data=data, out=tmp_path / "out"))

    assert prepared.artifact.program["preprocess"] == {"kind": "tensors"}
    assert [sample["label"] for sample in prepared.splits("test")] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_recipe_whose_data_is_missing_is_refused(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prune-ffn needs calibration data"):
        planned(request(classifier, tmp_path, PRUNING))


def test_recipe_that_gives_no_float32_model_to_compare_with_is_refused(classifier: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(OWN_EXPORT)

    with pytest.raises(UsageError, match="no float32 model to compare with"):
        planned(request(classifier, tmp_path, '[[step]]\npass = "own-export"\n', plugins=(str(plugin),)))
