"""The demo classifier from large to small: accuracy against size and latency, here and on a Raspberry Pi 4, beside Olive's and
optimum's artefacts and a student that no teacher taught.

Accuracy on all test samples, paired with the uncompressed model. Latency at 1 × 128 here: one session a process, alternating,
spinning off, medians. On the Pi: predicted from instructions counted under emulation, on all its cores. What is trained is kept
in the store: a second run takes it from there.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from demo import RESULTS, ROOT, request, write_result
from frontier_plot import plot
from quantized_classifier import folder_around, fresh_folder, measure, merged_folder, olive_model, outputs_of

from edgepipe.build import baseline_of
from edgepipe.config import Recipe, load_recipe
from edgepipe.graph_costs import graph_costs
from edgepipe.machine import usable_cores
from edgepipe.pipeline import Setting, run_recipe
from edgepipe.profile import load_profile
from edgepipe.progress import Silent
from edgepipe.recipe_check import check_recipe
from edgepipe.request import prepare, recipe_for
from edgepipe.runners.local import LocalRunner
from edgepipe.store import Store, cache_root
from edgepipe.tuned_runs import run_tuned
from edgepipe.weights import load_onnx
from edgepipe.worker_process import WorkerProcess

SMALLEST = ROOT / "examples" / "sentiment" / "recipes" / "smallest.toml"
TUNED = {"int8": (), "≤ 17.5 MB": ("max_size_bytes=17.5MB",), "≤ 14 MB": ("max_size_bytes=14MB",)}
# What each build has otherwise than recipes/smallest.toml: options by pass; None leaves the pass out.
PRUNED: dict[str, dict[str, dict[str, Any] | None]] = {
    "3 layers, not trained": {"prune-vocab": None, "prune-ffn": None, "recover": None},
    "3 layers": {"prune-vocab": {}, "prune-ffn": None},
    "smallest.toml": {},
    "smallest.toml, half the neurons, 8,000 tokens": {"prune-vocab": {"size": 8000}, "prune-ffn": {"ratio": 0.5}},
    "2 layers, 8,000 tokens": {"prune-layers": {"layers": [2, 5]}, "prune-vocab": {"size": 8000}, "prune-ffn": None},
    "smallest.toml without a teacher": {"recover": {"objectives": {"task": 1.0}}},
}
PEERS = ("Olive 0.13", "optimum 2.1")


def main() -> None:
    profile, threads, store = load_profile("host"), usable_cores(), Store.default()
    built: dict[str, Any] = {}
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        for name, budget in TUNED.items():
            prepared = prepare(request(profiles=["host"], budget=budget))
            setting = Setting(store, worker, Silent(), profile, prepared.request.data, prepared.splits, threads)
            start, recipe = store.put(prepared.artifact), recipe_for(prepared, profile)
            built["float32"] = baseline_of(recipe, start, setting)
            done = run_tuned(check_recipe(recipe, start), start, built["float32"], setting, prepared.task, prepared.request.budget)
            built[name] = done.artifact
            print(name, "built", file=sys.stderr, flush=True)
        for name, changes in PRUNED.items():
            built[name], runs = run_recipe(check_recipe(changed(changes), start), start, setting)
            print(name, f"built, {sum(run.seconds for run in runs) / 60:.1f} min", file=sys.stderr, flush=True)
        merged = merged_folder(start, setting)
    peers = {PEERS[0]: olive_model(merged), PEERS[1]: optimum_model(merged)}
    samples = prepared.splits("test")
    found = {name: outputs_of(artifact.model.main_file, artifact, samples, threads) for name, artifact in built.items()}
    found |= {name: outputs_of(path, built["float32"], samples, threads) for name, path in peers.items()}
    runner = LocalRunner()
    models = {name: runner.open(runner.push(artifact), threads=threads) for name, artifact in built.items()}
    models |= {name: runner.open(folder_around(path, fresh_folder()), threads=threads) for name, path in peers.items()}
    here = {name: medians[1, 128] for name, medians in measure(models).items()}
    files = {name: artifact.model.main_file for name, artifact in built.items()} | peers
    sizes = {name: artifact.model.size_bytes for name, artifact in built.items()} | {name: p.stat().st_size for name, p in peers.items()}
    there = on_the_pi(files, store)
    right = {name: correct(rows, samples, list(prepared.artifact.program["labels"])) for name, rows in found.items()}
    data = []
    for name in files:
        drops = 100 * (right["float32"].astype(float) - right[name])
        data.append(
            {
                "name": name, "points": 100 * float(right[name].mean()), "drop": float(drops.mean()), "interval": interval(drops),
                "bytes": sizes[name], "smaller": sizes["float32"] / sizes[name], "ms": here[name], "faster": here["float32"] / here[name],
                "rpi4_ms": there[name], "rpi4_faster": there["float32"] / there[name],
            }
        )  # fmt: skip
    head = "| build | points | drop [95 %] | MB (× smaller) | ms here (× faster) | ms on rpi4, predicted (× fewer) |"
    rows = [
        f"| {row['name']} | {row['points']:.2f} | {row['drop']:.2f} [{row['interval'][0]:.2f}, {row['interval'][1]:.2f}] | "
        f"{row['bytes'] / 1e6:.2f} ({row['smaller']:.1f} ×) | {row['ms']:.2f} ({row['faster']:.2f} ×) | "
        f"{row['rpi4_ms']:.1f} ({row['rpi4_faster']:.2f} ×) |"
        for row in data
    ]
    write_result("frontier", "python benchmarks/frontier.py", "\n".join([head, "|---" * 6 + "|", *rows]), data)
    (RESULTS / "frontier.svg").write_text(plot(data, PEERS), encoding="utf-8")


def changed(changes: dict[str, dict[str, Any] | None]) -> Recipe:
    """recipes/smallest.toml with other options, and without the passes that are None. Options of a pass that are named replace
    all of its own, those of `recover` come on top."""
    steps = []
    for step in load_recipe(SMALLEST).steps:
        options = changes.get(step.name, step.options)
        if options is None:
            continue
        steps.append(step.model_copy(update={"options": {**step.options, **options} if step.name == "recover" else options}))
    return Recipe(step=tuple(steps))


def optimum_model(merged: Path) -> Path:
    """optimum's export and its own dynamic quantization for AVX-512 with VNNI."""
    from optimum.onnxruntime import ORTModelForSequenceClassification, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    out = cache_root() / "peers" / "optimum_classifier"
    shutil.rmtree(out, ignore_errors=True)
    exported = ORTModelForSequenceClassification.from_pretrained(merged, export=True)
    quantizer = ORTQuantizer.from_pretrained(exported)
    quantizer.quantize(save_dir=out, quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True))
    return next(out.glob("*.onnx"))


def on_the_pi(files: dict[str, Path], store: Store) -> dict[str, float]:
    profile = load_profile("rpi4")
    rng = np.random.default_rng(0)
    graphs = {}
    for name, path in files.items():
        model = load_onnx(path, data=True)
        inputs = {
            "input_ids": rng.integers(1000, 8000, (1, 128)), "attention_mask": np.ones((1, 128), np.int64),
            "token_type_ids": np.zeros((1, 128), np.int64),
        }  # fmt: skip
        graphs[name] = (model, {value.name: inputs[value.name] for value in model.graph.input})
    return graph_costs(graphs, profile, store, Silent(), threads=profile.runtime.threads).ms


def correct(outputs: np.ndarray, samples: list[Any], names: list[str]) -> np.ndarray:
    return np.array(
        [str(sample["label"]) in (names[int(row.argmax())], str(int(row.argmax()))) for row, sample in zip(outputs, samples, strict=True)]
    )


def interval(values: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
