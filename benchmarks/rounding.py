"""4-bit encoders by method of rounding: the demo classifier's accuracy, all-MiniLM-L6-v2's embeddings and their Spearman scores.

Both models are the runtime's own fused graphs; products get few bits, tables stay float32 unless a row says otherwise.
The classifier is judged on all 2,200 test samples, the encoder on the texts of the Lee test pairs (and on SimLex-999's words).
Calibration data is each example's own.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from demo import EXAMPLE, ROOT, write_result

from edgepipe.config import Recipe
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepipe.artifact import Artifact

PRODUCTS = ["MatMul", "Gemm", "Attention"]
FEW: dict[str, Any] = {"bits": 4, "operators": PRODUCTS}
METHODS: dict[str, dict[str, Any]] = {
    "nearest": {"method": "nearest"},
    "mse": {"method": "mse"},
    "hqq": {"method": "hqq"},
    "k-quant": {"method": "k-quant"},
    "gptq": {"method": "gptq"},
    "adaround": {"method": "adaround"},
    "nearest + AWQ": {"method": "nearest", "scale_activations": True},
}
CHANNEL = {"group_size": 0, "kernel": "float32"}  # one scale a column: no few-bit kernel has such blocks


@dataclass(frozen=True, slots=True)
class Row:
    weights: str
    method: str
    step: str
    options: dict[str, Any]


def rows() -> Iterator[Row]:
    for name, options in METHODS.items():
        yield Row("4 bits, a scale a column", name, "quantize-weights", {**FEW, **options, **CHANNEL})
    for name, options in METHODS.items():
        yield Row("4 bits, groups of 32", name, "quantize-weights", {**FEW, **options, "group_size": 32})
    for step, name in (("dynamic", "nearest"), ("dynamic", "gptq"), ("static", "gptq")):
        options = {"stored_bits": 4, "method": name, "operators": PRODUCTS}
        yield Row(f"int8 stored in 4 bits, {step}", name, f"quantize-{step}", options)
    for name in ("nearest", "mse"):
        yield Row("4 bits, groups of 32, table alone", name, "quantize-weights", {**FEW, "operators": ["Gather"], "method": name})
    for name in ("nearest", "gptq", "adaround"):
        yield Row("2 bits, groups of 16", name, "quantize-weights", {**FEW, "bits": 2, "method": name, "group_size": 16})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose weights and method hold this")
    only = parser.parse_args().only
    store, profile = Store.default(), load_profile("host")
    wanted = [row for row in rows() if only in f"{row.weights}, {row.method}"]
    found: list[dict[str, Any]] = [{"weights": "float32", "method": "–"}, *({"weights": r.weights, "method": r.method} for r in wanted)]
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        for judge, project in ((judge_classifier, EXAMPLE), (judge_encoder, ROOT / "examples" / "similarity")):
            prepared = prepare(make_request(project=str(project / "edgepipe.toml"), profiles=["host"]))
            setting = Setting(store, worker, Silent(), profile, prepared.request.data, prepared.splits, usable_cores())
            start = store.put(prepared.artifact)
            merge = [{"pass": "merge-lora"}] if "adapter" in start.components else []
            before = [*merge, {"pass": "export-onnx"}, {"pass": "optimize-graph"}]
            float32: Any = None
            for entry, row in zip(found, [None, *wanted], strict=True):
                steps = [*before, {"pass": row.step, "options": row.options}] if row else before
                done = run_recipe(check_recipe(Recipe.model_validate({"step": steps}), start), start, setting)[0]
                given, float32 = judge(done, prepared.splits("test"), float32)
                entry |= given
                print(entry, file=sys.stderr, flush=True)
    head = (
        "| weights | rounding | classifier: points on test | lost | same label, % | "
        "encoder: mean cosine to float32 | least | Lee, Spearman × 100 | lost | SimLex-999 | lost |"
    )
    lines = [head, "|---" * 11 + "|"]
    for entry in found:
        lost = {key: found[0][key] - entry[key] for key in ("points", "lee", "simlex999")}
        lines.append(
            f"| {entry['weights']} | {entry['method']} | {entry['points']:.2f} | {lost['points']:.2f} | {entry['agreement']:.1f} | "
            f"{entry['cosine']:.4f} | {entry['least_cosine']:.4f} | {entry['lee']:.2f} | {lost['lee']:.2f} | "
            f"{entry['simlex999']:.2f} | {lost['simlex999']:.2f} |"
        )
    if only:
        print("\n".join(lines))
    else:
        write_result("rounding", "python benchmarks/rounding.py", "\n".join(lines), found)


def outputs(artifact: Artifact, samples: list[Any]) -> np.ndarray:
    """The first output of each part of each sample, run one by one, [parts, d]."""
    encoder = encoder_for(artifact)
    disabled = artifact.program.get("session", {}).get("disabled_optimizers", ())
    session = driver_module().open_session(str(artifact.model.main_file), 1, disabled, True)
    taken = {value.name for value in session.get_inputs()}
    found = []
    for sample in samples:
        for part in encoder.parts(sample):
            feeds = encoder.feeds([part])
            found.append(session.run(None, {name: value for name, value in feeds.items() if name in taken})[0][0].ravel())
    return np.array(found)


def judge_classifier(artifact: Artifact, samples: list[Any], float32: Any) -> tuple[dict[str, float], Any]:
    names = list(artifact.program["labels"])
    labels = outputs(artifact, samples).argmax(1)
    float32 = labels if float32 is None else float32
    right = [str(sample["label"]) in (names[label], str(label)) for sample, label in zip(samples, labels, strict=True)]
    return {"points": 100 * float(np.mean(right)), "agreement": 100 * float((labels == float32).mean())}, float32


def judge_encoder(artifact: Artifact, samples: list[Any], float32: Any) -> tuple[dict[str, float], Any]:
    """Each text is embedded once, though it is in many pairs."""
    sets = {"lee": samples, "simlex999": words()}
    texts = list(dict.fromkeys(text for pairs in sets.values() for pair in pairs for text in (pair["text"], pair["text_pair"])))
    texts += texts[:1] if len(texts) % 2 else []
    rows = outputs(artifact, [{"text": a, "text_pair": b} for a, b in zip(texts[::2], texts[1::2], strict=True)])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    float32 = rows if float32 is None else float32
    of, given = dict(zip(texts, rows, strict=True)), {}
    for name, pairs in sets.items():
        counts = np.array([[float(of[pair["text"]] @ of[pair["text_pair"]]), float(pair["label"])] for pair in pairs])
        given[name] = spearman_points(counts)
    cosines = (rows * float32).sum(1)
    return {**given, "cosine": float(cosines.mean()), "least_cosine": float(cosines.min())}, float32


def words() -> list[dict[str, str]]:
    with (cache_root() / "downloads" / "similarity" / "simlex999_test.csv").open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


if __name__ == "__main__":
    main()
