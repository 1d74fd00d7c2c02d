"""The index of a table on disk, with its texts: in EDGEPIPE_CACHE by what the table holds, or in a folder of the user's."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.artifact import digest, sha256_file
from edgepipe.errors import DataError, UsageError
from edgepipe.near_duplicates.index import index_of, load_index, mapped
from edgepipe.near_duplicates.signatures import versions
from edgepipe.near_duplicates.tables import Columns, read_text_table
from edgepipe.near_duplicates.windows import WINDOW, sides_of
from edgepipe.store import disk_errors
from edgepipe.unpacked import unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepipe.near_duplicates.index import Index
    from edgepipe.near_duplicates.windows import Text
    from edgepipe.progress import Progress

SEARCHED = 0.5  # similarity above which a search finds nearly everything


@dataclass(frozen=True, slots=True)
class SavedIndex:
    folder: Path
    index: Index
    starts: np.ndarray  # [texts + 1], bytes
    blob: np.ndarray

    def text(self, row: int) -> str:
        """A row's text, or both of its pair with " / " between."""
        return bytes(self.blob[self.starts[row] : self.starts[row + 1]]).decode()


def open_index(source: Path, columns: Columns, folder: Path | None, progress: Progress | None = None) -> SavedIndex:
    """The index of a table, built where it is not there yet, or of a folder that holds one.

    Raises `UsageError` where `folder` holds something else.
    """
    if source.is_dir():
        return _opened(source)[0]
    if not source.is_file():
        raise DataError("no such file", where=str(source), fix="check the path")

    def build(into: Path) -> None:
        _write(read_text_table(source, columns).texts(), into, {"key": _key(source, columns)}, progress)

    if folder is None:
        return _opened(unpacked([source], _what(columns), build))[0]
    if not folder.exists():
        _build_aside(folder, build)
    saved, about = _opened(folder)
    if about.get("key") != _key(source, columns):
        raise UsageError("the index is of another table, or of other columns", where=str(folder), fix="name another folder, or delete it")
    return saved


def _what(columns: Columns) -> str:
    return f"index {digest([asdict(columns), SEARCHED, WINDOW, versions()])}"


def _key(source: Path, columns: Columns) -> str:
    return digest([_what(columns), sha256_file(source)])


def _write(texts: Sequence[Text], into: Path, about: dict[str, Any], progress: Progress | None) -> None:
    index_of(texts, SEARCHED, progress).save(into, about)
    shown = [" / ".join(sides_of(text)).encode("utf-8", "replace") for text in texts]
    starts = np.zeros(len(shown) + 1, np.int64)
    np.cumsum([len(text) for text in shown], out=starts[1:])
    np.save(into / "starts.npy", starts)
    np.save(into / "blob.npy", np.frombuffer(b"".join(shown), np.uint8))


def _build_aside(folder: Path, build: Callable[[Path], None]) -> None:
    """Whole or not at all."""
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
        try:
            build(building)
            building.chmod(0o755)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _opened(folder: Path) -> tuple[SavedIndex, dict[str, Any]]:
    index, about = load_index(folder)
    return SavedIndex(folder, index, **mapped(folder, ("starts", "blob"))), about
