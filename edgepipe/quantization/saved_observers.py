"""Observers in a file, so that one run over the calibration data serves every pass and every later build."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgepipe.quantization.observers import Observer, Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NUMBERS = (
    "count",
    "samples",
    "nonfinite",
    "nonfinite_samples",
    "rows",
    "zeros",
    "exponent",
    "low",
    "high",
    "row_spread_sum",
    "row_spread_max",
)
_ARRAYS = {"counts": "counts", "channels": "channels", "moments": "_moments"}  # as read, as set


def save(observers: Mapping[str, Observer], path: Path) -> None:
    """Write observers to one .npz file."""
    import numpy as np

    head = [
        {
            "name": one.name,
            "wanted": [one.wanted.channel_axis, one.wanted.second_moments],
            **{field: getattr(one, field) for field in _NUMBERS},
        }
        for one in observers.values()
    ]
    arrays = {
        f"{index}.{field}": getattr(one, field)
        for index, one in enumerate(observers.values())
        for field in _ARRAYS
        if getattr(one, field) is not None
    }
    with path.open("wb") as handle:
        np.savez_compressed(handle, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)


def load(path: Path) -> dict[str, Observer]:
    """Read what `save` wrote."""
    import numpy as np

    found = {}
    with np.load(path, allow_pickle=False) as stored:
        for index, entry in enumerate(json.loads(stored["head"].tobytes())):
            one = Observer(entry["name"], Wanted(*entry["wanted"]))
            for field in _NUMBERS:
                setattr(one, field, entry[field])
            for field, place in _ARRAYS.items():
                if f"{index}.{field}" in stored:
                    setattr(one, place, stored[f"{index}.{field}"])
            found[one.name] = one
    return found
