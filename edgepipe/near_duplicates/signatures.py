"""MinHash signatures (by rensa) cut into bands for locality-sensitive hashing.

Two texts of Jaccard similarity s have the same key in a band of r values with probability s^r, so in one of b bands with
1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4). The longest bands that still find what is
asked for are taken: they propose the fewest pairs that are not alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.near_duplicates.windows import mixed

if TYPE_CHECKING:
    from edgepipe.near_duplicates.windows import WindowSets

PERMUTATIONS = 128
SEED = 42
FOUND = 0.98  # of the pairs right at the threshold; of those above it, more
LOWEST = 0.3  # below, bands are so short that everything is like everything


@dataclass(frozen=True, slots=True)
class Bands:
    rows: int
    count: int


def bands_for(threshold: float) -> Bands:
    """The longest bands of `PERMUTATIONS` values in which pairs at the threshold meet with probability `FOUND`."""
    fitting = [Bands(rows, PERMUTATIONS // rows) for rows in range(1, PERMUTATIONS + 1)]
    return [bands for bands in fitting if chance(threshold, bands) >= FOUND][-1]


def chance(similarity: float, bands: Bands) -> float:
    """That two texts this similar meet in a band."""
    return float(1 - (1 - similarity**bands.rows) ** bands.count)


def band_keys(sets: WindowSets, bands: Bands) -> np.ndarray:
    """[bands, texts]: texts with the same key in a band are candidates. Texts without windows have keys that mean nothing."""
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.ascontiguousarray(sets.hashes), sets.offsets.astype(np.uint64), PERMUTATIONS, SEED
    )
    values = np.fromiter(chain.from_iterable(matrix.to_rows()), np.uint64, len(sets) * PERMUTATIONS)
    values = values.reshape(len(sets), PERMUTATIONS)[:, : bands.rows * bands.count].reshape(len(sets), bands.count, bands.rows)
    keys = np.zeros((len(sets), bands.count), np.uint64)
    for value in range(bands.rows):
        keys = mixed(keys * np.uint64(0x9E3779B97F4A7C15) + values[:, :, value])
    return np.ascontiguousarray(keys.T)


def versions() -> dict[str, object]:
    """What signatures depend on."""
    from importlib.metadata import version

    return {"rensa": version("rensa"), "permutations": PERMUTATIONS, "seed": SEED, "found": FOUND}
