"""report.html: one page without scripts or external parts, verdicts first, then the evidence behind them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from edgepipe.report import charts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from markupsafe import Markup

AXES = ("accuracy", "size", "latency", "memory", "parity", "operators")
SEVERITY = ("broken", "unproven", "held", None)  # worst first
MARKS = {"held": "✓", "broken": "✗", "unproven": "?", None: "·"}
SHOWN_CHANGES, SHOWN_CLASSES = 20, 30
PROVENANCE = {
    "measured": "on the device itself, or on this machine where its CPU's features match the profile's",
    "emulated": "the device's own kernels under CPU emulation: outputs are real, times are not",
    "predicted": "from a model or a support table, not from a run",
    "host": "this machine standing in for the device: proves nothing there, so always unproven",
}
KEPT_SIZE = {"merge-lora": "merge-lora folds the adapter into the weights", "export-onnx": "export-onnx changes the format"}


@dataclass(frozen=True, slots=True)
class Card:
    """One axis: the row its verdict hangs on, the row with a before and an after, and what else has a limit."""

    axis: str
    verdict: str | None
    lead: Mapping[str, Any] | None
    figure: Mapping[str, Any] | None
    others: tuple[Mapping[str, Any], ...]


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


@dataclass(frozen=True, slots=True)
class LatencyView:
    title: str
    chart: Markup


@dataclass(frozen=True, slots=True)
class Build:
    """What the template shows of one manifest and its measurements."""

    key: str
    manifest: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    measured: Mapping[str, Any]
    cards: tuple[Card, ...]
    size: Markup | None
    size_note: str
    accuracy: tuple[AccuracyView, ...]
    latency: tuple[LatencyView, ...]
    shapes: tuple[Mapping[str, Any], ...]
    classes: tuple[ClassChange, ...]
    classes_total: int
    changes: tuple[Changes, ...]


def render_html(manifests: Sequence[Mapping[str, Any]], measurements: Sequence[Mapping[str, Any]]) -> str:
    """The report of one build or of several profiles' builds of one model; measurements stand beside their manifests."""
    beside = [*measurements, *({} for _ in manifests)]
    builds = [
        _build(f"p{index}", manifest, measured or {}) for index, (manifest, measured) in enumerate(zip(manifests, beside, strict=False))
    ]
    here = Path(__file__)
    worst = _worst(manifest.get("verdict") for manifest in manifests)
    page = _template().render(builds=builds, verdict=worst, css=here.with_name("report.css").read_text(encoding="utf-8"))
    return page if page.endswith("\n") else page + "\n"


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    shared = ("change_text", "conditions_text", "figure", "interval_text", "limit_text", "number", "short", "unit_name", "with_unit")
    environment.globals.update({name: getattr(charts, name) for name in shared})
    environment.globals.update({function.__name__: function for function in (axes_text, by_axis, devices_text, options_text, row_name)})
    environment.globals.update(MARKS=MARKS, PROVENANCE=PROVENANCE, SHOWN_CHANGES=SHOWN_CHANGES)
    return environment.get_template("report.html.j2")


def options_text(options: Mapping[str, Any]) -> str:
    """`per_channel = true, exclude = []`, values as JSON writes them."""
    return ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in options.items())


def row_name(row: Mapping[str, Any], lead: Mapping[str, Any]) -> str:
    """What tells a row from the leading one of its card: its metric if that differs, and the conditions that do."""
    conditions = row.get("conditions") or {}
    differs = {key: value for key, value in conditions.items() if key != "threads" or value != (lead.get("conditions") or {}).get(key)}
    words = [row["metric"]] if row["metric"] != lead["metric"] or not differs else []
    return ", ".join([*words, *filter(None, [charts.conditions_text(differs)])])


def axes_text(build: Build, verdict: str) -> str:
    return ", ".join(card.axis for card in build.cards if card.verdict == verdict)


def devices_text(builds: Sequence[Build], verdict: str) -> str:
    return ", ".join(build.manifest["profile"] for build in builds if build.manifest.get("verdict") == verdict)


def by_axis(build: Build, axis: str) -> Card | None:
    return next((card for card in build.cards if card.axis == axis), None)


