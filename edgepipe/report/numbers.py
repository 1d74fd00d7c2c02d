"""Numbers with their units as a person reads them: a result's figure, limit, interval and conditions as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MINUS, NONE = "\u2212", "–"
WHOLE = ("model", "pipeline")  # what a figure of everything is of
DECIMALS = {"points": 2, "samples/s": 1, "operator types": 0}


def named(row: Mapping[str, Any]) -> str:
    """A result's metric; of one component of several, which one."""
    component = row.get("component", "model")
    return str(row["metric"]) + ("" if component in WHOLE else f" of the {component}")


def number(value: float | None, decimals: int = 2, *, sign: bool = False) -> str:
    """`1,234.50` with a true minus sign and no negative zero; `–` for None."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def short(value: float | None) -> str:
    """Three significant digits, for tolerances: `9.54e-07`, `0.1`."""
    return NONE if value is None else f"{value:.3g}".replace("-", MINUS)


def figure(value: float | None, unit: str) -> str:
    """A result's number in its unit's usual digits, without the unit. Bytes as MB (10^6), shares as per cent, times with three digits."""
    if value is None:
        return NONE
    if unit == "bytes":
        return number(value / 1e6)
    if unit == "share":
        return number(100 * value)
    if unit == "ms":
        return number(value, 4 if 0 < value < 0.1 else 2 if value < 9.995 else 1 if value < 99.95 else 0)
    if unit == "":
        return number(value, 5) if abs(value) >= 1e-3 else short(value)
    return number(value, DECIMALS[unit]) if unit in DECIMALS else short(value)


def unit_name(unit: str) -> str:
    return {"bytes": "MB", "share": "%"}.get(unit, unit)


def with_unit(value: float | None, unit: str) -> str:
    return f"{figure(value, unit)} {unit_name(unit)}".strip()


def limit_text(row: Mapping[str, Any], *, unit: bool = True) -> str:
    """`≤ 4.32 ms`, or `≥ 99.00 %` for a figure of which more is better."""
    if row.get("budget") is None:
        return NONE
    sign = "≥" if row.get("better") == "higher" else "≤"
    named = unit and row["unit"] != "operator types"
    return f"{sign} {(with_unit if named else figure)(row['budget'], row['unit'])}"


def interval_text(row: Mapping[str, Any]) -> str:
    interval = row.get("interval")
    return f"{figure(interval[0], row['unit'])} to {figure(interval[1], row['unit'])}" if interval else NONE


def level(row: Mapping[str, Any]) -> int:
    """Per cent that the row's interval covers: 90 of a prediction, which is checked on few boards; else 95."""
    return 90 if row.get("provenance") == "predicted" else 95


def speed_text(row: Mapping[str, Any]) -> str:
    """`1.46 ×` as fast as the baseline; nothing where one of the two is missing."""
    return f"{number(row['baseline'] / row['value'])} ×" if row.get("baseline") and row.get("value") else ""


def change_text(row: Mapping[str, Any]) -> str:
    """`4.32 → 2.27 ms`, or the value alone where there is no baseline; operators as `0 of 16 operator types`."""
    if row.get("value") is None:
        return "no figure"
    if row["unit"] == "operator types" and row.get("n"):
        return f"{figure(row['value'], row['unit'])} of {with_unit(row['n'], row['unit'])}"
    before = "" if row.get("baseline") is None else f"{figure(row['baseline'], row['unit'])} → "
    return before + with_unit(row.get("value"), row["unit"])


def conditions_text(conditions: Mapping[str, Any]) -> str:
    """`1 × 128, 2 threads`; `task lengths, batch 1, 2 threads`."""
    rest = dict(conditions)
    batch, length, threads = rest.pop("batch", None), str(rest.pop("length", "") or ""), rest.pop("threads", None)
    parts = []
    if length.isdigit() and batch is not None:
        parts.append(f"{batch} × {length}")
    else:
        if length:
            parts.append({"task": "task lengths", "longest": "longest input"}.get(length, f"length {length}"))
        if batch is not None:
            parts.append(f"batch {batch}")
    if threads is not None:
        parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    return ", ".join([*parts, *(f"{key} {value}" for key, value in rest.items())])
