"""report.html: one page without scripts or external parts, verdicts first, then the evidence behind them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from edgepipe.report import charts, matrix, numbers
from edgepipe.report.accuracy import AccuracyView, Changes, ClassChange, accuracy_views, class_changes, label_changes, transfer_text
from edgepipe.report.layers import SOURCES, LayersView, layers_view
from edgepipe.report.matrix import Card, cards_of, informative, target_names, worst
from edgepipe.report.prediction import PredictionView, prediction_view
from edgepipe.report.roofline import RooflineView, roofline_view
from edgepipe.report.training import training_chart, training_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SHOWN_CHANGES, SHOWN_CLASSES = 20, 30
PROVENANCE = {
    "measured": "on the device itself, or on this machine where its CPU's features match the profile's",
    "emulated": "the device's own kernels under CPU emulation: outputs are real, times are not",
    "predicted": "from a model or a support table, not from a run",
    "host": "this machine standing in for the device: proves nothing there, so always unproven",
}
KEPT_SIZE = {"merge-lora": "merge-lora folds the adapter into the weights", "export-onnx": "export-onnx changes the format"}


@dataclass(frozen=True, slots=True)
class LatencyView:
    title: str
    chart: Markup


@dataclass(frozen=True, slots=True)
class Costliest:
    """The nodes that cost most on the target, of one side."""

    title: str
    nodes: tuple[Mapping[str, Any], ...]
    share: float
    ms: float


@dataclass(frozen=True, slots=True)
class Build:
    """What the template shows of one manifest and its measurements."""

    key: str
    name: str
    manifest: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    measured: Mapping[str, Any]
    cards: tuple[Card, ...]
    size: Markup | None
    size_note: str
    layers: LayersView | None
    accuracy: tuple[AccuracyView, ...]
    transfer: str
    latency: tuple[LatencyView, ...]
    shapes: tuple[Mapping[str, Any], ...]
    prediction: PredictionView | None
    roofline: RooflineView | None
    costliest: tuple[Costliest, ...]
    accelerators: tuple[Mapping[str, Any], ...]
    classes: tuple[ClassChange, ...]
    classes_total: int
    changes: tuple[Changes, ...]


def render_html(manifests: Sequence[Mapping[str, Any]], measurements: Sequence[Mapping[str, Any]]) -> str:
    """The report of one build or of several profiles' builds of one model; measurements stand beside their manifests."""
    beside = [*measurements, *({} for _ in manifests)]
    named = zip(target_names(manifests), manifests, beside, strict=False)
    builds = [_build(f"p{index}", name, manifest, measured or {}) for index, (name, manifest, measured) in enumerate(named)]
    made = {json.dumps([manifest.get("artifact"), manifest.get("passes")], sort_keys=True) for manifest in manifests}
    page = _template().render(
        builds=builds,
        verdict=worst(manifest.get("verdict") for manifest in manifests),
        one_artifact=len(builds) > 1 and len(made) == 1,
        fixes=matrix.reasons({build.name: build.cards for build in builds}, fixes=True),
        css=Path(__file__).with_name("report.css").read_text(encoding="utf-8"),
    )
    return page if page.endswith("\n") else page + "\n"


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    shared = (
        "change_text",
        "conditions_text",
        "figure",
        "interval_text",
        "level",
        "limit_text",
        "number",
        "short",
        "speed_text",
        "unit_name",
        "with_unit",
    )
    environment.globals.update({name: getattr(numbers, name) for name in shared})
    environment.globals.update({function.__name__: function for function in (axes_text, by_axis, devices_text, options_text, row_name)})
    environment.globals.update(training_chart=training_chart, training_text=training_text)
    environment.globals.update(MARKS=matrix.MARKS, PROVENANCE=PROVENANCE, COST_SOURCES=SOURCES, SHOWN_CHANGES=SHOWN_CHANGES)
    environment.filters["commands"] = commands
    return environment.get_template("report.html.j2")


def commands(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts))


def options_text(options: Mapping[str, Any]) -> str:
    """`per_channel = true, exclude = []`, values as JSON writes them."""
    return ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in options.items())


def row_name(row: Mapping[str, Any], lead: Mapping[str, Any]) -> str:
    """What tells a row from the leading one of its card: its metric if that differs, and the conditions that do."""
    conditions = row.get("conditions") or {}
    differs = {key: value for key, value in conditions.items() if key != "threads" or value != (lead.get("conditions") or {}).get(key)}
    words = [row["metric"]] if row["metric"] != lead["metric"] or not differs else []
    return ", ".join([*words, *filter(None, [numbers.conditions_text(differs)])])


def axes_text(build: Build, verdict: str) -> str:
    return ", ".join(card.axis for card in build.cards if card.verdict == verdict)


def devices_text(builds: Sequence[Build], verdict: str) -> str:
    return ", ".join(build.manifest["profile"] for build in builds if build.manifest.get("verdict") == verdict)


def by_axis(build: Build, axis: str) -> Card | None:
    return next((card for card in build.cards if card.axis == axis), None)


def _build(key: str, name: str, manifest: Mapping[str, Any], measured: Mapping[str, Any]) -> Build:
    rows: Sequence[Mapping[str, Any]] = manifest.get("results") or ()
    passes = manifest.get("passes") or ()
    limit = next((row.get("budget") for row in rows if row["axis"] == "size" and row.get("budget") is not None), None)
    notes = [KEPT_SIZE[name] for name in dict.fromkeys(run["name"] for run in passes) if name in KEPT_SIZE]
    classes = class_changes(measured)
    prediction = prediction_view(measured, rows, key)
    return Build(
        key, name, manifest, tuple(rows), measured,
        cards=cards_of(manifest),
        size=charts.size_chart(passes, limit, f"{key}-size") if passes else None,
        size_note=" and ".join(notes) + (": little changes in size there." if notes else ""),
        layers=layers_view(manifest, key),
        accuracy=tuple(accuracy_views(rows, key)),
        transfer=transfer_text(measured, str(manifest["profile"])),
        latency=tuple(_latency(rows, measured, key)),
        shapes=() if prediction else tuple(row for row in rows if _fixed_shape(row)),
        prediction=prediction,
        roofline=roofline_view(measured, passes, f"{key}-roofline"),
        costliest=tuple(_costliest(measured)),
        accelerators=informative(rows),
        classes=tuple(classes[:SHOWN_CLASSES] if len(classes) <= SHOWN_CLASSES else sorted(classes, key=lambda c: (c.after - c.before, c.name))[:SHOWN_CLASSES]),
        classes_total=len(classes),
        changes=tuple(label_changes(measured)),
    )  # fmt: skip


def _fixed_shape(row: Mapping[str, Any]) -> bool:
    timed = row["axis"] == "latency" and row["metric"] == "median" and row.get("value") is not None
    return timed and row.get("conditions", {}).get("length") != "task"


def _costliest(measured: Mapping[str, Any]) -> Iterable[Costliest]:
    found = measured.get("costliest") or {}
    for title, side in (("Before", "baseline"), ("After", "candidate")):
        if nodes := tuple(found.get(side) or ()):
            yield Costliest(title, nodes, sum(node["share"] for node in nodes), sum(node["ms"] for node in nodes))


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
