"""The demo model at 4, 3 and 2 bits: weights rounded to nearest, and trained a little while they are rounded.

One epoch over the training data for each row; accuracy of the same torch model on dev (which chose the best state) and on
test (read by nothing else). OMP_NUM_THREADS=1 for figures that another machine can be compared by.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from demo import request, write_result

from edgepipe.artifact import Artifact
from edgepipe.config import Recipe
from edgepipe.loader import load_torch
from edgepipe.machine import usable_cores
from edgepipe.passes.quantization_aware_training import QuantizationAwareTraining
from edgepipe.pipeline import Setting, run_recipe
from edgepipe.profile import load_profile
from edgepipe.progress import Silent
from edgepipe.quantization.fake_quantized_model import FakeQuantizedModel, sites_of
from edgepipe.quantization.rounding import Grid
from edgepipe.recipe_check import check_recipe
from edgepipe.request import prepare
from edgepipe.store import Store
from edgepipe.training.batches import Batches
from edgepipe.training.outputs import called
from edgepipe.worker_process import WorkerProcess

TRAINED = "quantization-aware-training"
GRIDS: tuple[dict[str, Any], ...] = (
    {"bits": 4},
    {"bits": 3},
    {"bits": 2, "symmetric": False, "learning_rate": 2e-4},
    {"bits": 2, "learned_step": True, "learning_rate": 2e-4},
)
GROUP = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, help="train on this many (default: all)")
    samples = parser.parse_args().samples
    prepared, store = prepare(request(profiles=["host"])), Store.default()
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        setting = Setting(store, worker, Silent(), load_profile("host"), prepared.request.data, prepared.splits, usable_cores())
        start = store.put(prepared.artifact)
        rows: list[dict[str, Any]] = []
        for options in GRIDS:
            chosen = {"group_size": GROUP, "max_samples": samples, **options}
            steps = [{"pass": "merge-lora"}, {"pass": TRAINED, "options": chosen}, {"pass": "export-onnx"}]
            checked = check_recipe(Recipe.model_validate({"step": steps}), start)
            float32, _ = run_recipe(checked[:1], start, setting)
            trained, (run,) = run_recipe(checked[1:2], float32, setting)
            if not rows:
                rows.append({"what": "float32", **judged(load_torch(float32), float32, prepared.splits)})
            rows.append({"what": f"{named(chosen)}, nearest", **judged(rounded(float32, chosen), float32, prepared.splits)})
            rows.append({"what": f"{named(chosen)}, trained", **judged(load_torch(trained), trained, prepared.splits),
                         "seconds": run.seconds, "peak_rss_bytes": run.peak_rss_bytes})  # fmt: skip
            print(*rows[-2:], sep="\n", file=sys.stderr, flush=True)
    lines = ["| weights | dev | test | training, s | peak memory, MB |", "|---|---|---|---|---|"]
    for row in rows:
        cost = f"{row['seconds']:.0f} | {row['peak_rss_bytes'] / 1e6:.0f}" if "seconds" in row else "– | –"
        lines.append(f"| {row['what']} | {row['dev']:.2f} | {row['test']:.2f} | {cost} |")
    command = "OMP_NUM_THREADS=1 python benchmarks/quantization_aware.py" + (f" --samples {samples}" if samples else "")
    write_result("quantization_aware", command, "\n".join(lines), rows)


def named(options: dict[str, Any]) -> str:
    kind = "asymmetric" if not options.get("symmetric", True) else "learned steps" if options.get("learned_step") else "symmetric"
    return f"{options['bits']} bits, {kind}"


def rounded(artifact: Artifact, options: dict[str, Any]) -> Any:
    """The model with its weights on the grid, untrained."""
    module, chosen = load_torch(artifact), QuantizationAwareTraining.model_validate(options)
    FakeQuantizedModel(module, sites_of(module, Grid(chosen.bits, chosen.symmetric, chosen.group_size), None)).project()
    return module


def judged(module: Any, artifact: Artifact, splits: Any) -> dict[str, float]:
    """Accuracy in points on both splits."""
    import torch

    found = {}
    for split in ("dev", "test"):
        right = 0
        with torch.no_grad():
            for batch in Batches(artifact, splits(split), 32).in_order():
                assert batch.targets is not None
                right += int((called(module, batch.inputs)["logits"].argmax(-1) == batch.targets).sum())
        found[split] = 100 * right / len(splits(split))
    return found


if __name__ == "__main__":
    main()
