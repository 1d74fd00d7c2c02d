"""Instruction counts of the networks that board_timings.toml has times of: results/board_counts.json.

A run's slices (or nodes) that the same unit of the core bounds are summed: a prediction adds up maxima over units, so
the sums predict the same.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.cost.cores import Fitted, load_core
from edgepipe.cost.counting import Counts, NodeCounts
from edgepipe.cost.latency import SERIAL_OPERATORS, node_cost
from edgepipe.resources import resource

if TYPE_CHECKING:
    from collections.abc import Callable

NEUTRAL = Fitted(
    to="", figures=0, compute_factor=1, store_cycles=0, l1_line_cycles=0, l1_jump_cycles=0, l2_line_cycles=0, l2_jump_cycles=0,
    shared_line_cycles=0, dram_line_ns=0, dram_jump_ns=0, dram_share=1, log_sigma=1,
)  # fmt: skip
BETWEEN = "between nodes"
SHARED_CYCLES = 70_000  # of ONNX Runtime's nodes, smaller ones stay on one thread: as `predict` decides, but by node
PATH = Path(__file__).parent / "results" / "board_counts.json"


def grouped(counts: Counts, core: str, on_one_thread: Callable[[NodeCounts], bool] | None = None) -> list[dict[str, Any]]:
    """[{"op_type", "bound", "serial", "nodes", "amounts"}]: what is left of the run's nodes in the file."""
    table = load_core(resource("profiles") / "cores" / f"{core}.toml")
    sums: dict[tuple[str, str, bool], Counter[str]] = {}
    nodes: Counter[tuple[str, str, bool]] = Counter()
    for node in [*counts.nodes, NodeCounts(BETWEEN, "", (), (), counts.rest)]:
        serial = node.op_type in SERIAL_OPERATORS or node.name == BETWEEN or (on_one_thread is not None and on_one_thread(node))
        key = (node.op_type, node_cost(node.amounts, table, NEUTRAL).unit, serial)
        sums.setdefault(key, Counter()).update(node.amounts)
        nodes[key] += 1
    return [
        {"op_type": op_type, "bound": bound, "serial": serial, "nodes": nodes[op_type, bound, serial], "amounts": dict(amounts)}
        for (op_type, bound, serial), amounts in sorted(sums.items())
        if any(amounts.values())
    ]


def onnx_row(counts: Counts, core: str, caches: Any, *, serial_groups: bool) -> dict[str, Any]:
    """A network in ONNX Runtime; the nodes that threads share, and that have to wait for each other, are its layers.

    `serial_groups`: depthwise convolutions run on one thread, as in ONNX Runtime 1.20 (core/mlas/lib/convolve.cpp
    shares the groups of pointwise ones only; later versions share all).
    """
    table = load_core(resource("profiles") / "cores" / f"{core}.toml")

    def on_one_thread(node: NodeCounts) -> bool:
        return (serial_groups and _is_depthwise(node)) or node_cost(node.amounts, table, NEUTRAL).compute < SHARED_CYCLES

    groups = grouped(counts, core, on_one_thread)
    return {"layers": sum(group["nodes"] for group in groups if not group["serial"]), "caches": caches, "groups": groups}


def _is_depthwise(node: NodeCounts) -> bool:
    return node.op_type.endswith("Conv") and len(node.inputs) > 1 and node.inputs[1][1][1:2] == (1,) and node.inputs[1][1][0] > 1


def write(rows: dict[str, Any]) -> None:
    """Keys are runtime/model/precision/core; precision is `int8` or `float`, whose width the core decides."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in sorted(rows.items()))
    PATH.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


@dataclass(frozen=True)
class Run:
    """One network's run on one core: `layers` that several threads must agree after."""

    layers: int
    groups: tuple[tuple[str, dict[str, int], bool], ...]  # (op_type, amounts, whether they stay on one thread)


def read() -> dict[str, Run]:
    stored = json.loads(PATH.read_text(encoding="utf-8"))
    return {key: Run(row["layers"], tuple((g["op_type"], g["amounts"], g["serial"]) for g in row["groups"])) for key, row in stored.items()}
