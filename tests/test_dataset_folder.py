"""Hugging Face dataset folders: as `save_to_disk` and the hub lay them out, with splits in their roles.

The layouts are written here with pyarrow as datasets 3.6 writes them; the library itself is no dependency.
"""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgepipe.config import Data
from edgepipe.data import SPLITS, Splits, normalised, read_samples
from edgepipe.errors import DataError, UsageError

FILE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}
TEXTS = {"text": {"dtype": "string", "_type": "Value"}, "label": LABEL}
IMAGES = {"img": {"_type": "Image"}, "label": LABEL}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EDGEPIPE_CACHE", str(folder))
    return folder


def read(path: Path, columns: tuple[str, ...] = ("text", "label"), **config: Any) -> list[dict[str, Any]]:
    return read_samples(str(path), Data(**config), columns)


def save(folder: Path, columns: dict[str, Any], features: dict[str, Any], batch: int = 3) -> Path:
    """`Dataset.save_to_disk`, in two files."""
    folder.mkdir(parents=True)
    table = pyarrow.table(columns)
    names = []
    middle = table.num_rows // 2
    for number, part in enumerate((table.slice(0, middle), table.slice(middle))):
        names.append(f"data-0000{number}-of-00002.arrow")
        with pyarrow.ipc.new_stream(folder / names[-1], table.schema) as writer:
            writer.write_table(part, max_chunksize=batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def texts(n: int, start: int = 0) -> dict[str, Any]:
    return {"text": [f"text {start + i}" for i in range(n)], "label": [i % 2 for i in range(n)], "other": [1] * n}


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), value).save(out, "PNG")
    return out.getvalue()


def images(n: int, start: int = 0) -> dict[str, Any]:
    files = pyarrow.array([{"bytes": png(start + i), "path": None} for i in range(n)], FILE)
    return {"img": files, "label": [i % 2 for i in range(n)]}


def write_parquet(path: Path, columns: dict[str, Any], features: dict[str, Any] | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=9), st.integers(0, 1)), min_size=1, max_size=12), st.integers(1, 5))
def test_any_rows_survive(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]], batch: int) -> None:
    folder = tmp_path_factory.mktemp("set") / "saved"
    save(folder, {"text": [text for text, _ in rows], "label": [label for _, label in rows]}, TEXTS, batch)

    assert [(sample["text"], sample["label"]) for sample in read(folder)] == [(text, ["cat", "dog"][label]) for text, label in rows]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    save(tmp_path / "set", {"sentence": ["a", "b"], "class": [1, 0]}, {"class": LABEL})

    found = read(tmp_path / "set", text="sentence", label="class", label_map={"cat": "no"})

    assert found == [{"text": "a", "label": "dog"}, {"text": "b", "label": "no"}]


@pytest.mark.parametrize("kind", ["Sequence", "List", None])
def test_tags_by_number_have_names(tmp_path: Path, kind: str | None) -> None:
    tags = {"names": ["O", "PER"], "_type": "ClassLabel"}
    feature = {"feature": tags, "_type": kind} if kind else [tags]
    save(tmp_path / "set", {"tokens": [["Ada", "wrote"]] * 2, "ner_tags": [[1, 0]] * 2}, {"ner_tags": feature})

    assert read(tmp_path / "set", ("tokens", "label"), label="ner_tags")[0] == {"tokens": ["Ada", "wrote"], "label": ["PER", "O"]}


def test_class_that_nobody_told_is_an_empty_label(tmp_path: Path) -> None:
    save(tmp_path / "set", {"text": ["a", "b"], "label": [0, -1]}, TEXTS)

    with pytest.raises(DataError, match='column "label" is empty') as caught:
        read(tmp_path / "set")
    assert caught.value.where.endswith("data-00001-of-00002.arrow:1")


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    save(tmp_path / "set", {"texts": ["a", "b"], "label": [0, 1]}, TEXTS)

    with pytest.raises(DataError, match='column "text" is missing') as caught:
        read(tmp_path / "set")
    assert caught.value.fix == 'did you mean "texts"? Name the column with [data] text = "…"'


