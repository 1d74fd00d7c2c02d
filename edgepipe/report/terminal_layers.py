"""The layers of one build on the terminal: those that take longest, and the rest summed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from edgepipe.report.layers import layer_lines
from edgepipe.report.terminal import console_for_reports

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOWN = 10


def print_layers(manifest: Mapping[str, Any]) -> None:
    """Nothing where no layer was chosen for. Nodes whose weights have 7 bits, or that stay float32, are named below."""
    lines = layer_lines(manifest, SHOWN)
    program = manifest.get("program") or {}
    told = {"weights of 7 bits": program.get("reduced_range"), "left in float32": program.get("left_in_float32")}
    console = console_for_reports()
    if lines:
        title = escape(f"layers on {manifest['profile']}, those that take longest")
        table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for name in ("layer", "shape", "scheme", "float32 ms", "ms"):
            table.add_column(name, justify="right" if name.endswith("ms") else "left", overflow="fold")
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)
    for what, nodes in told.items():
        for node, why in (nodes or {}).items():
            console.print(f"  [dim]{what}: {escape(node)}: {escape(why)}[/]", highlight=False)
    if lines or any(told.values()):
        console.print()
