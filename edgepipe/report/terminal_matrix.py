"""Several targets side by side on the terminal: one table of verdicts with their proof, then each reason once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgepipe.report.matrix import MARKS, Card, cards_of, reasons, target_names
from edgepipe.report.numbers import change_text, conditions_text, interval_text, limit_text, speed_text
from edgepipe.report.terminal import COLOURS, console_for_reports
from edgepipe.report.terminal import MARKS as VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

LETTERS = {
    "measured": "measured there",
    "emulated": "its own kernels, emulated",
    "predicted": "predicted, 90 % interval",
    "host": "this machine stood in, which proves nothing",
}


def print_matrix(manifests: Sequence[Mapping[str, Any]], *, places: Sequence[tuple[str, Path]] = ()) -> None:
    """Rows are axes, columns targets; `places` are (label, path) lines at the end."""
    names = target_names(manifests)
    targets = dict(zip(names, map(cards_of, manifests), strict=True))
    console = console_for_reports()
    models = dict.fromkeys(manifest["source"]["model"] for manifest in manifests)
    table = Table(
        title=escape(f"{', '.join(models)} on {', '.join(names)}"), title_justify="left", header_style="bold", box=None, pad_edge=False,
        padding=(0, 2, 0, 0),
    )  # fmt: skip
    table.add_column("")
    for name in names:
        table.add_column(escape(name), overflow="fold")
    for cards in zip(*targets.values(), strict=False):
        table.add_row(_row_name(cards), *(_cell(card) for card in cards))
    table.add_row("verdict", *(_verdict(manifest.get("verdict")) for manifest in manifests))
    console.print(table)
    used = {kind for cards in targets.values() for card in cards for kind in [card.provenance] if kind}
    console.print(f"[dim]{' · '.join(f'{kind[0].upper()} {words}' for kind, words in LETTERS.items() if kind in used)}[/]", highlight=False)
    for heading, told in (("", reasons(targets)), ("to prove it: ", reasons(targets, fixes=True))):
        for one in told:
            where = "" if len(one.targets) == len(names) else f" on {', '.join(one.targets)}"
            console.print(f"  [dim]{', '.join(one.axes)}{escape(where)}: {heading}{escape(one.text.replace('`', ''))}[/]", highlight=False)
    codes = ", ".join(f"{name} {manifest.get('exit_code', 0)}" for name, manifest in zip(names, manifests, strict=True))
    console.print(f"\nexit codes: {escape(codes)}", highlight=False)
    for label, path in places:
        console.print(f"{label}  {escape(str(path))}", highlight=False, soft_wrap=True)
    console.print()


def _row_name(cards: Sequence[Card]) -> str:
    """The axis, or the metric where that says more and is the same everywhere."""
    metrics = {card.lead["metric"] for card in cards if card.lead is not None}
    return metrics.pop() if cards[0].axis == "accuracy" and len(metrics) == 1 else cards[0].axis


def _cell(card: Card) -> Text:
    """`✓ P 60.1 → 41.3 ms (1.46 ×)` over `[32.9, 51.6] ≤ 60.1`."""
    if card.lead is None:
        return Text("– not measured", style="dim")
    row = card.lead
    text = Text()
    text.append(MARKS[card.verdict], style=COLOURS.get(card.verdict or "", "dim"))
    text.append(f" {card.provenance[:1].upper() or ' '} {_figure(row)}")
    if beneath := " ".join(part for part in _beneath(row) if part):
        text.append(f"\n    {beneath}", style="dim")
    return text


def _figure(row: Mapping[str, Any]) -> str:
    if row["unit"] == "operator types" and row.get("value") is not None:
        return f"{change_text(row).removesuffix(' operator types')} {row['metric']}"
    faster = speed_text(row) if row["axis"] == "latency" else ""
    return change_text(row) + (f" ({faster})" if faster else "")


def _beneath(row: Mapping[str, Any]) -> Iterator[str]:
    """What the figure is of where its axis has several, its interval and its limit."""
    if row["axis"] == "parity":
        yield row["metric"].removesuffix(" to a plain session")
    if row["axis"] == "latency" and row["conditions"].get("length") != "task" and row.get("value") is not None:
        yield conditions_text({name: value for name, value in row["conditions"].items() if name != "threads"}) + ":"
    if row.get("interval"):
        yield f"[{interval_text(row).replace(' to ', ', ')}]"
    if row.get("budget") is not None and row["unit"] != "operator types":
        yield limit_text(row, unit=False)


def _verdict(verdict: str | None) -> Text:
    return Text(VERDICTS[verdict], style=COLOURS[verdict]) if verdict else Text("no verdict", style="dim")
