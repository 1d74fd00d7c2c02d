"""recover by what it trains: all weights, LoRA, adapters, prefixes, biases, masks of weights.

The demo classifier cut to layers 1, 3 and 5 of 6; all training data, the same epochs; each at a learning rate of the size that
its paper uses. Accuracy on the test data, with the paired difference to training all weights (95 %, bootstrap over samples).
Each row runs in a process of its own and is kept below EDGEPIPE_CACHE/benchmarks: a run that was ended goes on. Seconds are the processor's, and compare
within one run only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import numpy as np
from demo import write_result
from recovery_options import trained

from edgepipe.config import Task
from edgepipe.intervals import bootstrap
from edgepipe.store import cache_root
from edgepipe.tasks import load_task

NAME = "what_is_trained"
ROWS: dict[str, dict[str, Any]] = {
    "full": {"train": "full", "learning_rate": 3e-4},
    "lora, rank 8": {"train": "lora", "learning_rate": 1e-3},
    "bottleneck, 24": {"train": "bottleneck", "learning_rate": 1e-3},
    "prefix, 16": {"train": "prefix", "learning_rate": 1e-2},
    "bitfit": {"train": "bitfit", "learning_rate": 3e-3},
    "fish, 1 %": {"train": "fish", "learning_rate": 1e-3},
    "movement, 50 % stay": {"train": "movement", "learning_rate": 3e-4},
}
GOES_IN = {
    "full": "–",
    "lora": "merged",
    "bottleneck": "stays: two layers behind each of two",
    "prefix": "stays: 16 keys and values a layer",
    "bitfit": "–",
    "fish": "–",
    "movement": "sparse",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, help="train on this many (default: all)")
    parser.add_argument("--row", choices=sorted(ROWS), help="run this row alone, here")
    args = parser.parse_args()
    home = cache_root() / "benchmarks" / NAME
    home.mkdir(parents=True, exist_ok=True)
    setting = {"epochs": args.epochs, **({"max_samples": args.samples} if args.samples else {})}
    own = [f"--epochs={args.epochs}", *([f"--samples={args.samples}"] if args.samples else [])]
    done: dict[str, dict[str, Any]] = {}
    for name in [args.row] if args.row else ROWS:
        path = home / f"{name.replace(' ', '_').replace('%', 'percent')}.json"
        row = {"model": "text", "against": "plain" if name == "full" else "full", "options": {**ROWS[name], **setting}}
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if args.row:
            path.write_text(json.dumps({"row": row, **trained(row)}), encoding="utf-8")
            return
        if known.get("row") != row:
            print(name, file=sys.stderr, flush=True)
            subprocess.run([sys.executable, __file__, "--row", name, *own], check=True)
            known = json.loads(path.read_text(encoding="utf-8"))
        done[name] = known
        write(done, " ".join(["OMP_NUM_THREADS=1 python benchmarks/what_is_trained.py", *own]))


def write(done: dict[str, dict[str, Any]], command: str) -> None:
    """Everything known so far."""
    base = np.array(done["full"]["right"], float)[:, None]
    lines = [
        f"{100 * done['full']['before']:.2f} before recovery.",
        "",
        "| trained | test accuracy | difference, 95 % | parameters trained | learning rate | afterwards | CPU s | peak memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in done.items():
        ours = np.array(one["right"], float)[:, None]
        _, _, (low, high) = bootstrap(load_task(Task(name="text-classification")), base, ours)
        apart = "–" if name == "full" else f"{100 * (ours.mean() - base.mean()):+.2f} ({-high:+.2f} to {-low:+.2f})"
        options = one["row"]["options"]
        cells = [
            name,
            f"{100 * ours.mean():.2f}",
            apart,
            f"{one['figures']['trained']['parameters']:,}",
            f"{options['learning_rate']:g}",
            GOES_IN[options["train"]],
            f"{one['cpu_seconds']:.0f}",
            f"{one['peak_rss_bytes'] / 1e6:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    data = {name: {key: value for key, value in one.items() if key != "right"} for name, one in done.items()}
    write_result(NAME, command, "\n".join(lines), data)


if __name__ == "__main__":
    main()
