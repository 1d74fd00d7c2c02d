"""Samples that are missing, broken or mixed up: exit code 3 (2 where the command line is wrong), one message with file and line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.models import sentences, write_csv

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.command import Project

HOST = ("compress", "--profile", "host")
ONE_CLASS = "text,label\n" + "".join(f"film {i},positive\n" for i in range(40))
MADE_UP_LABEL = ONE_CLASS + "".join(f"glad {i},glad\n" for i in range(40))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("data.csv", "", ("data.csv", "no samples")),
        ("data.csv", "text,label\n", ("data.csv", "no samples")),
        ("data.csv", "review,label\ngood film,positive\n", ("data.csv:2:", 'column "text" is missing', "[data] text")),
        ("data.csv", "text,lable\ngood film,positive\n", ("data.csv:2:", 'column "label" is missing', 'did you mean "lable"?')),
        ("data.csv", "text,label\ngood film,positive\n,negative\n", ("data.csv:3:", 'column "text" is empty')),
        ("data.csv", "text,label\ngood film,positive\nbad film\n", ("data.csv:3:", 'column "label"')),
        ("data.csv", "text,label\ngood, really good,positive\n", ("data.csv:2:", "more fields than the header")),
        ("data.csv", 'text,label\n"good film,positive\n', ("data.csv", "not valid CSV")),
        ("data.csv", 'text,label\n"good" film,positive\n', ("data.csv", "not valid CSV")),
        ("data.csv", "text,label\ngood\x00film,positive\n", ("data.csv",)),
        ("data.jsonl", '{"text": "good film", "label": "positive"}\n{"text": \n', ("data.jsonl:2:", "not valid JSON")),
        ("data.jsonl", '["good film", "positive"]\n', ("data.jsonl:1:", "no JSON object")),
        ("data.jsonl", '{"text": "good film"}\n', ("data.jsonl:1:", 'column "label" is missing')),
        ("data.jsonl", "\n\n", ("data.jsonl", "no samples")),
        ("data.parquet", "not parquet", ("data.parquet", "not a readable Parquet file")),
        ("data.npz", "not numpy", ("data.npz", ".npz")),
        ("data.csv", MADE_UP_LABEL, ("data.csv", 'unknown label "glad"', "[data.label_map]")),
        ("data.csv", ONE_CLASS, ("data.csv", 'every sample has the label "positive"')),
        ("data.csv", "text,label\ngood film,positive\n", ("data.csv", "no rows")),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_broken_data_names_file_line_and_column(onnx_project: Project, name: str, content: str, says: tuple[str, ...]) -> None:
    (onnx_project.folder / name).write_text(content)

    errors = onnx_project.refuses(*HOST, "--data", name, code=3, says=says)

    assert errors.startswith("error: ")


def test_missing_data_file_is_named(onnx_project: Project) -> None:
    onnx_project.refuses(*HOST, "--data", "nowhere.csv", code=3, says=("nowhere.csv", "no such file"))


def test_folder_without_samples_is_named(onnx_project: Project) -> None:
    (onnx_project.folder / "empty").mkdir()

    onnx_project.refuses(*HOST, "--data", "empty", code=3, says=("empty", "no samples"))


@pytest.mark.parametrize("suffix", [".xlsx", ".txt", ""])
def test_unknown_file_type_lists_the_known_ones(onnx_project: Project, suffix: str) -> None:
    (onnx_project.folder / f"data{suffix}").write_text("text,label\n")

    onnx_project.refuses(*HOST, "--data", f"data{suffix}", code=2, says=(f'"{suffix}"', ".csv, .jsonl, .parquet, .tsv"))


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_latin1_file_is_refused_until_its_encoding_is_named(onnx_project: Project, name: str) -> None:
    rows = [(f"café {text}", label) for text, label in sentences(200)]
    lines = (
        [f"{text},{label}" for text, label in rows]
        if name.endswith("csv")
        else [f'{{"text": "{text}", "label": "{label}"}}' for text, label in rows]
    )
    header = ["text,label"] if name.endswith("csv") else []
    (onnx_project.folder / name).write_bytes("\n".join([*header, *lines]).encode("latin-1"))

    onnx_project.refuses(*HOST, "--data", name, code=3, says=(name, "not utf-8 text", "[data] encoding"))
    onnx_project.toml().write_text(
        onnx_project.toml().read_text().replace('file = "samples.csv"', f'file = "{name}"\nencoding = "latin-1"')
    )
    onnx_project.passes(*HOST, "--dry-run")


def test_unknown_encoding_is_a_usage_error(onnx_project: Project) -> None:
    onnx_project.toml().write_text(
        onnx_project.toml().read_text().replace('file = "samples.csv"', 'file = "samples.csv"\nencoding = "latin-99"')
    )

    onnx_project.refuses(*HOST, code=2, says=("latin-99",))


def test_byte_order_mark_is_no_part_of_the_first_column(onnx_project: Project) -> None:
    samples = onnx_project.folder / "samples.csv"
    samples.write_bytes(b"\xef\xbb\xbf" + samples.read_bytes())

    onnx_project.passes(*HOST, "--quiet")


def test_overlapping_splits_are_refused_until_allowed_by_name(onnx_project: Project) -> None:
    rows = sentences(120)
    write_csv(onnx_project.folder / "test.csv", rows[:60])
    shout = [(text.upper() + " !", label) for text, label in rows[50:]]  # same words: the rule looks past case and marks
    write_csv(onnx_project.folder / "calibration.csv", shout)
    both = (*HOST, "--test", "test.csv", "--calibration", "calibration.csv")

    onnx_project.refuses(*both, code=3, says=("the calibration and test data share a sample", 'allow_overlap = ["calibration/test"]'))
    onnx_project.toml().write_text(onnx_project.toml().read_text().replace("[budget]", 'allow_overlap = ["test/dev"]\n\n[budget]'))
    onnx_project.refuses(*both, code=3, says=("share a sample",))
    onnx_project.toml().write_text(onnx_project.toml().read_text().replace("test/dev", "test/calibration"))
    onnx_project.passes(*both, "--quiet")


def test_allow_overlap_that_names_no_pair_of_splits_is_refused(onnx_project: Project) -> None:
    onnx_project.toml().write_text(onnx_project.toml().read_text().replace("[budget]", 'allow_overlap = ["calibration/tset"]\n\n[budget]'))

    onnx_project.refuses(*HOST, code=2, says=("edgepipe.toml:10:", "allow_overlap", "tset"))


def test_test_data_is_needed(onnx_project: Project) -> None:
    onnx_project.refuses(*HOST, "--calibration", "samples.csv", code=3, says=("no test data is given", "--test"))


def test_no_data_at_all_says_how_to_give_it(onnx_project: Project) -> None:
    onnx_project.toml().write_text(onnx_project.toml().read_text().replace('file = "samples.csv"', ""))

    onnx_project.refuses(*HOST, code=3, says=("no test data is given", "--data"))


def pickled_arrays(folder: Path) -> None:
    np.savez(folder / "data.npz", x=np.array([{"a": 1}], dtype=object))


def unlike_rows(folder: Path) -> None:
    np.savez(folder / "data.npz", input_ids=np.ones((3, 4), np.int64), attention_mask=np.ones((2, 4), np.int64))


@pytest.mark.parametrize(("write", "says"), [(pickled_arrays, "without pickled objects"), (unlike_rows, "unlike numbers of rows")])
def test_npz_that_holds_no_samples_is_refused(onnx_project: Project, write: Callable[[Path], None], says: str) -> None:
    write(onnx_project.folder)

    onnx_project.refuses(*HOST, "--task", "fidelity", "--data", "data.npz", code=3, says=("data.npz", says))


def test_max_length_over_the_models_positions_is_refused(onnx_project: Project) -> None:
    onnx_project.toml().write_text(onnx_project.toml().read_text().replace("[budget]", "max_length = 65\n\n[budget]"))

    onnx_project.refuses(*HOST, code=2, says=("max_length 65 is over the model's 64 positions",))
