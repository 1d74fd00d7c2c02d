"""float32, edgepipe's int8 and Olive's int8 side by side: one session a process, alternating, spinning off, medians.

Run build_speed.py first: it leaves both int8 models under EDGEPIPE_CACHE/peers.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from demo import request, write_result

from edgepipe.build import baseline_of
from edgepipe.machine import usable_cores
from edgepipe.pipeline import Setting, check_recipe, run_recipe
from edgepipe.profile import load_profile
from edgepipe.progress import Silent
from edgepipe.request import prepare, recipe_for
from edgepipe.runners.local import AgentModel, LocalRunner
from edgepipe.store import Store, cache_root
from edgepipe.worker_process import WorkerProcess

SHAPES = ((1, 16), (1, 128), (8, 64))
ROUNDS, PER_ROUND = 40, 3


def main() -> None:
    peers = cache_root() / "peers"
    olive = next(peers.glob("olive_out/**/*.onnx"), None)
    if olive is None:
        sys.exit("run benchmarks/build_speed.py first: it builds Olive's model")
    profile, threads = load_profile("host"), usable_cores()
    prepared = prepare(request(profiles=["host"]))
    store = Store.default()
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        setting = Setting(store, worker, Silent(), profile, prepared.request.data, prepared.splits, threads)
        start = store.put(prepared.artifact)
        recipe = recipe_for(prepared, profile)
        int8 = run_recipe(check_recipe(recipe, start), start, setting)[0]
        float32 = baseline_of(recipe, start, setting)
    runner = LocalRunner()
    models = {
        "float32": runner.open(runner.push(float32), threads=threads),
        "Olive 0.13 int8": runner.open(folder_around(olive, workdir_of(peers)), threads=threads),
        "edgepipe int8": runner.open(runner.push(int8), threads=threads),
    }
    sizes = {"float32": float32.model.size_bytes, "Olive 0.13 int8": olive.stat().st_size, "edgepipe int8": int8.model.size_bytes}
    medians = measure(models)
    lines = [
        "| model | bytes | smaller | " + " | ".join(f"{b} × {n} ms (speed-up)" for b, n in SHAPES) + " |",
        "|---|---|---|" + "---|" * len(SHAPES),
    ]
    for name in models:
        cells = [f"{medians[name][shape]:.2f} ({medians['float32'][shape] / medians[name][shape]:.2f} ×)" for shape in SHAPES]
        lines.append(f"| {name} | {sizes[name]:,} | {sizes['float32'] / sizes[name]:.2f} × | " + " | ".join(cells) + " |")
    data = {name: {f"{b}x{n}": found[b, n] for b, n in SHAPES} for name, found in medians.items()}
    write_result("int8_speed", "python benchmarks/int8_speed.py", "\n".join(lines), data)


def workdir_of(peers: Path) -> Path:
    folder = peers / "olive_artifact"
    folder.mkdir(exist_ok=True)
    return folder


def folder_around(model: Path, folder: Path) -> Path:
    """The folder an agent opens, around an ONNX file that edgepipe did not make."""
    import json

    (folder / "model").mkdir(exist_ok=True)
    target = folder / "model" / "model.onnx"
    target.unlink(missing_ok=True)
    os.link(model, target)
    program = {"kind": "single", "component": "model", "preprocess": {"kind": "tensors"}}
    (folder / "artifact.json").write_text(
        json.dumps({"program": program, "components": {"model": {"files": [{"path": "model.onnx"}]}}, "assets": []})
    )
    return folder


def measure(models: dict[str, AgentModel]) -> dict[str, dict[tuple[int, int], float]]:
    medians: dict[str, dict[tuple[int, int], float]] = {name: {} for name in models}
    rng = np.random.default_rng(0)
    for batch, length in SHAPES:
        feeds: dict[str, Any] = {
            "input_ids": rng.integers(1000, 20000, (batch, length)), "attention_mask": np.ones((batch, length), np.int64),
            "token_type_ids": np.zeros((batch, length), np.int64),
        }  # fmt: skip
        taken: dict[str, list[int]] = {name: [] for name in models}
        for number in range(ROUNDS + 2):
            for name, model in models.items():
                times = model.repeat(feeds, PER_ROUND)
                if number >= 2:
                    taken[name] += times
        for name in models:
            medians[name][batch, length] = statistics.median(taken[name]) / 1e6
    for model in models.values():
        model.close()
    return medians


if __name__ == "__main__":
    main()
