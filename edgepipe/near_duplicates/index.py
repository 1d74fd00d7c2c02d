"""An index of texts by locality-sensitive hashing: built once, on disk read where it is needed, asked in milliseconds.

Of texts with the same windows only the first stands in the bands. A band is its keys in order with the texts they belong to,
so texts that share a key lie side by side, and a key is found by binary search without reading the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.errors import InputError
from edgepipe.near_duplicates.signatures import band_keys, bands_for, versions
from edgepipe.near_duplicates.similarity import similarities
from edgepipe.near_duplicates.windows import WINDOW, WindowSets, joined, mixed, window_sets
from edgepipe.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edgepipe.near_duplicates.windows import Text
    from edgepipe.progress import Progress

BATCH = 20_000  # texts
ARRAYS = ("offsets", "hashes", "keys", "rows", "same", "order", "ordered")


@dataclass(frozen=True, slots=True)
class Index:
    """`keys`, `rows` [bands, distinct]: each band in order; `same` [texts]: the first text with the same windows as this one;
    `order` [texts]: the texts with equal ones side by side, `ordered` [texts]: their `same`."""

    threshold: float
    sets: WindowSets
    keys: np.ndarray
    rows: np.ndarray
    same: np.ndarray
    order: np.ndarray
    ordered: np.ndarray

    def __len__(self) -> int:
        return len(self.same)

    def nearest(self, text: Text, top: int = 10) -> list[tuple[int, float]]:
        """(row, exact similarity) of the texts most like this one, best first; those under the threshold may be missed."""
        asked = window_sets([text])
        if not len(asked.hashes):
            return []
        bands = bands_for(self.threshold)
        found = np.unique(np.concatenate([self._with_key(band, key) for band, key in enumerate(band_keys(asked, bands)[:, 0])]))
        values = similarities(self.sets, found, asked, np.zeros(len(found), np.int64))
        result: list[tuple[int, float]] = []
        for place in np.lexsort((found, -values)):
            if len(result) >= top or not values[place]:
                break
            result += [(int(row), float(values[place])) for row in self.same_as(int(found[place]))]
        return result[:top]

    def same_as(self, first: int) -> np.ndarray:
        """Every row with the same windows as that first one."""
        key = np.int32(first)  # of the array's own type, or all of it would be converted
        low, high = self.ordered.searchsorted(key), self.ordered.searchsorted(key, side="right")
        return np.asarray(self.order[low:high])

    def _with_key(self, band: int, key: np.uint64) -> np.ndarray:
        keys = self.keys[band]
        low = keys.searchsorted(key)
        if low == len(keys) or keys[low] != key:
            return self.rows[band, :0]
        return np.asarray(self.rows[band, low : low + keys[low:].searchsorted(key, side="right")])

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        for name, array in self._arrays().items():
            np.save(folder / f"{name}.npy", array)
        (folder / "index.json").write_text(
            json.dumps({"threshold": self.threshold, "versions": versions(), **about}, indent=1), encoding="utf-8"
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"offsets": self.sets.offsets, "hashes": self.sets.hashes} | {name: getattr(self, name) for name in ARRAYS[2:]}


def load_index(folder: Path) -> tuple[Index, dict[str, Any]]:
    """The index of a folder, mapped, not read, and what was said about it. Raises `InputError` where there is none."""
    arrays = mapped(folder, ARRAYS)
    try:
        about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        threshold = float(about["threshold"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_index(folder, error) from None
    if about.get("versions") != versions():
        raise InputError(
            "the index was made by another version", where=str(folder), fix="delete the folder and name the table: it is built again"
        )
    return Index(threshold, WindowSets(arrays["offsets"], arrays["hashes"]), *(arrays[name] for name in ARRAYS[2:])), about


def mapped(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an index's folder by name."""
    try:
        # as plain arrays: numpy's memmap class makes a small query a third slower
        return {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in names}
    except (OSError, ValueError) as error:
        raise _no_index(folder, error) from None


def _no_index(folder: Path, error: Exception) -> InputError:
    fix = "name a table, or a folder that `edgepipe data search --index` wrote"
    return InputError(f"the folder is no index: {error}", where=str(folder), fix=fix)


def index_of(texts: Sequence[Text], threshold: float, progress: Progress | None = None, *, groups: np.ndarray | None = None) -> Index:
    """An index that finds pairs of at least this similarity. Of texts with the same windows, each of the `groups` keeps one."""
    show, bands = progress or Silent(), bands_for(threshold)
    parts: list[WindowSets] = []
    keys = np.empty((bands.count, len(texts)), np.uint64)
    for start, batch in _batches(texts):
        parts.append(window_sets(batch, WINDOW))
        keys[:, start : start + len(batch)] = band_keys(parts[-1], bands)
        show.update("index", "texts", start + len(batch), len(texts))
    sets = joined(parts)
    del parts
    same = _first_alike(sets, np.zeros(len(sets), np.int64) if groups is None else groups)
    distinct = np.flatnonzero((same == np.arange(len(same))) & (np.diff(sets.offsets) > 0)).astype(np.int32)
    rows = np.empty((bands.count, len(distinct)), np.int32)
    for band in range(bands.count):  # in place: a second copy of the keys is what would take most memory
        kept = keys[band, distinct]
        order = np.argsort(kept, kind="stable")
        keys[band, : len(distinct)], rows[band] = kept[order], distinct[order]
    order = np.argsort(same, kind="stable").astype(np.int32)
    return Index(threshold, sets, keys[:, : len(distinct)], rows, same, order, same[order])


def _batches(texts: Sequence[Text]) -> Iterator[tuple[int, Sequence[Text]]]:
    for start in range(0, len(texts), BATCH):
        yield start, texts[start : start + BATCH]


def _first_alike(sets: WindowSets, groups: np.ndarray) -> np.ndarray:
    """For each text the first of its group with the same windows; one without windows is like none."""
    sums = np.zeros(len(sets.hashes) + 1, np.uint64)
    np.cumsum(mixed(sets.hashes), out=sums[1:])
    counts = np.diff(sets.offsets)
    whole = mixed(sums[sets.offsets[1:]] - sums[sets.offsets[:-1]] + mixed(counts.astype(np.uint64)) + mixed(groups.astype(np.uint64)))
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    return np.where(counts > 0, first[inverse], np.arange(len(counts))).astype(np.int32)
