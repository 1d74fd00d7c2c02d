"""How far a sample's outputs move with its neighbours in a batch and with padding, by how activations are quantized.

The demo model, 200 test samples: alone, in batches of 8 padded to the longest, and with padding to 128 tokens behind. The
same runs as the validator's. One scale for a whole batch (quantize-dynamic) moves outputs; fixed scales (quantize-static)
and a scale for each block of a row (MatMulNBits with accuracy_level 4) do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from demo import request, write_result

from edgepipe.config import Recipe
from edgepipe.gaps import row_gaps, summary
from edgepipe.machine import usable_cores
from edgepipe.measure import opened
from edgepipe.pipeline import Setting, run_recipe
from edgepipe.profile import load_profile
from edgepipe.progress import Silent
from edgepipe.recipe_check import check_recipe
from edgepipe.request import prepare
from edgepipe.runners.local import LocalRunner
from edgepipe.store import Store
from edgepipe.worker_process import WorkerProcess

SAMPLES, BATCH, PADDED = 200, 8, 128
SCHEMES: dict[str, list[dict[str, Any]]] = {
    "float32": [],
    "int8, one scale a run (quantize-dynamic)": [{"pass": "quantize-dynamic"}],
    "int8, fixed scales (quantize-static)": [{"pass": "quantize-static"}],
    "8-bit weights, a scale for each block of a row (MatMulNBits)": [{"pass": "quantize-weights", "options": {"bits": 8}}],
    "4-bit weights, a scale for each block of a row (MatMulNBits)": [{"pass": "quantize-weights", "options": {"bits": 4}}],
}


def main() -> None:
    profile = load_profile("host")
    prepared, store = prepare(request(profiles=["host"])), Store.default()
    samples = prepared.splits("test")[:SAMPLES]
    found: dict[str, dict[str, dict[str, float]]] = {}
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        setting = Setting(store, worker, Silent(), profile, prepared.request.data, prepared.splits, usable_cores())
        start = store.put(prepared.artifact)
        for name, last in SCHEMES.items():
            steps = [{"pass": "merge-lora"}, {"pass": "export-onnx"}, {"pass": "optimize-graph"}, *last]
            artifact, _ = run_recipe(check_recipe(Recipe.model_validate({"step": steps}), start), start, setting)
            found[name] = moved(artifact.root, samples)
    lines = [
        "| activations | largest move in a batch | labels that move | largest move with padding | labels that move |",
        "|---|---|---|---|---|",
    ]
    for name, kinds in found.items():
        cells = [f"{kind['max_abs']:.2g} | {100 * (1 - kind['label_agreement']):.1f} %" for kind in kinds.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_result("invariance", "python benchmarks/invariance.py", "\n".join(lines), found)


def moved(folder: Path, samples: list[Any]) -> dict[str, dict[str, float]]:
    """`edgepipe.gaps.summary` of each sample's outputs alone against those in a batch, and with padding behind."""
    with opened(LocalRunner(), folder, threads=usable_cores()) as model:
        alone = [one.outputs[0] for one in model.predict(samples)]
        batch = [
            gap
            for start in range(0, len(samples), BATCH)
            for gap in row_gaps(model.batch(samples[start : start + BATCH]), alone[start : start + BATCH])
        ]
        padding = [gap for sample, one in zip(samples, alone, strict=True) for gap in row_gaps(model.batch([sample], PADDED), [one])]
    return {"batch": summary(batch), "padding": summary(padding)}


if __name__ == "__main__":
    main()
