"""recover with one option changed a row: objectives, augmentation, sampling, learning rate, unlabelled data.

Texts: the demo classifier cut to layers 1, 3 and 5 of 6, 1,000 training samples, 2 epochs. Images: the Fashion-MNIST residual network
at half its channels, 4,000 training images, 2 epochs. Accuracy on the test data, with the paired difference to the row it is
compared with (95 %, bootstrap over samples). Each row runs in its own process and is kept below EDGEPIPE_CACHE/benchmarks: a
run that was ended goes on. About two hours of one core with OMP_NUM_THREADS=1; seconds are the processor's, of the whole row but
for the test data: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from demo import ROOT, write_result

from edgepipe.config import Recipe, Task
from edgepipe.intervals import bootstrap
from edgepipe.store import cache_root
from edgepipe.tasks import load_task

NAME = "recovery_options"
BOTH = {"logits": 1.0, "hidden": 1.0}
TEXT = {"objectives": BOTH, "max_samples": 1000, "epochs": 2, "judgements": 1}
IMAGE = {
    "objectives": {"task": 1.0, "logits": 1.0},
    "max_samples": 4000,
    "epochs": 2,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "judgements": 1,
}
CURVE = {"epochs": 4, "judgements": 2, "patience": 100}
LABELS = {"objectives": {"task": 1.0}}
FEW = {"max_samples": 200}


def text(name: str, against: str = "plain", **options: Any) -> tuple[str, dict[str, Any]]:
    return name, {"model": "text", "against": against, "options": {**TEXT, **options}}


def image(name: str, against: str = "images, plain", **options: Any) -> tuple[str, dict[str, Any]]:
    return name, {"model": "image", "against": against, "options": {**IMAGE, **options}}


def beside(**objectives: float) -> dict[str, float]:
    return BOTH | {name.replace("_", "-"): weight for name, weight in objectives.items()}


GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "objectives": dict(
        (
            text("plain"),
            text("logits alone", objectives={"logits": 1.0}),
            text("hidden alone", objectives={"hidden": 1.0}),
            text("task alone", objectives={"task": 1.0}),
            text("+ task", objectives=beside(task=1.0)),
            text("+ attention", objectives=beside(attention=1.0)),
            text("+ relations", objectives=beside(relations=1.0)),
            text("+ masked-tokens, random", objectives=beside(masked_tokens=0.1)),
            text("+ masked-tokens, whole-word", objectives=beside(masked_tokens=0.1), masking="whole-word"),
            text("+ masked-tokens, span", objectives=beside(masked_tokens=0.1), masking="span"),
            text("+ masked-tokens, random, rate 0.3", objectives=beside(masked_tokens=0.1), mask_rate=0.3),
            text("+ masked-tokens, softmax over 1,000", objectives=beside(masked_tokens=0.1), output_sampling=1000),
            text("+ masked-tokens, NCE over 1,000", objectives=beside(masked_tokens=0.1), output_sampling=1000, output_estimate="nce"),
            text("+ contrastive, teacher", objectives=beside(contrastive=0.1)),
            text("+ contrastive, dropout 0.1", objectives=beside(contrastive=0.1), positives="dropout", dropout=0.1),
            text("dropout 0.1 alone", dropout=0.1),
        )
    ),
    "augmentation": dict(
        (
            text("token-dropout", augment=["token-dropout"]),
            text("token-swap", augment=["token-swap"]),
            text("synonyms", augment=["synonyms"]),
            text("mixup", augment=["mixup"]),
            text("token-dropout, synonyms and mixup", augment=["token-dropout", "synonyms", "mixup"]),
        )
    ),
    "sampling": dict(
        (
            text("uniform", against="uniform", **CURVE),
            text("loss", against="uniform", sampling="loss", **CURVE),
            text("gradient-norm", against="uniform", sampling="gradient-norm", **CURVE),
            text("labels, uniform", against="labels, uniform", **CURVE, **LABELS),
            text("labels, loss", against="labels, uniform", sampling="loss", **CURVE, **LABELS),
            text("labels, gradient-norm", against="labels, uniform", sampling="gradient-norm", **CURVE, **LABELS),
        )
    ),
    "learning rate": dict(
        (
            text("found", learning_rate="find"),
            text("1e-4", learning_rate=1e-4),
            text("1e-3", learning_rate=1e-3),
        )
    ),
    "unlabelled": dict(
        (
            text("4 epochs", epochs=4),
            text("1,000 more without labels", against="4 epochs", unlabelled=1000),
            text("200 samples, 10 epochs", against="200 samples, 10 epochs", epochs=10, patience=100, **FEW),
            text("200 samples and 800 without labels, 2 epochs", against="200 samples, 10 epochs", unlabelled=800, epochs=2, **FEW),
        )
    ),
    "images": dict(
        (
            image("images, plain"),
            image("images, crop", augment=["crop"]),
            image("images, flip", augment=["flip"]),
            image("images, rotate", augment=["rotate"]),
            image("images, mixup", augment=["mixup"]),
            image("images, cutmix", augment=["cutmix"]),
            image("images, crop and flip", augment=["crop", "flip"]),
        )
    ),
    "sampling of images": dict(
        (
            image("images, labels, uniform", against="images, labels, uniform", **CURVE, **LABELS),
            image("images, labels, loss", against="images, labels, uniform", sampling="loss", **CURVE, **LABELS),
            image("images, labels, gradient-norm", against="images, labels, uniform", sampling="gradient-norm", **CURVE, **LABELS),
        )
    ),
}
ROWS = {name: row for group in GROUPS.values() for name, row in group.items()}
STUDENTS = {
    "text": (ROOT / "examples/sentiment/edgepipe.toml", [{"pass": "merge-lora"}, {"pass": "prune-layers", "options": {"layers": [1, 3, 5]}}]),
    "image": (ROOT / "examples/fashion/edgepipe.toml", [{"pass": "prune-channels", "options": {"ratio": 0.5}}]),
}  # fmt: skip
TASKS = {"text": "text-classification", "image": "image-classification"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=sorted(ROWS), help="run this row alone, here")
    parser.add_argument("--groups", nargs="*", choices=sorted(GROUPS), default=list(GROUPS), help="run these rows (default: all)")
    args = parser.parse_args()
    home = cache_root() / "benchmarks" / NAME
    home.mkdir(parents=True, exist_ok=True)
    if args.row:
        row = ROWS[args.row]
        kept(home, args.row).write_text(json.dumps({"row": row, **trained(row)}), encoding="utf-8")
        return
    for name in (name for group in args.groups for name in GROUPS[group]):
        if known(home, name) is None:
            print(name, file=sys.stderr, flush=True)
            subprocess.run([sys.executable, __file__, "--row", name], check=True)
        tables(home)


def kept(home: Path, name: str) -> Path:
    return home / f"{name.replace(' ', '_')}.json"


def known(home: Path, name: str) -> dict[str, Any] | None:
    """What a row gave, if it was run as it is now."""
    path = kept(home, name)
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(found) if found.get("row") == json.loads(json.dumps(ROWS[name])) else None


def trained(row: dict[str, Any]) -> dict[str, Any]:
    """Recover, and judge each test sample; the student before, and the teacher, too."""
    from edgepipe.machine import usable_cores
    from edgepipe.pipeline import Setting, run_recipe
    from edgepipe.profile import load_profile
    from edgepipe.progress import Silent
    from edgepipe.project import make_request
    from edgepipe.recipe_check import check_recipe
    from edgepipe.request import prepare
    from edgepipe.store import Store
    from edgepipe.worker_process import WorkerProcess

    project, cuts = STUDENTS[row["model"]]
    options = dict(row["options"])
    unlabelled = options.pop("unlabelled", None)
    data = {}
    if unlabelled:
        data, options["max_unlabelled"] = {"unlabelled": str(cache_root() / "downloads/sentiment/unlabelled.csv")}, unlabelled
    prepared, store = prepare(make_request(project=str(project), profiles=["host"], data=data)), Store.default()
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        setting = Setting(store, worker, Silent(), load_profile("host"), prepared.request.data, prepared.splits, usable_cores())
        start = store.put(prepared.artifact)
        recipe = Recipe.model_validate({"step": [*cuts, {"pass": "recover", "options": options}, {"pass": "export-onnx"}]})
        checked = check_recipe(recipe, start)
        student, _ = run_recipe(checked[:-2], start, setting)
        after, runs = run_recipe(checked[:-1], start, setting)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # the worker has ended
    return {
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_rss_bytes": runs[-1].peak_rss_bytes,
        "parameters": after.model.parameters,
        "figures": runs[-1].figures,
        "right": right(after, prepared.splits("test")),
        "before": float(np.mean(right(student, prepared.splits("test")))) if row["against"] in ("plain", "images, plain") else None,
    }


def right(artifact: Any, samples: Any) -> list[int]:
    """Of each sample, in its place: whether the model is right."""
    import torch

    from edgepipe.loader import load_torch
    from edgepipe.training.batches import Batches
    from edgepipe.training.losses import first
    from edgepipe.training.outputs import called

    module, found = load_torch(artifact), np.zeros(len(samples), int)
    with torch.no_grad():
        for batch in Batches(artifact, samples, 32).in_order():
            found[batch.samples.numpy()] = (first(called(module, batch.inputs)).argmax(-1) == batch.targets).numpy()
    return [int(one) for one in found]


def tables(home: Path) -> None:
    """Everything known so far."""
    done = {name: found for name in ROWS if (found := known(home, name))}
    lines: list[str] = []
    for group, rows in GROUPS.items():
        present = [name for name in rows if name in done]
        if not present:
            continue
        lines += ["", f"**{group}**", ""]
        curve = group.startswith("sampling")
        lines.append("| row | test accuracy | difference, 95 % | to |" + (" steps to its best dev loss |" if curve else "") + " CPU s |")
        lines.append("|---|---|---|---|---|" + ("---|" if curve else ""))
        for name in present:
            lines.append(line(name, done, curve=curve))
    data = {name: {key: value for key, value in found.items() if key != "right"} for name, found in done.items()}
    before = [f"{name}: {100 * found['before']:.2f} before recovery" for name, found in done.items() if name in ("plain", "images, plain")]
    write_result(NAME, "OMP_NUM_THREADS=1 python benchmarks/recovery_options.py", "\n".join([*before, *lines]), data)


def line(name: str, done: dict[str, Any], *, curve: bool) -> str:
    one, row = done[name], ROWS[name]
    ours = np.array(one["right"], float)[:, None]
    cells = [name, f"{100 * ours.mean():.2f}"]
    base = done.get(row["against"])
    if base is None or row["against"] == name:
        cells += ["–", "–"]
    else:
        theirs = np.array(base["right"], float)[:, None]
        _, _, (low, high) = bootstrap(load_task(Task(name=TASKS[row["model"]])), theirs, ours)
        cells += [f"{100 * (ours.mean() - theirs.mean()):+.2f} ({-high:+.2f} to {-low:+.2f})", row["against"]]
    if curve:
        cells.append(steps_to(base or one, one))
    found = one["figures"].get("learning_rate")
    cells.append(f"{one['cpu_seconds']:.0f}" + (f" (rate {found['found']:.1e})" if found else ""))
    return f"| {' | '.join(cells)} |"


def steps_to(base: dict[str, Any], one: dict[str, Any]) -> str:
    """When a run's dev loss was first as low as the lowest of the one it is compared with."""
    wanted = min(loss for _, loss in base["figures"]["training"]["dev"])
    reached = next((step for step, loss in one["figures"]["training"]["dev"] if loss <= wanted), None)
    return f"not in {one['figures']['training']['steps']}" if reached is None else str(reached)


if __name__ == "__main__":
    main()
