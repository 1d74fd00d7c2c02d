"""Axis × provenance, and axis × target: what is proven, by which kind of proof, and what would prove the rest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepipe.latency_verdict import LOADED, SLOWED
from edgepipe.report.numbers import limit_text, with_unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

AXES = ("accuracy", "size", "latency", "memory", "parity", "operators")
PROVENANCES = ("measured", "emulated", "predicted", "host")
SEVERITY = ("broken", "unproven", "held", None)  # worst first
MARKS = {"held": "✓", "broken": "✗", "unproven": "?", None: "·"}
UNREACHED = "run edgepipe validate on such a machine"


@dataclass(frozen=True, slots=True)
class Card:
    """One axis: the row its verdict hangs on, the row with a before and an after, and what else has a limit."""

    axis: str
    verdict: str | None
    lead: Mapping[str, Any] | None
    figure: Mapping[str, Any] | None
    others: tuple[Mapping[str, Any], ...]
    proofs: Mapping[str, str | None] = field(default_factory=dict)  # provenance → worst verdict of its figures
    why: tuple[str, ...] = ()  # it broke, or is unproven
    fix: str = ""  # what would prove it; commands between backticks

    @property
    def provenance(self) -> str:
        """Of the figure that the verdict hangs on; nothing where there is no figure."""
        return self.lead["provenance"] if self.lead is not None and self.lead.get("value") is not None else ""

    @property
    def notes(self) -> tuple[str, ...]:
        """`why` beside the lead's own figure and limit, which are not said twice."""
        if self.verdict != "broken" or self.lead is None:
            return self.why
        reason = str(self.lead.get("reason") or "").split("; ")[0]
        return (*([reason] if reason else []), *self.why[1:])


@dataclass(frozen=True, slots=True)
class Told:
    """One reason or remedy, and where it holds: ("latency", ("rpi4", "rpi5"))."""

    text: str
    axes: tuple[str, ...]
    targets: tuple[str, ...]


def worst(verdicts: Iterable[str | None]) -> str | None:
    found = set(verdicts)
    return next((verdict for verdict in SEVERITY if verdict in found), None)


def cards_of(manifest: Mapping[str, Any]) -> tuple[Card, ...]:
    """A card an axis, also for one that nothing was said of."""
    rows = manifest.get("results") or ()
    axes = [*AXES, *sorted({row["axis"] for row in rows} - set(AXES))]
    return tuple(_card(axis, [row for row in rows if row["axis"] == axis], manifest) for axis in axes)


def target_names(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Profiles, numbered where one comes twice."""
    names = [str(manifest["profile"]) for manifest in manifests]
    often, seen = Counter(names), Counter[str]()
    told = []
    for name in names:
        seen[name] += 1
        told.append(f"{name} ({seen[name]})" if often[name] > 1 else name)
    return told


def reasons(targets: Mapping[str, Sequence[Card]], *, fixes: bool = False) -> list[Told]:
    """Why axes broke or are unproven (`fixes`: what would prove them), each text once, with where it holds."""
    found: dict[str, list[tuple[str, str]]] = {}
    for target, cards in targets.items():
        for card in cards:
            for text in ([card.fix] if card.fix else []) if fixes else card.why:
                found.setdefault(text, []).append((card.axis, target))
    return [
        Told(text, tuple(dict.fromkeys(axis for axis, _ in places)), tuple(dict.fromkeys(target for _, target in places)))
        for text, places in found.items()
    ]


def informative(rows: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """What accelerators would take of a model: shares beside the operators' verdict, which hangs on none of them."""
    return tuple(row for row in rows if row["axis"] == "operators" and row.get("verdict") is None and row["unit"] == "share")


def _card(axis: str, rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> Card:
    verdict = worst(row.get("verdict") for row in rows)
    judged = [row for row in rows if row.get("verdict")]
    lead = next((row for row in judged if row["verdict"] == verdict), rows[0] if rows else None)
    figure = lead
    if lead is not None and lead.get("baseline") is None:
        beside = [row for row in rows if row.get("baseline") is not None and row.get("conditions") == lead.get("conditions")]
        figure = beside[0] if beside else lead
    with_value = [row for row in rows if row.get("value") is not None]
    proofs = {
        kind: worst(row.get("verdict") for row in with_value if row["provenance"] == kind)
        for kind in PROVENANCES
        if any(row["provenance"] == kind for row in with_value)
    }
    others = tuple(row for row in judged if row is not lead)
    if verdict not in ("broken", "unproven"):
        return Card(axis, verdict, lead, figure, others, proofs)
    bad = [row for row in judged if row["verdict"] == verdict]
    why = tuple(dict.fromkeys(_why(row) for row in bad))
    return Card(axis, verdict, lead, figure, others, proofs, why, _fix(bad[0], manifest) if verdict == "unproven" else "")


def _why(row: Mapping[str, Any]) -> str:
    reason = str(row.get("reason") or "")
    if row["verdict"] == "unproven":
        return reason.split("; ")[0] or "its figures prove nothing for the device"
    past = f"{row['metric']} {with_unit(row.get('value'), row['unit'])}, limit {limit_text(row)}"
    return f"{past}: {reason.split('; ')[0]}" if reason else past


def _fix(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """What would prove an unproven figure."""
    reason = str(row.get("reason") or "")
    if "too few" in reason:
        return "more test samples"
    if row["provenance"] == "measured" and SLOWED in reason:
        return "cooling or a better power supply, then `edgepipe validate` again"
    if row["provenance"] == "measured" and (LOADED in reason or "noise" in reason):
        return "`edgepipe validate` again while the machine does nothing else"
    device = manifest.get("device") or {}
    name, runner = manifest["profile"], (device.get("reach") or {}).get("runner", "")
    address = {"ssh": "USER@HOST", "adb": "SERIAL"}.get(runner)
    attached = f"`--device {name}={address}`" if address else ""
    if row["axis"] == "latency":
        return f"times from the device: {attached}" if attached else f"times from the device: {UNREACHED}"
    if "devices setup" in reason or runner == "browser":
        return f"`edgepipe devices setup {name}`" + (f", or the device itself: {attached}" if attached else "")
    return f"the device itself: {attached}" if attached else f"the device itself: {UNREACHED}"
