"""Verdicts on latency: times against the limit and its noise, or a prediction with its whole interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.intervals import median_interval, ratio_interval
from edgepipe.measure import BUSY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgepipe.config import Budget
    from edgepipe.measure import Measurement
    from edgepipe.result import Result

LOADED, SLOWED = "other programs used", "the device slowed itself down"
SURE = 99.0  # per cent; several shapes are judged, and one unlucky of them would fail the build


def latency_rows(measured: Measurement, budget: Budget, row: Callable[..., Result]) -> list[Result]:
    """Latency by times, by prediction, or the reason why there is neither. `row` makes a figure with its verdict."""
    if measured.timings:
        return _timed(measured, budget, row)
    if measured.predicted:
        return [_predicted(entry, budget, row) for entry in measured.predicted]
    why = measured.unpredicted or "emulated times are no latencies"
    conditions = {"batch": 1, "length": "task", "threads": measured.threads}
    return [row("latency", "median", "ms", None, held=False, doubt=why, conditions=conditions)]


def disturbance(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of a build's rows: why its times prove nothing, since something disturbed them; empty where nothing did."""
    reasons = (str(row.get("reason") or "").split("; ")[0] for row in rows if row["axis"] == "latency" and row.get("verdict") == "unproven")
    return next((reason for reason in reasons if reason.startswith((LOADED, SLOWED))), "")


def _predicted(entry: Mapping[str, Any], budget: Budget, row: Callable[..., Result]) -> Result:
    """A predicted latency proves its budget only with the whole interval on one side."""
    conditions = {"batch": entry["batch"], "length": entry["length"], "threads": entry["threads"]}
    before, after, ratio = entry["baseline"], entry["candidate"], entry["ratio"]
    limit = budget.max_latency_ratio * before["ms"]
    over, under = ratio["low"] > budget.max_latency_ratio, ratio["high"] <= budget.max_latency_ratio
    if entry["length"] == "task" and budget.max_latency_ms is not None:
        limit = min(limit, budget.max_latency_ms)
        over, under = over or after["low"] > budget.max_latency_ms, under and after["high"] <= budget.max_latency_ms
    reason = f"{1 / ratio['value']:.2f} × as fast as float32 [{1 / ratio['high']:.2f}, {1 / ratio['low']:.2f}], 90 % interval"
    if entry["unchecked"]:
        reason += f"; never checked on a board, so the interval is wider: {', '.join(entry['unchecked'])}"
    reason = "; ".join([reason, *entry["reasons"]])
    doubt = "" if over or under else "the interval reaches over the limit"
    return row(
        "latency",
        "median",
        "ms",
        after["ms"],
        held=under,
        doubt=doubt,
        reason=reason,
        baseline=before["ms"],
        budget=limit,
        interval=(after["low"], after["high"]),
        conditions=conditions,
    )


def _timed(measured: Measurement, budget: Budget, row: Callable[..., Result]) -> list[Result]:
    busy = f"{LOADED} {measured.other_load:.0%} of the machine meanwhile" if measured.other_load > BUSY else ""
    slowed = f"{SLOWED} meanwhile ({measured.slowed})" if measured.slowed else ""
    rows = []
    for timing in measured.timings:
        conditions = {"batch": timing.batch, "length": timing.length, "threads": measured.threads}
        before, after = float(np.median(timing.baseline_ms)), float(np.median(timing.candidate_ms))
        spread = ratio_interval(timing)
        reason = f"{before / after:.2f} × as fast as float32 [{1 / spread[1]:.2f}, {1 / spread[0]:.2f}]"
        more: dict[str, Any] = {"baseline": before, "n": len(timing.candidate_ms), "conditions": conditions}
        if timing.end_to_end:
            rows.append(
                row(
                    "latency",
                    "end-to-end median",
                    "ms",
                    after,
                    reason=f"with encoding, {reason}",
                    interval=median_interval(timing.candidate_ms),
                    **more,
                )
            )
            continue
        limit = budget.max_latency_ratio * before
        if timing.length == "task" and budget.max_latency_ms is not None:
            limit = min(limit, budget.max_latency_ms)
        # Figure and limit move together when the machine does, so the interval is that of the ratio.
        surely_over = ratio_interval(timing, SURE)[0] * before > limit
        noise = "" if after <= limit or surely_over else "over the limit by less than the noise"
        rows.append(
            row(
                "latency",
                "median",
                "ms",
                after,
                held=after <= limit,
                doubt=slowed or busy or noise,
                reason=reason,
                budget=limit,
                interval=median_interval(timing.candidate_ms),
                **more,
            )
        )
        if timing.length == "task":
            rows.append(
                row(
                    "latency",
                    "p95",
                    "ms",
                    float(np.percentile(timing.candidate_ms, 95)),
                    **{**more, "baseline": float(np.percentile(timing.baseline_ms, 95))},
                )
            )
        rate = [1000 * timing.batch / float(np.mean(times)) for times in (timing.baseline_ms, timing.candidate_ms)]
        rows.append(row("latency", "throughput", "samples/s", rate[1], better="higher", **{**more, "baseline": rate[0]}))
    return rows