def test_images_of_a_column_become_files(tmp_path: Path) -> None:
    found = read(save(tmp_path / "set", images(5), IMAGES), ("label",))

    assert [sample["label"] for sample in found] == ["cat", "dog", "cat", "dog", "cat"]
    assert [Path(sample["image"]).read_bytes() for sample in found] == [png(i) for i in range(5)]
    assert all(sample["image"].endswith(".png") for sample in found)


def test_images_are_written_out_once(tmp_path: Path, cache: Path) -> None:
    folder = save(tmp_path / "set", images(4), IMAGES)

    first = read(folder, ("label",))
    written = sorted((path, path.stat().st_ino) for path in cache.rglob("*.png"))

    assert read(folder, ("label",)) == first
    assert sorted((path, path.stat().st_ino) for path in cache.rglob("*.png")) == written
    assert not list((cache / "unpacked").glob(".tmp-*"))


def test_sounds_of_a_column_become_files(tmp_path: Path) -> None:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(b"\0\0" * 160)
    column = pyarrow.array([{"bytes": out.getvalue(), "path": "a.wav"}] * 2, FILE)
    save(tmp_path / "set", {"audio": column, "label": ["x", "y"]}, {"audio": {"_type": "Audio", "sampling_rate": 16_000}})

    sample = read(tmp_path / "set", ("label",))[0]

    assert sample["label"] == "x"
    with wave.open(sample["audio"]) as sound:
        assert sound.getnframes() == 160


def test_image_that_a_row_only_names_is_found_beside_the_data(tmp_path: Path) -> None:
    columns = {"image": pyarrow.array([{"bytes": None, "path": "pictures/1.png"}] * 2, FILE), "label": [0, 1]}
    folder = save(tmp_path / "set", columns, {"image": {"_type": "Image"}})

    with pytest.raises(DataError, match="not there"):
        read(folder, ("label",))
    (folder / "pictures").mkdir()
    (folder / "pictures" / "1.png").write_bytes(png(1))
    assert read(folder, ("label",))[0]["image"] == str(folder / "pictures" / "1.png")


def test_text_is_read_without_the_images_beside_it(tmp_path: Path, cache: Path) -> None:
    save(tmp_path / "set", images(4) | {"text": list("abcd")}, IMAGES)

    assert [sample["text"] for sample in read(tmp_path / "set", ("text",))] == list("abcd")
    assert not (cache / "unpacked").exists()


