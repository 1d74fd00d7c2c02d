"""recover by how it trains: precision, batches in pieces, layers computed again, states in 8 bits; peak memory and time of a step.

The demo classifier cut to layers 1, 3 and 5 of 6, ten steps of 64 texts, which are the demo's, joined four at a time (about 100
tokens). Each row runs in a process of its own. Memory is that of the whole process: torch, both models, gradients, states,
and the copy of the best weights; the last column is what is above the process that holds both models and trains nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from demo import request, write_result

NAME = "training_memory"
STEPS, ROWS_A_STEP, JOINED = 10, 64, 4
TRAINED: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "float16, losses scaled": {"precision": "float16"},
    "4 pieces a batch": {"accumulate": 4},
    "16 pieces a batch": {"accumulate": 16},
    "layers computed again": {"gradient_checkpointing": True},
    "AdamW in 8 bits": {"optimizer": "adamw-8bit"},
    "16 pieces, again, 8 bits": {"accumulate": 16, "gradient_checkpointing": True, "optimizer": "adamw-8bit"},
    "lora": {"train": "lora"},
    "lora, 16 pieces": {"train": "lora", "accumulate": 16},
    "lora, 16 pieces, bfloat16": {"train": "lora", "accumulate": 16, "precision": "bfloat16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=sorted(TRAINED), help="run this row alone, here")
    row = parser.parse_args().row
    if row:
        print(json.dumps(measured(TRAINED[row])))
        return
    found = {}
    for name in TRAINED:
        told = subprocess.run([sys.executable, __file__, "--row", name], check=True, stdout=subprocess.PIPE, text=True).stdout
        found[name] = json.loads(told.splitlines()[-1])
        print(name, found[name], file=sys.stderr, flush=True)
    lines = ["| how | peak memory, MB | above both models alone, MB | s a step | dev loss |", "|---|---|---|---|---|"]
    for name, one in found.items():
        above = (one["peak_bytes"] - one["models_bytes"]) / 1e6
        lines.append(f"| {name} | {one['peak_bytes'] / 1e6:.0f} | {above:.0f} | {one['seconds_a_step']:.2f} | {one['dev_loss']:.4f} |")
    write_result(NAME, "OMP_NUM_THREADS=1 python benchmarks/training_memory.py", "\n".join(lines), found)


class Clock:
    """Takes what a worker tells its parent, and when it told of a step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def write(self, message: bytes) -> None:
        told = pickle.loads(message[8:])  # ours, from this process
        if told[0] == "progress" and told[1].startswith("training"):
            self.steps.append(time.perf_counter())

    def flush(self) -> None:
        pass


def measured(options: dict[str, Any]) -> dict[str, float]:
    """Ten steps in this process. What judging costs lies outside: dev is looked at before the first and after the last."""
    import gc

    from edgepipe.config import Data, Recipe
    from edgepipe.loader import load_torch
    from edgepipe.pipeline import Setting, run_recipe
    from edgepipe.profile import load_profile
    from edgepipe.progress import Silent
    from edgepipe.recipe_check import check_recipe
    from edgepipe.request import prepare
    from edgepipe.store import Store
    from edgepipe.worker import peak_bytes, reset_peak, run_job
    from edgepipe.worker_context import Job
    from edgepipe.worker_process import WorkerProcess

    prepared, store = prepare(request(profiles=["host"])), Store.default()
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        setting = Setting(store, worker, Silent(), load_profile("host"), prepared.request.data, prepared.splits, 1)
        start = store.put(prepared.artifact)
        steps = [{"pass": "merge-lora"}, {"pass": "prune-layers", "options": {"layers": [1, 3, 5]}}, {"pass": "export-onnx"}]
        checked = check_recipe(Recipe.model_validate({"step": steps}), start)
        teacher, _ = run_recipe(checked[:1], start, setting)
        student, _ = run_recipe(checked[:-1], start, setting)
    models = [load_torch(teacher), load_torch(student)]
    gc.collect()
    reset_peak()
    models_bytes = peak_bytes()
    models.clear()
    with tempfile.TemporaryDirectory() as folder:
        home, clock = Path(folder), Clock()
        samples = prepared.splits("train")
        texts = [
            (" ".join(s["text"] for s in samples[i : i + JOINED]), samples[i]["label"])
            for i in range(0, JOINED * (STEPS * ROWS_A_STEP + 32), JOINED)
        ]
        data = Data(train=written(home / "train.csv", texts[:-32]), dev=written(home / "dev.csv", texts[-32:]))
        chosen = {"epochs": 1, "batch_size": ROWS_A_STEP, "judgements": 1, **options}
        (home / "work").mkdir()
        job = Job("recover", chosen, student, home / "work", data, ("text", "label"), {}, {}, 1)
        done = run_job(replace(job, teacher=teacher), clock)  # type: ignore[arg-type]
    between = sorted(after - before for before, after in zip(clock.steps, clock.steps[1:-1], strict=False))
    return {
        "peak_bytes": done.peak_rss_bytes,
        "models_bytes": models_bytes,
        "seconds_a_step": between[len(between) // 2],
        "dev_loss": done.figures["training"]["dev"][-1][1],
    }


def written(path: Path, rows: list[tuple[str, Any]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("text", "label"), *rows])
    return str(path)


if __name__ == "__main__":
    main()
