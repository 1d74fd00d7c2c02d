"""The demo model for the benchmarks: its request, a cold or warm store, and where results are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.machine import machine_facts
from edgepipe.project import make_request

if TYPE_CHECKING:
    from edgepipe.request import Request

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "sentiment"
RESULTS = Path(__file__).resolve().parent / "results"
CHOOSING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def request(**changes: Any) -> Request:
    """The demo's request, its project file read from the example's folder."""
    return make_request(project=str(EXAMPLE / "edgepipe.toml"), **changes)


def machine_line() -> str:
    """What stands beside every figure."""
    facts = machine_facts()
    flags = [flag for flag in CHOOSING if flag in facts["flags"]]  # type: ignore[operator]
    return f"{facts['cpu']}, {facts['cores']} cores, {' '.join(flags)}"


def known(name: str) -> dict[str, Any]:
    """The data of an earlier run on this kind of machine, of which a shorter one renews a part."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(found["data"]) if found.get("machine") == machine_facts() else {}


def write_result(name: str, command: str, table: str, data: Any) -> None:
    """Write `results/NAME.md` (command, machine, table) and `results/NAME.json`, and print the table."""
    RESULTS.mkdir(exist_ok=True)
    load = os.getloadavg()[0]
    text = f"`{command}` on {machine_line()} (load average {load:.1f}):\n\n{table}\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"command": command, "machine": machine_facts(), "data": data}, indent=1) + "\n", encoding="utf-8"
    )
    print(text)