@pytest.mark.parametrize("layout", ["dict", "parquet", "shards", "folders"])
def test_splits_take_their_roles_and_the_rest_is_dealt_from_train(tmp_path: Path, layout: str) -> None:
    for number, (split, n) in enumerate((("train", 60), ("validation", 10), ("test", 20))):
        rows = texts(n, 100 * number)
        if layout in ("dict", "folders"):
            save(tmp_path / "set" / split, rows, TEXTS)
        elif layout == "parquet":
            write_parquet(tmp_path / "set" / f"{split}.parquet", rows, TEXTS)
        else:
            write_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet", rows, TEXTS)
    if layout == "dict":
        (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    splits = Splits(Data(file=str(tmp_path / "set")), ("text", "label"))

    assert {split: len(splits(split)) for split in SPLITS} == {"train": 50, "calibration": 10, "dev": 10, "test": 20}
    assert [sample["text"] for sample in splits("test")] == texts(20, 200)["text"]
    assert {sample["label"] for sample in splits("dev")} == {"cat", "dog"}
    assert {normalised(sample) for sample in splits("calibration")} <= {f"text {i}" for i in range(60)}
    splits.check_overlap()


def test_one_split_alone_is_dealt_into_all_roles(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", texts(100), TEXTS)
    splits = Splits(Data(file=str(tmp_path / "set")), ("text", "label"))

    assert {split: len(splits(split)) for split in SPLITS} == {"train": 50, "calibration": 10, "dev": 10, "test": 30}


def test_splits_of_a_folder_of_images_take_their_roles(tmp_path: Path) -> None:
    for split, n in (("train", 30), ("test", 6)):
        for i in range(n):
            path = tmp_path / split / ("cat", "dog")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(i + (100 if split == "test" else 0)))
    splits = Splits(Data(file=str(tmp_path)), ("label",))

    assert len(splits("test")) == 6
    assert sum(len(splits(split)) for split in ("train", "calibration", "dev")) == 30
    splits.check_overlap()


def test_labels_that_are_named_like_splits_are_labels(tmp_path: Path) -> None:
    for label in ("train", "test"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(png(len(label)))

    assert [sample["label"] for sample in read(tmp_path, ("label",))] == ["test", "train"]


def test_split_that_is_given_by_name_comes_before_the_folders_own(tmp_path: Path) -> None:
    save(tmp_path / "set" / "train", texts(40), TEXTS)
    save(tmp_path / "set" / "test", texts(10, 100), TEXTS)
    other = save(tmp_path / "other", texts(4, 200), TEXTS)
    splits = Splits(Data(file=str(tmp_path / "set"), test=str(other)), ("text", "label"))

    assert len(splits("test")) == 4


def test_folder_of_splits_is_no_single_split(tmp_path: Path) -> None:
    save(tmp_path / "set" / "train", texts(4), TEXTS)
    save(tmp_path / "set" / "test", texts(4), TEXTS)

    with pytest.raises(DataError, match="several splits: test, train"):
        read(tmp_path / "set")
    assert len(read(tmp_path / "set" / "test")) == 4


@pytest.mark.parametrize("features", [IMAGES, None])
def test_parquet_with_images_needs_no_word_of_their_type(tmp_path: Path, features: dict[str, Any] | None) -> None:
    write_parquet(tmp_path / "images.parquet", images(3), features)

    found = read(tmp_path / "images.parquet", ("label",))

    assert [Path(sample["image"]).read_bytes() for sample in found] == [png(i) for i in range(3)]
    assert [sample["label"] for sample in found] == (["cat", "dog", "cat"] if features else [0, 1, 0])


def test_digest_and_overlap_go_by_content(tmp_path: Path) -> None:
    save(tmp_path / "a", images(3), IMAGES)
    write_parquet(tmp_path / "b.parquet", images(3), IMAGES)
    splits = Splits(Data(train=str(tmp_path / "a"), test=str(tmp_path / "b.parquet")), ("label",))

    assert splits.digest("train") == splits.digest("test")
    with pytest.raises(DataError, match="share a sample"):
        splits.check_overlap()


def test_saved_selection_without_its_rows_says_how_to_save_it(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", texts(4), TEXTS)
    state = json.loads((folder / "state.json").read_text()) | {"_indices_data_files": [{"filename": "indices.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))

    with pytest.raises(DataError, match="selection") as caught:
        read(folder)
    assert "flatten_indices" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data-00001-of-00002.arrow", None, "a file of the dataset is missing"),
        ("dataset_info.json", None, "a file of the dataset is missing"),
        ("state.json", "{", "not valid JSON"),
        ("data-00000-of-00002.arrow", "rubbish", "not a readable Arrow file"),
    ],
)
def test_broken_folder_names_the_file(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    folder = save(tmp_path / "set", texts(4), TEXTS)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)

    with pytest.raises(DataError, match=message) as caught:
        read(folder)
    assert caught.value.where == str(folder / file)


def test_dataset_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "set", texts(4), TEXTS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)

    with pytest.raises(UsageError, match="needs pyarrow") as caught:
        read(folder)
    assert "edgepipe[parquet]" in str(caught.value.fix)
