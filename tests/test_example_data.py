"""What the examples make of the files they fetch: fixed splits that share nothing, labels that are right."""

from __future__ import annotations

import gzip
import json
import runpy
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def fashion() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "fashion" / "fetch.py"))


@pytest.fixture(scope="module")
def similarity() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "similarity" / "fetch.py"))


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def test_idx_files_are_read_as_written(tmp_path: Path, fashion: dict[str, Any]) -> None:
    array = np.arange(24).reshape(2, 3, 4)
    write_idx(tmp_path / "x.gz", array)

    np.testing.assert_array_equal(fashion["read_idx"](tmp_path / "x.gz"), array)


def test_fashion_splits_share_no_image_and_keep_labels(tmp_path: Path, fashion: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3600, 28, 28)).astype(np.uint8)
    images[:, 0, 0] = np.arange(3600) % 10  # the label, so that it can be looked up
    images[3590:] = images[:10]  # in both files
    for name, part in (("t10k", images[3500:]), ("train", images[:3500])):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", part)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", part[:, 0, 0])

    parts = fashion["split"](tmp_path)

    assert {name: len(labels) for name, (_, labels) in parts.items()} == {"test": 100, "dev": 2000, "calibration": 1000, "train": 490}
    assert len({image.tobytes() for found, _ in parts.values() for image in found}) == 3590
    assert all((found[:, 0, 0] == labels).all() for found, labels in parts.values())


def test_fashion_images_lie_in_a_folder_per_label(tmp_path: Path, fashion: dict[str, Any]) -> None:
    fashion["write_images"](np.zeros((3, 28, 28), np.uint8), np.array([0, 9, 9]), tmp_path)

    assert Counter(path.parent.name for path in tmp_path.rglob("*.png")) == {"t-shirt": 1, "ankle-boot": 2}


def test_depthwise_network_is_built_from_its_config() -> None:
    build = runpy.run_path(str(EXAMPLES / "fashion" / "network.py"))["depthwise"]
    config = json.loads(json.dumps({"num_channels": 1, "width": 4, "id2label": {str(i): str(i) for i in range(10)}}))

    module = build(config).eval()

    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    grouped = [layer for layer in module if isinstance(layer, torch.nn.Conv2d) and layer.groups > 1]
    assert len(grouped) == 6
    assert all(layer.groups == layer.in_channels for layer in grouped)


def test_pairs_that_occur_twice_are_kept_once(similarity: dict[str, Any]) -> None:
    pairs = similarity["word_pairs"]("# comment\nold\tnew\t1.58\nNew\told\t2\nmoney\tcash\t9\n")

    assert similarity["unlike"](pairs) == [("old", "new", "1.58"), ("money", "cash", "9")]


def test_every_pair_of_documents_has_its_score(similarity: dict[str, Any]) -> None:
    matrix = [["1", "0.2", "0.3"], ["0.2", "1", "0.4"], ["0.3", "0.4", "1"]]

    assert similarity["document_pairs"](["a", "b", "c"], matrix) == [("a", "b", "0.2"), ("a", "c", "0.3"), ("b", "c", "0.4")]


def test_documents_without_scores_are_paired_once_each(similarity: dict[str, Any]) -> None:
    assert similarity["unscored_pairs"](["a b", "a b", "a", "b", "c"]) == [("a b", "a b", "1.0000"), ("a", "b", "0.0000")]