def _build(key: str, manifest: Mapping[str, Any], measured: Mapping[str, Any]) -> Build:
    rows: Sequence[Mapping[str, Any]] = manifest.get("results") or ()
    passes = manifest.get("passes") or ()
    axes = [*AXES, *sorted({row["axis"] for row in rows} - set(AXES))]
    limit = next((row.get("budget") for row in rows if row["axis"] == "size" and row.get("budget") is not None), None)
    notes = [KEPT_SIZE[name] for name in dict.fromkeys(run["name"] for run in passes) if name in KEPT_SIZE]
    classes = _classes(measured)
    return Build(
        key, manifest, tuple(rows), measured,
        cards=tuple(_card(axis, [row for row in rows if row["axis"] == axis]) for axis in axes),
        size=charts.size_chart(passes, limit, f"{key}-size") if passes else None,
        size_note=" and ".join(notes) + (": little changes in size there." if notes else ""),
        accuracy=tuple(_accuracy(rows, key)),
        latency=tuple(_latency(rows, measured, key)),
        shapes=tuple(row for row in rows if row["axis"] == "latency" and row["metric"] == "median" and row.get("conditions", {}).get("length") != "task"),
        classes=tuple(classes[:SHOWN_CLASSES] if len(classes) <= SHOWN_CLASSES else sorted(classes, key=lambda c: (c.after - c.before, c.name))[:SHOWN_CLASSES]),
        classes_total=len(classes),
        changes=tuple(_changes(measured)),
    )  # fmt: skip


def _worst(verdicts: Iterable[str | None]) -> str | None:
    found = set(verdicts)
    return next((verdict for verdict in SEVERITY if verdict in found), None)


def _card(axis: str, rows: Sequence[Mapping[str, Any]]) -> Card:
    verdict = _worst(row.get("verdict") for row in rows)
    judged = [row for row in rows if row.get("verdict")]
    lead = next((row for row in judged if row["verdict"] == verdict), rows[0] if rows else None)
    figure = lead
    if lead is not None and lead.get("baseline") is None:
        beside = [row for row in rows if row.get("baseline") is not None and row.get("conditions") == lead.get("conditions")]
        figure = beside[0] if beside else lead
    return Card(axis, verdict, lead, figure, tuple(row for row in judged if row is not lead))


def _accuracy(rows: Sequence[Mapping[str, Any]], key: str) -> Iterable[AccuracyView]:
    found = [row for row in rows if row["axis"] == "accuracy" and row.get("value") is not None]
    for index, row in enumerate(found):
        title, name = f"{row['metric']}, {row['unit']}", f"{key}-accuracy{index}"
        after = (row["value"], row.get("interval"), "after")
        if row.get("baseline") is not None:
            yield AccuracyView(
                row, charts.interval_chart([("before", row["baseline"], None, "before"), ("after", *after)], (), title, name)
            )
        elif row.get("budget") is not None:
            lines = [(0.0, "", "axis"), (row["budget"], f"limit {charts.number(row['budget'])}", "limit")]
            yield AccuracyView(row, charts.interval_chart([("drop", *after)], lines, title, name))


def _latency(rows: Sequence[Mapping[str, Any]], measured: Mapping[str, Any], key: str) -> Iterable[LatencyView]:
    for timing in measured.get("timings") or ():
        if str(timing["length"]) != "task" or not timing["baseline_ms"] or not timing["candidate_ms"]:
            continue
        whole = bool(timing.get("end_to_end"))
        names = {"median": "end-to-end median"} if whole else {"median": "median", "p95": "p95"}
        found = {
            mark: row for mark, metric in names.items() for row in rows
            if row["axis"] == "latency" and row["metric"] == metric and row.get("conditions", {}).get("length") == "task"
        }  # fmt: skip
        marks = {
            side: {mark: row.get(column) for mark, row in found.items()} for side, column in (("before", "baseline"), ("after", "value"))
        }
        title = "End to end, with encoding" if whole else "Model only"
        told = f"Latency distribution, {title.lower()}"
        yield LatencyView(
            title, charts.latency_chart(timing["baseline_ms"], timing["candidate_ms"], marks, told, f"{key}-latency{int(whole)}")
        )


def _classes(measured: Mapping[str, Any]) -> list[ClassChange]:
    return [ClassChange(name, int(c["n"]), int(c["baseline"]), int(c["candidate"])) for name, c in (measured.get("classes") or {}).items()]


def _changes(measured: Mapping[str, Any]) -> Iterable[Changes]:
    groups: dict[str, list[Mapping[str, Any]]] = {"lost": [], "gained": [], "other": []}
    for sample in measured.get("changed") or ():
        true = sample.get("label")
        groups[
            "other" if true is None or true not in (sample["before"], sample["after"]) else "lost" if sample["before"] == true else "gained"
        ].append(sample)
    unlabelled = all(sample.get("label") is None for sample in groups["other"])
    titles = {"lost": "Right → wrong", "gained": "Wrong → right", "other": "Label changed" if unlabelled else "Wrong → wrong"}
    return (Changes(kind, titles[kind], tuple(samples)) for kind, samples in groups.items() if samples)
