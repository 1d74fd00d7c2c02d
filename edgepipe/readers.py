"""Reads samples from CSV, TSV, JSON Lines, Parquet, dataset folders, image folders and .npz, one file or folder at a time.

A sample is a plain dict: `text` (+ `text_pair`), `tokens`, `image` or `audio` (a path) or `tensors` ({name: array}, read when
asked for), with `label` when the data has one.
"""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any, TextIO

from edgepipe.dataset_folder import Part, parquet_part, read_rows
from edgepipe.errors import DataError, UsageError, nearest
from edgepipe.npz import read_npz_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgepipe.config import Data

MEDIA = ("image", "audio")  # columns that hold paths, relative to the table
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}
Sample = dict[str, Any]


def read_folder(folder: Path, label: str) -> Iterator[Sample]:
    """A sample for each .npz in the folder, or for each image below it, labelled by the folder it lies in."""
    tensors = sorted(folder.glob("*.npz"))
    if tensors:
        yield from read_npz_files(tensors, label)
        return
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    for path in images:
        name = path.parent.name if path.parent != folder else None
        yield {"image": str(path), **({"label": name} if name else {})}


def read_part(part: Part, config: Data, columns: tuple[str, ...]) -> Iterator[Sample]:
    """A sample for each row of one split of a Hugging Face dataset."""
    names = _column_names(config)
    texts = {names[column] for column in ("text", "tokens") if column in columns}
    for where, row in read_rows(part, tuple(names.values()), files=not texts & set(part.columns)):
        yield _sample(row, where, names, config, columns)


def read_table(path: Path, config: Data, columns: tuple[str, ...]) -> Iterator[Sample]:
    """A sample a row, with the `columns` a task needs; `DataError` naming file, line and column when one is missing."""
    if path.suffix.lower() == ".parquet":
        yield from read_part(parquet_part(path), config, columns)
        return
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted([*READERS, ".parquet"]))
        raise UsageError(f'data files of type "{path.suffix}" are not known', where=str(path), fix=f"use {known}, .npz or a folder")
    names = _column_names(config)
    for line, row in reader(path, config.encoding):
        for kind in MEDIA:
            if row.get(kind) and isinstance(row[kind], str):
                row[kind] = str(path.parent / row[kind])
        yield _sample(row, f"{path}:{line}", names, config, columns)


def _column_names(config: Data) -> dict[str, str]:
    return {
        "text": config.text,
        "text_pair": config.text_pair or "text_pair",
        "label": config.label,
        "tokens": config.text if config.text != "text" else "tokens",
    }


def _sample(row: dict[str, Any], where: str, names: dict[str, str], config: Data, columns: tuple[str, ...]) -> Sample:
    """What `columns` asks for of a row, and its image or sound where it has no text."""
    texts = {"text", "tokens"} & set(columns)
    written = any(row.get(names[column]) for column in texts)
    sample: Sample = {} if written else {kind: row[kind] for kind in MEDIA if isinstance(row.get(kind), str) and row[kind]}
    if not sample and not texts:
        raise DataError(
            'a table without a column "image" or "audio" holds no images or sounds',
            where=where,
            fix="name a folder that has a folder of images for each label, or give each row the path of its file",
        )
    for column in columns:
        name = names[column]
        if row.get(name) is None or row[name] == "":
            if sample and column in texts:
                continue
            present = [key for key in row if key]
            what = f'column "{name}" is missing' if name not in row else f'column "{name}" is empty'
            option = {"tokens": "text"}.get(column, column)
            raise DataError(what, where=where, fix=f'{nearest(name, present)} Name the column with [data] {option} = "…"')
        sample[column] = row[name]
    if "text" in sample and config.text_pair and "text_pair" not in sample:
        if row.get(config.text_pair) is None:
            raise DataError(f'column "{config.text_pair}" is missing', where=where, fix=nearest(config.text_pair, row))
        sample["text_pair"] = str(row[config.text_pair])
    if "tokens" in sample and isinstance(sample["tokens"], str):
        sample["tokens"] = sample["tokens"].split()
    if "tokens" in sample and isinstance(sample.get("label"), str):
        sample["label"] = sample["label"].split()
    for column in ("text", "text_pair"):
        if column in sample:
            sample[column] = str(sample[column])
    return sample


def _open(path: Path, encoding: str) -> TextIO:
    """The file as text, without the byte-order mark that spreadsheets write."""
    plain = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    try:
        return path.open(encoding="utf-8-sig" if plain else encoding, newline="")
    except LookupError:
        raise UsageError(
            f'there is no encoding "{encoding}"', where="[data] encoding", fix="name one that Python knows: utf-8, latin-1, …"
        ) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), fix="check the path and its permissions") from None


def _read_delimited(delimiter: str) -> Callable[[Path, str], Iterator[tuple[int, dict[str, Any]]]]:
    def read(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with _open(path, encoding) as handle:
                csv.field_size_limit(2**31 - 1)  # a whole document may stand in one field; the default is 128 KiB
                rows = csv.DictReader(handle, delimiter=delimiter, strict=True)
                for row in rows:
                    if None in row:
                        raise DataError(
                            "the row has more fields than the header",
                            where=f"{path}:{rows.line_num}",
                            fix="quote fields that hold the delimiter",
                        )
                    yield rows.line_num, row
        except UnicodeDecodeError as error:
            raise _wrong_encoding(path, encoding, error) from None
        except csv.Error as error:
            raise DataError(f"not valid CSV: {error}", where=str(path), fix="mend the quoting") from None

    return read


def _read_jsonl(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with _open(path, encoding) as handle:
            for line, text in enumerate(handle, start=1):
                if not text.strip():
                    continue
                row = json.loads(text)
                if not isinstance(row, dict):
                    raise DataError("the line is no JSON object", where=f"{path}:{line}", fix='write one {"column": value, …} a line')
                yield line, row
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, encoding, error) from None
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", where=f"{path}:{line}", fix="write one JSON object a line") from None


def _wrong_encoding(path: Path, encoding: str, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"not {encoding} text (byte {error.start})",
        where=str(path),
        fix='save it as UTF-8, or name its encoding with [data] encoding = "…"',
    )


READERS: dict[str, Callable[[Path, str], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": _read_delimited(","),
    ".tsv": _read_delimited("\t"),
    ".jsonl": _read_jsonl,
}
