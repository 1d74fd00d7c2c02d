"""How a pass trained: its losses as curves, and one sentence on how it went."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgepipe.report import svg
from edgepipe.report.numbers import number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

LEFT, TOP, HEIGHT = 6.0, 8.0, 150.0  # of the plot: per cent, pixels
ENDED = {
    "schedule": "all of its schedule",
    "patience": "until dev no longer got better",
    "minutes": "until the pass's own time limit",
    "deadline": "until the time limit",
}


def training_chart(training: Mapping[str, Any], key: str) -> Markup:
    """Loss on the training data and on dev over the steps, with a mark where dev was best."""
    train, dev = training["train"], training["dev"]
    losses = [float(loss) for _, loss in (*train, *dev)]
    low, high = min(0.0, *losses), 1.05 * max(losses) or 1.0
    steps = max(1, int(training["steps"]))

    def x(step: float) -> float:
        return LEFT + (100 - LEFT) * step / steps

    def y(loss: float) -> float:
        return TOP + HEIGHT * (high - loss) / (high - low)

    levels = [level for level in svg.ticks(low, high) if level <= high]
    parts = []
    for level in levels:
        parts += [
            svg.segment(LEFT, y(level), 100, y(level), "grid"),
            svg.text(0, y(level) + 4, number(level, svg.tick_decimals(levels)), "quiet"),
        ]
    for points, kind in ((train, "whisker before"), (dev, "whisker")):
        parts += _curve([(x(step), y(loss)) for step, loss in points], kind)
    best = min(dev, key=lambda point: float(point[1]))
    parts.append(svg.dot(x(best[0]), y(best[1]), "after"))
    marks = [step for step in svg.ticks(0, steps) if 0 <= step <= steps]
    parts += [part for step in marks for part in svg.tick(x(step), TOP + HEIGHT, number(step, 0) + (" steps" if step == marks[-1] else ""))]
    parts.append(svg.axis(TOP + HEIGHT, LEFT))
    return svg.drawing(TOP + HEIGHT + 22, "Loss while training", training_text(training), parts, key)


def training_text(training: Mapping[str, Any]) -> str:
    start, best = training["dev"][0][1], min(loss for _, loss in training["dev"])
    return (
        f"{training['steps']} of {training['of_steps']} steps, {ENDED[training['ended']]}; loss on dev {number(start)} → {number(best)}, "
        f"best at step {training['best_step']}"
    )


def _curve(points: Sequence[tuple[float, float]], kind: str) -> list[Markup]:
    return [svg.segment(*a, *b, kind) for a, b in pairwise(points)]
