"""prune-vocab: what it refuses, and says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgepipe.config import Data, Recipe
from edgepipe.errors import DataError, ModelError, UsageError
from edgepipe.recipe_check import check_recipe
from tests.models import WORDS, write_classifier, write_csv
from tests.passes.running import artifact_of, run_pass
from tests.vocabulary.models import write_kind, write_texts

NAME = "prune-vocab"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return write_texts(tmp_path_factory.mktemp("texts"))


def test_it_stands_before_recovery(classifier: Path) -> None:
    recipe = Recipe.model_validate({"step": [{"pass": "recover"}, {"pass": NAME}, {"pass": "export-onnx"}]})

    with pytest.raises(UsageError, match="before"):
        check_recipe(recipe, artifact_of(classifier))


@pytest.mark.parametrize(("size", "match"), [(3, "5 special ones, which cannot go"), (20, "must stay: 5 special, 52 characters")])
def test_size_that_would_remove_what_must_stay_is_refused(size: int, match: str, texts: Data, classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match):
        run_pass(NAME, artifact_of(marked(classifier, tmp_path)), tmp_path, data=texts, size=size)


def marked(classifier: Path, tmp_path: Path) -> Path:
    """The classifier, its special tokens named in its tokenizer as transformers names them."""
    folder = shutil.copytree(classifier, tmp_path / "marked")
    write_kind("wordpiece", folder)
    return folder


def test_data_that_use_every_token_leave_nothing_to_cut(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model")
    count = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    folder = write_classifier(tmp_path / "full", vocab_size=count)
    data = Data(train=str(write_csv(tmp_path / "all.csv", [(" ".join(WORDS), "positive")])))

    with pytest.raises(UsageError, match="no token would go"):
        run_pass(NAME, artifact_of(folder), tmp_path, data=data, reserve=["[MASK]"])


def test_without_data_nothing_says_what_is_used(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="training or calibration data"):
        run_pass(NAME, artifact_of(classifier), tmp_path)


def test_tokenizer_with_more_tokens_than_the_model_is_refused(texts: Data, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model", vocab_size=60)

    with pytest.raises(ModelError, match="no embedding for"):
        run_pass(NAME, artifact_of(folder), tmp_path, data=texts)


def test_image_model_has_no_vocabulary(vit: Path, pictures: Data, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no vocabulary"):
        run_pass(NAME, artifact_of(vit, "image-classification"), tmp_path, data=pictures)


def test_model_of_a_factory_is_refused(texts: Data, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    source = "import torch\n\nclass Bag(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.table = torch.nn.Embedding(128, 2)\n\n    def forward(self, input_ids, attention_mask):\n        return self.table(input_ids).mean(1)\n\ndef make(config):\n    return Bag()\n"  # noqa: E501
    (tmp_path / "bag.py").write_text(source)
    folder = write_classifier(tmp_path / "model")
    save_file({"table.weight": torch.randn(128, 2)}, folder / "model.safetensors")

    with pytest.raises(ModelError, match="no table of token embeddings"):
        run_pass(NAME, artifact_of(folder, factory=f"{tmp_path / 'bag.py'}:make"), tmp_path, data=texts)
