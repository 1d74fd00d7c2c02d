"""The parts that charts as inline SVG are made of.

Horizontal places are per cent of the chart's width and vertical ones pixels, so a chart fits a phone and a desk while
its text keeps its size. Colours are CSS classes of the page, so that light and dark both work.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Sequence


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from the first inside [low, high]."""
    rough = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_decimals(steps: Sequence[float]) -> int:
    return next((digits for digits in range(6) if all(abs(round(step, digits) - step) < 1e-9 for step in steps)), 6)


def tick(x: float, y: float, words: str) -> list[Markup]:
    edge = "" if x < 3 else "end" if x > 96 else "middle"
    return [line(x, y, y + 4, "axis"), text(x, y + 17, words, f"quiet {edge}")]


def text(x: float, y: float, words: str, kind: str, *, shift: float = 0) -> Markup:
    """`shift`: pixels to the right, so that a label can stand beside its mark."""
    moved = Markup(' dx="{:g}"').format(shift) if shift else ""
    return Markup('<text x="{:.2f}%" y="{:g}" class="{}"{}>{}</text>').format(x, y, kind, moved, words)


def rect(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    return Markup('<rect x="{:.3f}%" y="{:.1f}" width="{:.3f}%" height="{:.1f}" class="{}"/>').format(x, y, width, height, kind)


def line(x: float, top: float, bottom: float, kind: str) -> Markup:
    """An upright line."""
    return segment(x, top, x, bottom, kind)


def segment(x: float, y: float, to_x: float, to_y: float, kind: str) -> Markup:
    return Markup('<line x1="{:.2f}%" x2="{:.2f}%" y1="{:.4g}" y2="{:.4g}" class="{}"/>').format(x, to_x, y, to_y, kind)


def dot(x: float, y: float, kind: str) -> Markup:
    return Markup('<circle cx="{:.2f}%" cy="{:.4g}" r="5" class="dot {}"/>').format(x, y, kind)


def axis(y: float, left: float = 0) -> Markup:
    return segment(left, y, 100, y, "axis")


def drawing(height: float, title: str, told: str, parts: Sequence[Markup], key: str) -> Markup:
    return Markup(
        '<svg class="chart" role="img" width="100%" height="{height}" aria-labelledby="{key}-title {key}-desc">'
        '<title id="{key}-title">{title}</title><desc id="{key}-desc">{told}</desc>{body}</svg>'
    ).format(height=height, key=key, title=title, told=told, body=Markup("").join(parts))
