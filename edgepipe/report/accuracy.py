"""Accuracy on the page: figures with their intervals, by class, the samples that changed, and what the target itself ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.report import charts
from edgepipe.report.numbers import number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class ClassChange:
    name: str
    n: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Samples whose label changed in one direction."""

    kind: str  # lost | gained | other
    title: str
    samples: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class AccuracyView:
    row: Mapping[str, Any]
    chart: Markup


def accuracy_views(rows: Sequence[Mapping[str, Any]], key: str) -> Iterable[AccuracyView]:
    found = [row for row in rows if row["axis"] == "accuracy" and row.get("value") is not None]
    for index, row in enumerate(found):
        title, name = f"{row['metric']}, {row['unit']}", f"{key}-accuracy{index}"
        after = (row["value"], row.get("interval"), "after")
        if row.get("baseline") is not None:
            yield AccuracyView(
                row, charts.interval_chart([("before", row["baseline"], None, "before"), ("after", *after)], (), title, name)
            )
        elif row.get("budget") is not None:
            lines = [(0.0, "", "axis"), (row["budget"], f"limit {number(row['budget'])}", "limit")]
            yield AccuracyView(row, charts.interval_chart([("drop", *after)], lines, title, name))


def transfer_text(measured: Mapping[str, Any], device: str) -> str:
    """Which samples an emulated target ran itself, and how far its answers were from this machine's; nothing for another."""
    found = measured.get("transfer") or {}
    random, nearest, near = (len(found.get(name) or ()) for name in ("random", "nearest", "near"))
    agreement = found.get("agreement") or {}
    if not random or not agreement:
        return ""
    of = int(agreement.get("of", random))
    everything = of <= random
    ran = (
        f"{device}'s own kernels ran all {number(random, 0)} test samples"
        if everything
        else (
            f"{device}'s own kernels ran {number(random, 0)} random test samples"
            + (f" and the {number(nearest, 0)} nearest to a tie besides" if nearest else "")
            + (f" ({number(near, 0)} of the random ones are as near)" if near else "")
            + f"; this machine ran all {number(of, 0)}"
        )
    )
    differ = f"Their answers differ from this machine's on {number(agreement['differ'], 0)} of the {number(random, 0)}{'' if everything else ' random ones'}"
    if nearest and not everything:
        differ += f" and on {number(agreement['nearest_differ'], 0)} of the {number(nearest, 0)} nearest"
    differ += f"; outputs are at most {number(100 * agreement.get('max_share', 0.0))} % of the largest one apart"
    before = found.get("baseline_agreement") or {}
    text = f"{ran}. {differ}."
    if before:
        same = not before.get("differ") and not before.get("beyond")
        text += (
            f" The float32 model gave the same there and here on {number(before['n'], 0)} samples, so its other answers are this machine's."
            if same
            else (
                f" The float32 model's outputs were not the same there and here on {number(max(before.get('differ', 0), before.get('beyond', 0)), 0)} of"
                f" {number(before['n'], 0)} samples, so it ran there too."
            )
        )
    return text


def class_changes(measured: Mapping[str, Any]) -> list[ClassChange]:
    return [ClassChange(name, int(c["n"]), int(c["baseline"]), int(c["candidate"])) for name, c in (measured.get("classes") or {}).items()]


def label_changes(measured: Mapping[str, Any]) -> Iterable[Changes]:
    groups: dict[str, list[Mapping[str, Any]]] = {"lost": [], "gained": [], "other": []}
    for sample in measured.get("changed") or ():
        true = sample.get("label")
        groups[
            "other" if true is None or true not in (sample["before"], sample["after"]) else "lost" if sample["before"] == true else "gained"
        ].append(sample)
    unlabelled = all(sample.get("label") is None for sample in groups["other"])
    titles = {"lost": "Right → wrong", "gained": "Wrong → right", "other": "Label changed" if unlabelled else "Wrong → wrong"}
    return (Changes(kind, titles[kind], tuple(samples)) for kind, samples in groups.items() if samples)
