"""Accuracy against size and against latency as one SVG: dots with their 95 % interval, the best of each size joined by a line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH, HEIGHT, PAD = 620, 460, 56
OURS, THEIRS, UNTAUGHT = "#2563eb", "#c2410c", "#7c3aed"
LOWEST = 78.0  # points: what lies below is drawn on the floor, with its value


def plot(rows: Sequence[dict[str, Any]], peers: Sequence[str]) -> str:
    panels = (("bytes", 1e6, "size, MB"), ("rpi4_ms", 1.0, "Raspberry Pi 4 at 1 × 128, predicted ms"))
    inner = "".join(_panel(rows, peers, index * WIDTH, *panel) for index, panel in enumerate(panels))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT + 40}" font-family="sans-serif" font-size="12">'
    return f'{head}<rect width="100%" height="100%" fill="white"/>{inner}{_legend(rows, peers)}</svg>\n'


def _panel(rows: Sequence[dict[str, Any]], peers: Sequence[str], left: float, key: str, scale: float, label: str) -> str:
    values = [row[key] / scale for row in rows]
    low, high = min(values) / 1.2, max(values) * 1.2
    top = math.ceil(max(row["points"] for row in rows) + 1)

    def x(value: float) -> float:
        return left + PAD + (WIDTH - 1.5 * PAD) * math.log(value / low) / math.log(high / low)

    def y(points: float) -> float:
        return 20 + (HEIGHT - PAD - 20) * (top - max(points, LOWEST)) / (top - LOWEST)

    parts = [_axes(x, y, low, high, top, left, label)]
    reference = next(row for row in rows if row["name"] == "float32")
    floor = y(reference["points"] - 1.0)
    parts.append(
        f'<line x1="{left + PAD}" x2="{left + WIDTH - PAD / 2}" y1="{floor:.1f}" y2="{floor:.1f}" stroke="#b91c1c" stroke-dasharray="5 4"/>'
    )
    parts.append(f'<text x="{left + WIDTH - PAD / 2}" y="{floor - 5:.1f}" text-anchor="end" fill="#b91c1c">1.0 point below float32</text>')
    best = _best(rows, peers, key)
    joined = " ".join(f"{x(row[key] / scale):.1f},{y(row['points']):.1f}" for row in best)
    parts.append(f'<polyline points="{joined}" fill="none" stroke="{OURS}" opacity="0.35" stroke-width="2"/>')
    for number, row in enumerate(rows, start=1):
        px, py, colour = x(row[key] / scale), y(row["points"]), _colour(row, peers)
        above, below = (y(reference["points"] - bound) for bound in row["interval"])
        if row["points"] > LOWEST:
            parts.append(f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{above:.1f}" y2="{below:.1f}" stroke="{colour}" opacity="0.35"/>')
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="9" fill="{colour}"/><text x="{px:.1f}" y="{py + 4:.1f}" fill="white" text-anchor="middle" font-size="11">{number}</text>'
        )
    return "".join(parts)


def _axes(x: Callable[[float], float], y: Callable[[float], float], low: float, high: float, top: int, left: float, label: str) -> str:
    parts = []
    for points in range(math.ceil(LOWEST), top + 1, 2):
        parts.append(f'<line x1="{left + PAD}" x2="{left + WIDTH - PAD / 2}" y1="{y(points):.1f}" y2="{y(points):.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left + PAD - 8}" y="{y(points) + 4:.1f}" text-anchor="end" fill="#555">{points}</text>')
    for value in (step * 10**power for power in range(-1, 4) for step in (1, 2, 5)):
        if low <= value <= high:
            parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - PAD + 18}" text-anchor="middle" fill="#555">{value:g}</text>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{HEIGHT - PAD + 38}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="{left + 14}" y="14" fill="#555">accuracy, points</text>')
    return "".join(parts)


def _best(rows: Sequence[dict[str, Any]], peers: Sequence[str], key: str) -> list[dict[str, Any]]:
    """Of ours those that none other beats on both axes."""
    ours = [row for row in rows if row["name"] not in peers]
    return sorted(
        (row for row in ours if not any(other[key] < row[key] and other["points"] >= row["points"] for other in ours)),
        key=lambda row: row[key],
    )


def _colour(row: dict[str, Any], peers: Sequence[str]) -> str:
    return THEIRS if row["name"] in peers else UNTAUGHT if "without" in row["name"] else OURS


def _legend(rows: Sequence[dict[str, Any]], peers: Sequence[str]) -> str:
    parts = []
    for number, row in enumerate(rows):
        column, line = divmod(number, -(-len(rows) // 5))
        name = row["name"].replace("≤", "at most")
        place = f'x="{20 + column * 245}" y="{HEIGHT - 4 + line * 15}"'
        parts.append(f'<text {place} fill="{_colour(row, peers)}" font-size="11">{number + 1} {name}</text>')
    return "".join(parts)
