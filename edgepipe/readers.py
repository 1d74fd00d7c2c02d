"""Reads samples from CSV, TSV, JSON Lines, Parquet, image folders and .npz, one file or folder at a time.

A sample is a plain dict: `text` (+ `text_pair`), `tokens`, `image` (a path) or `tensors` ({name: array}), with
`label` when the data has one.
"""

from __future__ import annotations

import csv
import json
import zipfile
from typing import TYPE_CHECKING, Any, TextIO

from edgepipe.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgepipe.config import Data

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}
Sample = dict[str, Any]


def read_folder(folder: Path) -> Iterator[Sample]:
    """A sample for each .npz in the folder, or for each image below it, labelled by the folder it lies in."""
    tensors = sorted(folder.glob("*.npz"))
    if tensors:
        for path in tensors:
            yield {"tensors": _load_npz(path)}
        return
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    for path in images:
        label = path.parent.name if path.parent != folder else None
        yield {"image": str(path), **({"label": label} if label else {})}


def _load_npz(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"not a readable .npz file: {error}", where=str(path), fix="write it with numpy.savez, without pickled objects"
        ) from None


def read_npz_rows(path: Path) -> Iterator[Sample]:
    """Row i of every array is what the model takes for sample i."""
    import numpy as np

    arrays = _load_npz(path)
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(
            f"the arrays have unlike numbers of rows: {lengths}", where=str(path), fix="row i of every array belongs to sample i"
        )
    for index in range(next(iter(lengths.values()))):
        yield {"tensors": {name: np.asarray(array[index]) for name, array in arrays.items()}}


def read_table(path: Path, config: Data, columns: tuple[str, ...]) -> Iterator[Sample]:
    """A sample a row, with the `columns` a task needs; `DataError` naming file, line and column when one is missing."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f'data files of type "{path.suffix}" are not known', where=str(path), fix=f"use {', '.join(sorted(READERS))}, .npz or a folder"
        )
    if not {"text", "tokens"} & set(columns):
        raise DataError("a table holds no images", where=str(path), fix="name a folder that has a folder of images for each label")
    names = {"text": config.text, "text_pair": config.text_pair or "text_pair", "label": config.label}
    names["tokens"] = config.text if config.text != "text" else "tokens"
    for line, row in reader(path, config.encoding):
        sample: Sample = {}
        for column in columns:
            name = names[column]
            if row.get(name) is None or row[name] == "":
                present = [key for key in row if key]
                what = f'column "{name}" is missing' if name not in row else f'column "{name}" is empty'
                option = {"tokens": "text"}.get(column, column)
                raise DataError(what, where=f"{path}:{line}", fix=f'{nearest(name, present)} Name the column with [data] {option} = "…"')
            sample[column] = row[name]
        if "text" in sample and config.text_pair and "text_pair" not in sample:
            if row.get(config.text_pair) is None:
                raise DataError(f'column "{config.text_pair}" is missing', where=f"{path}:{line}", fix=nearest(config.text_pair, row))
            sample["text_pair"] = str(row[config.text_pair])
        if "tokens" in sample and isinstance(sample["tokens"], str):
            sample["tokens"] = sample["tokens"].split()
        if "tokens" in sample and isinstance(sample.get("label"), str):
            sample["label"] = sample["label"].split()
        for column in ("text", "text_pair"):
            if column in sample:
                sample[column] = str(sample[column])
        yield sample


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


def _read_parquet(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("reading Parquet needs pyarrow", where=str(path), fix="pip install 'edgepipe[parquet]'") from None
    try:
        yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
    except pyarrow.ArrowException as error:
        raise DataError(f"not a readable Parquet file: {error}", where=str(path), fix="write the file again") from None


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
    ".parquet": _read_parquet,
}
