"""The sentence encoder made small: Spearman's correlation on three sets of human scores, and on film reviews with the teacher's.

Every pair of a set's test data; of the reviews the score is the uncompressed model's own cosine. Needs
`examples/sentiment/fetch.py`, `examples/similarity/fetch.py` and `examples/similarity/make_data.py`.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from demo import ROOT, write_result

from edgepipe.build import baseline_of
from edgepipe.config import Recipe, load_recipe
from edgepipe.driver import driver_module
from edgepipe.machine import usable_cores
from edgepipe.pipeline import Setting, run_recipe
from edgepipe.probes import encoder_for
from edgepipe.profile import load_profile
from edgepipe.progress import Silent
from edgepipe.project import make_request
from edgepipe.recipe_check import check_recipe
from edgepipe.request import prepare
from edgepipe.store import Store, cache_root
from edgepipe.tasks.sentence_similarity import spearman_points
from edgepipe.worker_process import WorkerProcess

EXAMPLE = ROOT / "examples" / "similarity"
SETS = ("simlex999", "wordsim353", "lee", "texts")
FEWER = [{"pass": "prune-vocab", "options": {"size": 22000}}]  # in place of a table of lower rank
BUILDS: dict[str, list[dict[str, Any]] | None] = {"smallest.toml": None, "22,000 tokens": FEWER}  # before its export; None: as written


def main() -> None:
    store, threads = Store.default(), usable_cores()
    home = cache_root() / "downloads" / "similarity"
    data = {"train": str(home / "train.csv"), "calibration": str(home / "calibration_mixed.csv")}
    made = make_request(project=str(EXAMPLE / "edgepipe.toml"), profiles=["host"], data=data)
    prepared = prepare(made)
    built: dict[str, Any] = {}
    written = load_recipe(EXAMPLE / "recipes" / "smallest.toml").steps
    tail = written[next(index for index, step in enumerate(written) if step.name == "export-onnx") :]
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        setting = Setting(store, worker, Silent(), load_profile("host"), made.data, prepared.splits, threads)
        start = store.put(prepared.artifact)
        for name, steps in BUILDS.items():
            if sys.argv[1:] and name not in sys.argv[1:]:
                continue
            recipe = Recipe(step=(*Recipe.model_validate({"step": steps}).steps, *tail) if steps else written)
            built.setdefault("float32", baseline_of(recipe, start, setting))
            built[name], runs = run_recipe(check_recipe(recipe, start), start, setting)
            print(name, f"built, {sum(run.seconds for run in runs) / 60:.1f} min", file=sys.stderr, flush=True)
    pairs = {name: read(home / f"{name}_test.csv") for name in SETS}
    cosines = {name: {kind: cosines_of(artifact, found, threads) for kind, found in pairs.items()} for name, artifact in built.items()}
    table = []
    for name, artifact in built.items():
        points = {
            kind: spearman_points(np.stack([cosines[name][kind], cosines["float32"][kind] if kind == "texts" else scores_of(found)], 1))
            for kind, found in pairs.items()
        }
        table.append({"name": name, "bytes": artifact.model.size_bytes, "points": points})
    first = table[0]
    rows = []
    for row in table:
        cells = [f"{row['points'][kind]:.2f} ({row['points'][kind] / first['points'][kind]:.1%})" for kind in SETS]
        rows.append(f"| {row['name']} | {row['bytes'] / 1e6:.2f} ({first['bytes'] / row['bytes']:.1f} ×) | " + " | ".join(cells) + " |")
    head = "| build | MB (× smaller) | SimLex-999 (of float32) | WordSim-353 | Lee | film reviews, the teacher's cosine |"
    asked = " ".join(["python benchmarks/embedder.py", *(f'"{name}"' for name in sys.argv[1:])])
    write_result("embedder", asked, "\n".join([head, "|---" * 6 + "|", *rows]), table)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def scores_of(pairs: list[dict[str, str]]) -> np.ndarray:
    return np.array([float(pair["label"]) for pair in pairs])


def cosines_of(artifact: Any, pairs: list[dict[str, str]], threads: int) -> np.ndarray:
    encoder = encoder_for(artifact)
    disabled = artifact.program.get("session", {}).get("disabled_optimizers", ())
    session = driver_module().open_session(str(artifact.model.main_file), threads, disabled, True)
    taken = {value.name for value in session.get_inputs()}
    found = []
    for pair in pairs:
        first, second = (
            session.run(None, {name: value for name, value in encoder.feeds([part]).items() if name in taken})[0][0]
            for part in encoder.parts(pair)
        )
        found.append(float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second))))
    return np.array(found)


if __name__ == "__main__":
    main()
