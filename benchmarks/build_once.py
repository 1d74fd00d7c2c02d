"""Build the demo model once by the passes that Olive runs too (merge → export → optimize → dynamic int8), without judging it;
prints one JSON line. Used by build_speed.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from demo import request

from edgepipe.config import Recipe, load_recipe
from edgepipe.machine import usable_cores
from edgepipe.pipeline import Setting, run_recipe
from edgepipe.profile import load_profile
from edgepipe.progress import Silent
from edgepipe.recipe_check import check_recipe
from edgepipe.request import prepare
from edgepipe.store import Store
from edgepipe.worker_process import WorkerProcess

PASSES = ("merge-lora", "export-onnx", "optimize-graph", "quantize-dynamic")


def main() -> None:
    recipe_file = sys.argv[1] if len(sys.argv) > 1 else None
    profile = load_profile("host")
    prepared = prepare(request(profiles=["host"]))
    recipe = load_recipe(Path(recipe_file)) if recipe_file else Recipe.model_validate({"step": [{"pass": name} for name in PASSES]})
    steps = check_recipe(recipe, prepared.artifact)
    store = Store.default()
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        setting = Setting(store, worker, Silent(), profile, prepared.request.data, prepared.splits, usable_cores())
        artifact, runs = run_recipe(steps, store.put(prepared.artifact), setting)
    print(json.dumps({"bytes": artifact.model.size_bytes, "model": str(artifact.model.main_file), "passes": {run.name: run.seconds for run in runs},
                      "peaks": {run.name: run.peak_rss_bytes for run in runs}}))  # fmt: skip


if __name__ == "__main__":
    main()
