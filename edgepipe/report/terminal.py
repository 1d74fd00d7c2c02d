"""The before/after table on the terminal: the first thing a user sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgepipe.report.numbers import figure, level, named

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COLOURS = {"held": "green", "broken": "bold red", "unproven": "yellow"}
PLAIN_WIDTH = 130
MARKS = {"held": "✓ held", "broken": "✗ broken", "unproven": "? unproven"}


def amount(value: float | None, unit: str) -> str:
    """A figure as people read it: MB for bytes, two decimals for points and milliseconds."""
    if value is None:
        return ""
    if unit == "bytes":
        if value < 1e6:
            return f"{value / 1e3:.1f} kB"
        return f"{value / 1e6:.1f} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"
    if unit in ("operator types", ""):
        return f"{value:.5g}"
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "samples/s":
        return f"{value:.0f} /s"
    return f"{figure(value, unit) if unit == 'ms' else f'{value:.2f}'} {unit}"


class _Console(Console):
    def on_broken_pipe(self) -> None:  # rich would end the program with 1, whatever the verdict is
        raise BrokenPipeError


def console_for_reports() -> Console:
    console = _Console()
    if not console.is_terminal:  # a pipe or CI log has no width; wrapped cells would only be harder to read
        console = _Console(width=PLAIN_WIDTH)
    return console


def print_result(manifest: Mapping[str, Any], *, bundle: Path | None = None, report: Path | None = None) -> None:
    """Table of every figure, then the unproven or broken ones' reasons, then where things are."""
    console = console_for_reports()
    table = Table(
        title=escape(f"{manifest['source']['model']} on {manifest['profile_title']}"),
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    for name in ("axis", "figure", "before", "after", "limit", "95 % interval", "proof", "verdict"):
        table.add_column(name, justify="left" if name in ("axis", "figure", "proof", "verdict") else "right", overflow="fold")
    axis = ""
    for row in manifest["results"]:
        if row["metric"] == "throughput":  # the manifest and the report have it; here it would double the table
            continue
        shown = row["axis"] if row["axis"] != axis else ""
        axis = row["axis"]
        verdict = row["verdict"]
        table.add_row(
            shown,
            named(row).removesuffix(" of arithmetic") + conditions(row["conditions"]),
            amount(row["baseline"], row["unit"]),
            amount(row["value"], row["unit"]),
            amount(row["budget"], row["unit"]),
            _interval(row),
            row["provenance"],
            f"[{COLOURS[verdict]}]{MARKS[verdict]}[/]" if verdict else "[dim]reported[/]",
        )
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for row in manifest["results"]:
        if row["verdict"] in ("broken", "unproven") or (row["verdict"] is None and row["reason"] and row["axis"] == "parity"):
            why = row["reason"].split("; ")[0] or f"{row['metric']} is past its limit"
            reasons.setdefault(why, []).append(row["axis"])
    for reason, axes in reasons.items():
        console.print(f"  [dim]{', '.join(dict.fromkeys(axes))}: {escape(reason)}[/]", highlight=False)
    for run in manifest["passes"]:
        if why := run.get("figures", {}).get("incomplete"):
            console.print(f"  [yellow]{run['name']}: {escape(why)}; this is the best so far[/]", highlight=False)
    verdict = manifest["verdict"]
    console.print(
        f"\n[{COLOURS[verdict]}]{MARKS[verdict]}[/]  profile {escape(manifest['profile'])}, exit code {manifest['exit_code']}",
        highlight=False,
    )
    for label, path in (("bundle", bundle), ("report", report)):
        if path is not None:
            console.print(f"{label}  {escape(str(path))}", highlight=False, soft_wrap=True)
    console.print()


def _interval(row: Mapping[str, Any]) -> str:
    """The column says 95 %; a prediction's says its own."""
    if not row["interval"]:
        return ""
    low, high = (amount(bound, row["unit"]).removesuffix(f" {row['unit']}") for bound in row["interval"])
    return f"{low} … {high}" + ("" if level(row) == 95 else f" ({level(row)} %)")


def conditions(found: Mapping[str, Any]) -> str:
    """` (1 × 128)` for a fixed shape; nothing at the task's own lengths."""
    if not found or found.get("length") in ("task", "longest"):
        return ""
    if "shapes" in found:
        parts = found.get("partitions", 0)
        return f" ({found['shapes']}, {parts} partition{'' if parts == 1 else 's'})"
    return f" ({found['batch']} × {found['length']})" if found.get("length") else f" (batch {found['batch']})"
