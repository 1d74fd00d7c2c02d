"""Borders between nodes: what the plugin wrote of a run, and which border is which node's start or end."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from edgepipe.errors import DeviceError

if TYPE_CHECKING:
    from pathlib import Path

TOLERANCE_US = 300  # between the plugin's clock and the runtime's; writing a border takes longer
LATE_US = 6000  # a border may be this late, and more, where the machine ran something else between the two
MAX_SPARE = 64


@dataclass(frozen=True, slots=True)
class Border:
    time_us: int
    sums: dict[str, int]


def read_borders(path: Path) -> list[list[Border]]:
    """The borders of every measured run, from its begin to its end. Raises `DeviceError` on a torn file."""
    lines = path.read_text(encoding="ascii").splitlines()
    names = lines[0].split()[1:-1] if lines else []
    runs: list[list[Border]] = []
    for line in lines[1:]:
        kind, *values = line.split()
        if kind == "B":
            runs.append([])
        if len(values) == len(names) + 1 and runs:
            runs[-1].append(Border(int(values[-1]), dict(zip(names, map(int, values), strict=False))))
    if not runs or not all(len(run) >= 2 for run in runs):
        raise DeviceError("the instruction counter wrote no whole run", where=str(path), fix="report this with the command's output")
    return runs


def match(borders_us: list[int], points_us: list[int]) -> list[int]:
    """For every start and end of a node, in order, its border: the profiler reads the clock for each, and now and then
    something else does. The two clocks differ by a shift. Raises `DeviceError` when they cannot be brought together."""
    if not points_us:
        return []
    spare = len(borders_us) - len(points_us)
    best: tuple[float, float, list[int]] = (float("inf"), 0.0, [])  # all misfits, the middle one, the borders
    skips = range(min(spare, MAX_SPARE) + 1)
    shifts = {borders_us[skip] - points_us[0] for skip in skips} | {borders_us[-1 - skip] - points_us[-1] for skip in skips}
    for shift in sorted(shifts):
        offset = float(shift)
        for _ in range(2):  # the border it comes from may be late: again with the shift that most points agree on
            matched = align(borders_us, [point + offset for point in points_us], spare)
            offset += median(borders_us[b] - point - offset for b, point in zip(matched, points_us, strict=True))
        misfits = [abs(borders_us[b] - point - offset) for b, point in zip(matched, points_us, strict=True)]
        best = min(best, (sum(min(misfit, LATE_US) for misfit in misfits), median(misfits), matched))
    if not best[2] or best[1] > TOLERANCE_US:
        raise DeviceError(
            f"{len(points_us)} node borders in the profile and {len(borders_us)} counted ones do not match",
            where="devices/emulation/count.c",
            fix="count again on a less busy machine",
        )
    return best[2]


def align(borders_us: list[int], points_us: list[float], spare: int) -> list[int]:
    """The cheapest assignment of points to borders that keeps both orders and skips `spare` borders."""
    costs = [0.0] * (spare + 1)  # of the best assignment so far, by how many borders were skipped
    choices: list[list[int]] = []
    for index, point in enumerate(points_us):
        chosen, best = [], 0
        fresh = []
        for skipped in range(spare + 1):
            if costs[skipped] < costs[best]:
                best = skipped
            chosen.append(best)
            fresh.append(costs[best] + min(abs(borders_us[index + skipped] - point), LATE_US))
        choices.append(chosen)
        costs = fresh
    skipped = min(range(spare + 1), key=lambda k: costs[k])
    result = []
    for index in range(len(points_us) - 1, -1, -1):
        result.append(index + skipped)
        skipped = choices[index][skipped]
    return result[::-1]
