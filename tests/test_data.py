"""Samples: four splits that never share, readers that lose nothing, errors that name file, line and column."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgepipe.config import Data
from edgepipe.data import SHARES, SPLITS, Splits, normalised, read_samples, split_samples
from edgepipe.errors import DataError, UsageError
from tests.models import sentences, write_csv

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = ("text", "label")
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)
SAMPLES = st.lists(
    st.fixed_dictionaries({"text": st.text("abc !", min_size=1, max_size=6), "label": st.sampled_from(["yes", "no"])}),
    min_size=1,
    max_size=60,
)


def read(path: Path, columns: tuple[str, ...] = COLUMNS, **config: Any) -> list[dict[str, Any]]:
    return read_samples(str(path), Data(**config), columns)


def write(folder: Path, text: str, name: str = "data.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


def write_rows(path: Path, rows: list[tuple[str, str]], delimiter: str) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, delimiter=delimiter).writerows([("text", "label"), *rows])
    return path


@given(ROWS, st.sampled_from([("csv", ","), ("tsv", "\t")]))
def test_any_rows_survive_a_delimited_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], kind: tuple[str, str]
) -> None:
    path = write_rows(tmp_path_factory.getbasetemp() / f"rows.{kind[0]}", rows, kind[1])

    assert [(sample["text"], sample["label"]) for sample in read(path)] == rows


@given(ROWS, st.booleans())
def test_any_rows_survive_json_lines(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], ascii_only: bool) -> None:
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=ascii_only) for text, label in rows]
    path = write(tmp_path_factory.getbasetemp(), "\n".join(lines) + "\n\n", "rows.jsonl")

    assert [(sample["text"], sample["label"]) for sample in read(path)] == rows


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("text,label\ngood,yes\n" if name.endswith("csv") else '{"text": "good", "label": "yes"}\n', encoding="utf-8-sig")

    assert read(path) == [{"text": "good", "label": "yes"}]


def test_document_of_any_length_fits_in_a_field(tmp_path: Path) -> None:
    assert len(read(write(tmp_path, f"text,label\n{'word ' * 100_000},yes\n"))[0]["text"]) == 500_000


def test_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["good", "bad"], "label": [1, 0]}), tmp_path / "data.parquet")

    assert read(tmp_path / "data.parquet") == [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, "review,stars\ngood,5\n")

    assert read(path, text="review", label="stars", label_map={"5": "positive"}) == [{"text": "good", "label": "positive"}]


def test_pair_is_read_where_a_second_column_is_named(tmp_path: Path) -> None:
    assert read(write(tmp_path, "text,other,label\na,b,1\n"), text_pair="other") == [{"text": "a", "text_pair": "b", "label": "1"}]


def test_tokens_and_tags_are_split_at_spaces_or_taken_as_lists(tmp_path: Path) -> None:
    table = write(tmp_path, "tokens,label\nAda wrote,B-PER O\n")
    lines = write(tmp_path, '{"tokens": ["Ada", "wrote"], "label": ["B-PER", "O"]}\n', "data.jsonl")

    assert read(table, ("tokens", "label")) == read(lines, ("tokens", "label")) == [{"tokens": ["Ada", "wrote"], "label": ["B-PER", "O"]}]


def test_label_map_applies_to_every_tag(tmp_path: Path) -> None:
    assert read(write(tmp_path, "tokens,label\na b,1 2\n"), ("tokens", "label"), label_map={"1": "O"})[0]["label"] == ["O", "2"]


def test_images_have_their_folder_as_label(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name)

    found = read(tmp_path, ("label",))

    assert [(sample["image"], sample["label"]) for sample in found] == [
        (str(tmp_path / "cat/1.png"), "cat"),
        (str(tmp_path / "dog/2.png"), "dog"),
    ]


def test_table_in_place_of_an_image_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image"):
        read(write(tmp_path, "path,label\na.png,cat\n"), ("label",))


@pytest.mark.parametrize("kind", ["image", "audio"])
@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_table_may_name_a_file_for_each_row(tmp_path: Path, kind: str, name: str) -> None:
    table = f"{kind},label\nfiles/1.png,cat\n" if name.endswith("csv") else json.dumps({kind: "files/1.png", "label": "cat"})

    for columns in (("label",), ("text", "label")):  # text where a row has it, else its file
        assert read(write(tmp_path, table, name), columns) == [{kind: str(tmp_path / "files/1.png"), "label": "cat"}]


def test_text_with_a_picture_beside_it_is_text(tmp_path: Path) -> None:
    assert read(write(tmp_path, "text,image,label\na,b.png,c\n")) == [{"text": "a", "label": "c"}]


def test_tensor_rows_become_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(6).reshape(3, 2), y=np.arange(3))

    found = read(tmp_path / "data.npz")

    assert [sample["tensors"]["x"].tolist() for sample in found] == [[0, 1], [2, 3], [4, 5]]


def test_folder_of_tensors_gives_one_sample_a_file(tmp_path: Path) -> None:
    for index in range(2):
        np.savez(tmp_path / f"{index}.npz", x=np.full((1, 3), index))

    assert [sample["tensors"]["x"][0, 0] for sample in read(tmp_path)] == [0, 1]


def test_tensors_of_unlike_length_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(3), y=np.arange(2))

    with pytest.raises(DataError, match="unlike numbers of rows"):
        read(tmp_path / "data.npz")


def test_pickled_tensors_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([{"a": 1}], dtype=object))

    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("name", "text", "where", "message"),
    [
        ("data.csv", "txt,label\na,b\n", ":2", 'column "text" is missing'),
        ("data.csv", "text,label\na,b\n,b\n", ":3", 'column "text" is empty'),
        ("data.csv", "text,label\na,b\na\n", ":3", 'column "label" is empty'),
        ("data.csv", 'text,label\n"two\nlines",b\na,b,c\n', ":4", "more fields than the header"),
        ("data.csv", 'text,label\n"a"x,b\n', "", "not valid CSV"),
        ("data.jsonl", '{"text": "a", "label": "b"}\n{"text"\n', ":2", "not valid JSON"),
        ("data.jsonl", '{"text": "a", "label": "b"}\n\n[1]\n', ":3", "no JSON object"),
        ("data.csv", "text,label\n", "", "no samples"),
        ("data.csv", "", "", "no samples"),
        ("data.parquet", "rubbish", "", "not a readable Parquet"),
        ("data.npz", "rubbish", "", "not a readable .npz"),
        ("data.npz", "", "", "not a readable .npz"),
        ("data.npz", "PK\x03\x04 cut off", "", "not a readable .npz"),
    ],
)
def test_fault_in_a_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, where: str, message: str) -> None:
    path = write(tmp_path, text, name)

    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert caught.value.where == f"{path}{where}"


def test_missing_column_names_the_nearest_and_the_option(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, "texts,label\na,b\n"))
    assert caught.value.fix == 'did you mean "texts"? Name the column with [data] text = "…"'


def test_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.csv")


def test_unknown_kind_of_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'type "\.xlsx" are not known'):
        read(write(tmp_path, "x", "data.xlsx"))


def test_wrong_encoding_names_the_byte_and_the_right_one_reads(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes("text,label\ncafé,yes\n".encode("latin-1"))

    with pytest.raises(DataError, match="not utf-8 text"):
        read(tmp_path / "data.csv")
    assert read(tmp_path / "data.csv", encoding="latin-1")[0]["text"] == "café"


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_encoding_that_does_not_exist_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="utf-9"):
        read(write(tmp_path, "text,label\na,b\n", name), encoding="utf-9")


@given(SAMPLES)
def test_splits_of_one_file_are_disjoint_and_complete(samples: list[dict[str, Any]]) -> None:
    splits = split_samples(samples)

    keys = [normalised(sample) for split in SPLITS for sample in splits[split]]
    assert len(keys) == len(set(keys))
    assert set(keys) == {normalised(sample) for sample in samples}


@given(SAMPLES)
def test_splitting_again_gives_the_same(samples: list[dict[str, Any]]) -> None:
    assert split_samples(list(samples)) == split_samples(list(samples))


def test_every_label_has_its_share_in_every_split() -> None:
    samples = [{"text": f"text {index}", "label": "rare" if index % 10 == 0 else "common"} for index in range(1000)]

    splits = split_samples(samples)

    for split in SPLITS:
        assert len(splits[split]) == round(SHARES[split] * 1000)
        assert sum(sample["label"] == "rare" for sample in splits[split]) == round(SHARES[split] * 100)


def test_one_file_serves_all_four_roles(tmp_path: Path) -> None:
    splits = Splits(Data(file=str(write_csv(tmp_path / "all.csv", sentences(40)))), COLUMNS)

    assert all(splits.has(split) for split in SPLITS)
    assert sum(len(splits(split)) for split in SPLITS) == 40
    splits.check_overlap()


def test_split_of_its_own_comes_before_the_common_file(tmp_path: Path) -> None:
    rows = sentences(50)
    splits = Splits(
        Data(file=str(write_csv(tmp_path / "all.csv", rows[:40])), test=str(write_csv(tmp_path / "test.csv", rows[40:]))), COLUMNS
    )

    assert [(sample["text"], sample["label"]) for sample in splits("test")] == rows[40:]
    assert len(splits("train")) == 20


def test_split_without_data_names_its_flag() -> None:
    with pytest.raises(DataError, match="no calibration data") as caught:
        Splits(Data(test="test.csv"), COLUMNS)("calibration")
    assert caught.value.fix is not None
    assert "--calibration" in caught.value.fix


@pytest.mark.parametrize("text", ["Good film", "good  FILM!"])
def test_splits_that_share_a_sample_are_refused(tmp_path: Path, text: str) -> None:
    train = write_csv(tmp_path / "train.csv", [("good film", "yes"), ("other", "no")])
    test = write_csv(tmp_path / "test.csv", [(text, "yes")])

    with pytest.raises(DataError, match="train and test data share a sample: 'good film'"):
        Splits(Data(train=str(train), test=str(test)), COLUMNS).check_overlap()


def test_overlap_is_allowed_only_for_the_pair_that_is_named(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "a.csv", [("good film", "yes")]))

    Splits(Data(train=path, calibration=path, allow_overlap=("calibration/train",)), COLUMNS).check_overlap()
    with pytest.raises(DataError, match="share a sample"):
        Splits(Data(train=path, calibration=path, test=path, allow_overlap=("train/calibration",)), COLUMNS).check_overlap()


def test_images_overlap_by_content(tmp_path: Path) -> None:
    for split, name in (("train", "a.png"), ("test", "b.png")):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (2, 2), "red").save(tmp_path / split / "cat" / name)

    with pytest.raises(DataError, match="share a sample"):
        Splits(Data(train=str(tmp_path / "train"), test=str(tmp_path / "test")), ("label",)).check_overlap()


def test_digest_of_a_split_follows_its_content(tmp_path: Path) -> None:
    def digest_of(name: str, rows: list[tuple[str, str]]) -> str:
        return Splits(Data(test=str(write_csv(tmp_path / name, rows))), COLUMNS).digest("test")

    rows = sentences(10)

    assert digest_of("a.csv", rows) == digest_of("b.csv", rows)
    assert len({digest_of("c.csv", other) for other in (rows, rows[:9], [*rows[:9], ("x", "negative")])}) == 3
