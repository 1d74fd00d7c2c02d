"""The wide Fashion-MNIST network for a Raspberry Pi 4: int8 alone, and with channels cut and accuracy won back before it.

Points are on the test images, float32 and candidate on the same ones; milliseconds are predicted from counted instructions.
`--only NAME` renews one row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from demo import ROOT, known, write_result

from edgepipe.build import compress
from edgepipe.project import make_request

EXAMPLE = ROOT / "examples" / "fashion"
LOOSE = ["max_accuracy_drop=100", "max_size_ratio=1", "max_latency_ratio=10"]  # a table is wanted, not a verdict
ROWS = {"int8 alone": None, "smallest.toml": str(EXAMPLE / "recipes" / "smallest.toml")}


def build(recipe: str | None, work: Path) -> dict[str, Any]:
    start = time.monotonic()
    made = compress(
        make_request(
            project=str(EXAMPLE / "wide.toml"),
            profiles=["rpi4"],
            recipe=recipe,
            budget=LOOSE,
            out=str(work / "out"),
        )
    )[0]
    minutes = (time.monotonic() - start) / 60
    rows = {row["metric"]: row for row in made.manifest["results"]}
    accuracy, drop, median = rows["accuracy"], rows["accuracy drop"], rows["median"]
    return {
        "float32": {"points": accuracy["baseline"], "bytes": made.manifest["baseline"]["size_bytes"], "ms": median["baseline"],
                    "parameters": made.manifest["baseline"]["parameters"]},
        "points": accuracy["value"], "drop": drop["value"], "drop_interval": drop["interval"], "bytes": made.manifest["model"]["size_bytes"],
        "parameters": made.manifest["model"]["parameters"], "ms": median["value"], "ms_interval": median["interval"], "minutes": minutes,
        "channels": next((step["figures"]["channels kept"] for step in made.manifest["passes"] if step["name"] == "prune-channels"), None),
        "cached": all(step["cached"] for step in made.manifest["passes"]),
    }  # fmt: skip


def table(data: dict[str, Any]) -> str:
    lines = [
        "| model | parameters | points on test | lost [95 %] | bytes | × smaller | predicted ms on rpi4 [90 %] | × fewer | build, min |",
        "|" + "---|" * 9,
    ]
    if data:
        first = next(iter(data.values()))["float32"]
        lines.append(f"| float32 | {first['parameters']:,} | {first['points']:.2f} | | {first['bytes']:,} | | {first['ms']:.2f} | | |")
    for name in ROWS:
        if (row := data.get(name)) is None:
            continue
        low, high = row["drop_interval"]
        lines.append(
            f"| {name} | {row['parameters']:,} | {row['points']:.2f} | {row['drop']:.2f} [{low:.2f}, {high:.2f}] | {row['bytes']:,} | "
            f"{row['float32']['bytes'] / row['bytes']:.1f} | {row['ms']:.3f} [{row['ms_interval'][0]:.2f}, {row['ms_interval'][1]:.2f}] | "
            f"{row['float32']['ms'] / row['ms']:.1f} | {row['minutes']:.0f}{' (from the store)' if row['cached'] else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(ROWS))
    only = parser.parse_args().only
    data = known("fashion_pruning")
    for name, recipe in ROWS.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory() as work:
                data[name] = build(recipe, Path(work))
            write_result("fashion_pruning", "python benchmarks/fashion_pruning.py", table(data), data)


if __name__ == "__main__":
    main()
