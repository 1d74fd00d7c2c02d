"""Tables as a user keeps them: every column of every row, read for its text and label, and written again in its own format."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.dataset_folder import import_pyarrow, unreadable
from edgepipe.errors import DataError, UsageError, nearest
from edgepipe.readers import READERS
from edgepipe.store import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepipe.near_duplicates.windows import Text

DELIMITERS = {".csv": ",", ".tsv": "\t"}
KNOWN = (*READERS, ".parquet")


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns are called; `text` is `tokens` where a table has that and no `text`."""

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True)
class TextTable:
    """One file. `rows` are dicts, or for Parquet the Arrow table."""

    path: Path
    columns: Columns
    names: tuple[str, ...]
    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self) -> list[Text]:
        """The text of each row, or its pair; what is empty is "". Raises `DataError` where there is no such column."""
        named = "tokens" if self.columns.text == "text" and "text" not in self.names and "tokens" in self.names else self.columns.text
        first = [_text(value) for value in self._column(named, "--text")]
        if self.columns.text_pair is None:
            return list(first)
        return list(zip(first, map(_text, self._column(self.columns.text_pair, "--text-pair")), strict=True))

    def labels(self) -> list[str | None]:
        """One for each row; None where it has none, or a list, or where there is no such column."""
        if self.columns.label not in self.names:
            return [None] * len(self)
        values = self._column(self.columns.label, "--label")
        return [str(value) if isinstance(value, (str, int, float)) and value != "" else None for value in values]

    def _column(self, name: str, option: str) -> list[Any]:
        if name not in self.names:
            fix = f"{nearest(name, self.names)} Name the column with {option} COLUMN"
            raise DataError(f'column "{name}" is missing', where=str(self.path), fix=fix)
        if self.path.suffix.lower() == ".parquet":
            values: list[Any] = self.rows.column(name).to_pylist()
            return values
        return [row.get(name) for row in self.rows]

    def encoded(self, kept: Sequence[int]) -> bytes:
        """These rows as a file of the same format."""
        kind = self.path.suffix.lower()
        if kind == ".parquet":
            return _parquet(self.rows.take(list(kept)))
        rows = [self.rows[row] for row in kept]
        if kind == ".jsonl":
            return _in_encoding("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), rows, self.columns.encoding)
        text = io.StringIO()
        writer = csv.writer(text, delimiter=DELIMITERS[kind], lineterminator="\n")
        writer.writerow(self.names)
        writer.writerows(["" if row.get(name) is None else row[name] for name in self.names] for row in rows)
        return text.getvalue().encode(self.columns.encoding)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _in_encoding(text: str, rows: Sequence[Mapping[str, Any]], encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can escape and no encoding holds
        return "".join(json.dumps(row) + "\n" for row in rows).encode(encoding)


def _parquet(table: Any) -> bytes:
    import pyarrow
    import pyarrow.parquet

    target = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, target)
    data: bytes = target.getvalue().to_pybytes()
    return data


def read_text_table(path: Path, columns: Columns) -> TextTable:
    """The whole file. Raises `DataError` naming file and line where it is broken or empty."""
    kind = path.suffix.lower()
    if path.is_dir() or kind not in KNOWN:
        what = "a folder is no table" if path.is_dir() else f'data files of type "{path.suffix}" are not known'
        raise UsageError(what, where=str(path), fix=f"name a file of type {', '.join(sorted(KNOWN))}")
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix="check the path")
    rows: Any = _read_parquet(path) if kind == ".parquet" else [row for _, row in READERS[kind](path, columns.encoding)]
    if not len(rows):
        raise DataError("there are no rows", where=str(path), fix="give it rows")
    names = tuple(rows.column_names) if kind == ".parquet" else tuple(dict.fromkeys(name for row in rows for name in row))
    return TextTable(path, columns, names, rows)


def _read_parquet(path: Path) -> Any:
    import_pyarrow(path)
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.read()
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(path, error) from None


def write_tables(files: Mapping[Path, bytes], *, force: bool) -> None:
    """All of the files, each whole or not at all. Raises `UsageError` where one is there already and `force` is off."""
    for path in files:
        if path.exists() and not (force and path.is_file()):
            fix = "choose another place, or replace it with --force" if path.is_file() else "choose another place"
            raise UsageError("there is something at that place already", where=str(path), fix=fix)
    for path, data in files.items():
        write_atomic(path, data)
