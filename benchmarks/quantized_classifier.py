"""The demo classifier quantized: small and fast builds against Olive's conversion, fusion and dynamic int8 of the same model.

Accuracy on all test samples; latency in one session a process, alternating, spinning off, medians. The builds are what
`edgepipe compress` gives for these budgets.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from demo import ROOT, request, write_result

from edgepipe.build import baseline_of
from edgepipe.config import Recipe
from edgepipe.driver import driver_module
from edgepipe.machine import usable_cores
from edgepipe.pipeline import Setting, run_recipe
from edgepipe.probes import encoder_for
from edgepipe.profile import load_profile
from edgepipe.progress import Silent
from edgepipe.recipe_check import check_recipe
from edgepipe.request import prepare, recipe_for
from edgepipe.runners.local import AgentModel, LocalRunner
from edgepipe.store import Store, cache_root
from edgepipe.tuned_runs import run_tuned
from edgepipe.worker_process import WorkerProcess

SHAPES = ((1, 16), (1, 128), (8, 64))
ROUNDS, PER_ROUND = 40, 3
BUILDS: dict[str, dict[str, Any]] = {
    "edgepipe fast (max_size_bytes=17.5MB)": {"budget": ("max_size_bytes=17.5MB",)},
    "edgepipe small (max_size_bytes=14MB)": {"budget": ("max_size_bytes=14MB",)},
}
STORED = [
    {"pass": "merge-lora"},
    {"pass": "export-onnx"},
    {"pass": "optimize-graph"},
    {
        "pass": "quantize-weights",
        "options": {"bits": 8, "group_size": 0, "kernel": "float32", "operators": ["MatMul", "Gemm", "Attention"]},
    },
    {"pass": "quantize-dynamic", "options": {"operators": ["Gather"]}},
]


def main() -> None:
    profile, threads, store = load_profile("host"), usable_cores(), Store.default()
    built: dict[str, Any] = {}
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        for name, changes in {**BUILDS, "edgepipe float32, stored in 8 bits": {}}.items():
            prepared = prepare(request(profiles=["host"], **changes))
            setting = Setting(store, worker, Silent(), profile, prepared.request.data, prepared.splits, threads)
            start, recipe = store.put(prepared.artifact), recipe_for(prepared, profile)
            built["float32"] = baseline = baseline_of(recipe, start, setting)
            if changes:
                steps = check_recipe(recipe, start)
                done = run_tuned(steps, start, baseline, setting, prepared.task, prepared.request.budget)
                built[name] = done.artifact
                print(name, [(step.name, len(step.options.get("include", ())), step.reason) for step in done.steps], file=sys.stderr)
            else:
                built[name] = run_recipe(check_recipe(Recipe.model_validate({"step": STORED}), start), start, setting)[0]
        merged = merged_folder(start, setting)
    olive = olive_model(merged)
    runner = LocalRunner()
    models = {name: runner.open(runner.push(artifact), threads=threads) for name, artifact in built.items()}
    models["Olive 0.13"] = runner.open(folder_around(olive, fresh_folder()), threads=threads)
    medians = measure(models)
    samples = prepared.splits("test")
    outputs = {name: outputs_of(artifact.model.main_file, artifact, samples, threads) for name, artifact in built.items()}
    outputs["Olive 0.13"] = outputs_of(olive, built["float32"], samples, threads)
    sizes = {name: artifact.model.size_bytes for name, artifact in built.items()} | {"Olive 0.13": olive.stat().st_size}
    rows, data = [], {}
    labels = [str(sample["label"]) for sample in samples]
    names = list(prepared.artifact.program["labels"])
    for name, found in outputs.items():
        points = 100 * float(
            np.mean([label in (names[int(row.argmax())], str(int(row.argmax()))) for row, label in zip(found, labels, strict=True)])
        )
        agree = 100 * float((found.argmax(1) == outputs["float32"].argmax(1)).mean())
        speeds = [medians["Olive 0.13"][shape] / medians[name][shape] for shape in SHAPES]
        cells = [f"{medians[name][shape]:.2f} ({speed:.2f} ×)" for shape, speed in zip(SHAPES, speeds, strict=True)]
        rows.append(f"| {name} | {sizes[name] / 1e6:.2f} | {points:.2f} | {agree:.1f} | " + " | ".join(cells) + " |")
        data[name] = {
            "bytes": sizes[name],
            "points": points,
            "agreement": agree,
            "ms": {f"{b}x{n}": medians[name][b, n] for b, n in SHAPES},
        }
    head = (
        "| model | MB | points on test | same label as float32, % | "
        + " | ".join(f"{b} × {n} ms (× Olive's speed)" for b, n in SHAPES)
        + " |"
    )
    write_result(
        "quantized_classifier",
        "python benchmarks/quantized_classifier.py",
        "\n".join([head, "|---" * (4 + len(SHAPES)) + "|", *rows]),
        data,
    )


def merged_folder(start: Any, setting: Setting) -> Path:
    """The model with its adapter merged, as a folder that transformers reads."""
    recipe = Recipe.model_validate({"step": [{"pass": "merge-lora"}, {"pass": "export-onnx"}]})
    merged = run_recipe(check_recipe(recipe, start)[:1], start, setting)[0]
    folder = cache_root() / "peers" / "merged"
    shutil.rmtree(folder, ignore_errors=True)
    for ref in (*merged.model.files, *merged.assets):
        (folder / ref.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ref.location, folder / ref.path)
    return folder


def olive_model(merged: Path) -> Path:
    out = cache_root() / "peers" / "olive_classifier"
    subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "peers" / "olive.sh"), str(merged), str(out), "text-classification"],
        check=True,
        stdout=sys.stderr,
    )
    return next(out.glob("**/*.onnx"))


def fresh_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=cache_root() / "peers"))


def outputs_of(path: Path, artifact: Any, samples: Any, threads: int) -> np.ndarray:
    encoder = encoder_for(artifact)
    session = driver_module().open_session(str(path), threads, artifact.program.get("session", {}).get("disabled_optimizers", ()), True)
    taken = {value.name for value in session.get_inputs()}
    rows = []
    for sample in samples:
        feeds = {name: value for name, value in encoder.feeds(encoder.parts(sample)).items() if name in taken}
        rows.append(session.run(None, feeds)[0][0])
    return np.array(rows)


def folder_around(model: Path, folder: Path) -> Path:
    """The folder an agent opens, around an ONNX file that edgepipe did not make."""
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
