"""The same quantized files on every kind of kernel: how far each target's outputs are from a plain session on this machine.

x86 here, x86 without VNNI, Cortex-A72 and Cortex-A76 under emulation (their own kernels run), and WebAssembly in a browser.
One file for all of them, except the last row of a model: built for x86 without VNNI, with 7 bits where its sums saturate.
`edgepipe devices setup rpi4` and `edgepipe devices setup browser-wasm` come first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo import EXAMPLE, ROOT, write_result

from edgepipe.config import Recipe
from edgepipe.gaps import gap_of, summary
from edgepipe.machine import usable_cores
from edgepipe.measure import opened
from edgepipe.pipeline import Setting, run_recipe
from edgepipe.profile import load_profile
from edgepipe.progress import Silent
from edgepipe.project import make_request
from edgepipe.recipe_check import check_recipe
from edgepipe.request import prepare
from edgepipe.runners import runner_for
from edgepipe.runners.local import LocalRunner
from edgepipe.store import Store, cache_root
from edgepipe.worker_process import WorkerProcess

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact

WIDE, OLD_PC = "rpi4", "x86-avx2"  # profiles that files are built for: sums of 32 bits, sums of 16
TARGETS = {"x86 here": "host", "x86, no VNNI": OLD_PC, "Cortex-A72": "rpi4", "Cortex-A76": "rpi5", "WebAssembly": "browser-wasm"}
STATIC, DYNAMIC = {"pass": "quantize-static"}, {"pass": "quantize-dynamic"}
FOUR_BITS = {"pass": "quantize-weights", "options": {"bits": 4}}
TEXT = {
    "int8, fixed scales": (WIDE, STATIC),
    "int8, one scale a run": (WIDE, DYNAMIC),
    "4-bit weights and tables": (WIDE, FOUR_BITS),
    "int8, fixed scales, 7 bits where sums saturate": (OLD_PC, STATIC),
}
IMAGES = {"int8, fixed scales": (WIDE, STATIC), "int8, fixed scales, 7 bits where sums saturate": (OLD_PC, STATIC)}
MODELS = {"sentiment": (EXAMPLE, TEXT), "fashion": (ROOT / "examples" / "fashion", IMAGES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100)
    count = parser.parse_args().samples
    rows: list[dict[str, Any]] = []
    for model, (folder, schemes) in MODELS.items():
        if not (cache_root() / "downloads" / model).is_dir():
            print(f"{model}: run {folder.relative_to(ROOT)}/fetch.py first; left out", file=sys.stderr)
            continue
        for name, (profile, step) in schemes.items():
            artifact, samples = built(folder, profile, step)
            found = {target: apart(artifact, samples[:count], where) for target, where in TARGETS.items()}
            rows.append({"model": model, "artifact": name, "reduced": len(artifact.program.get("reduced_range", {})), "targets": found})
            print(rows[-1], file=sys.stderr, flush=True)
    lines = [
        "Cosine, largest difference and share of equal labels, to an unoptimised session of the same file here:",
        "",
        "| model | file | " + " | ".join(TARGETS) + " |",
        "|---|---|" + "---|" * len(TARGETS),
    ]
    for row in rows:
        cells = [f"{one['cosine']:.6f}, {one['max_abs']:.2g}, {100 * one['label_agreement']:.0f} %" for one in row["targets"].values()]
        lines.append(f"| {row['model']} | {row['artifact']} | {' | '.join(cells)} |")
    command = "python benchmarks/parity.py" + (f" --samples {count}" if count != 100 else "")
    write_result("parity", command, "\n".join(lines), rows)


def built(folder: Path, profile: str, step: dict[str, Any]) -> tuple[Artifact, list[Any]]:
    """The model quantized for a profile, and its test samples."""
    prepared, store = prepare(make_request(project=str(folder / "edgepipe.toml"), profiles=[profile])), Store.default()
    with store.workdir() as workdir, WorkerProcess(Path(workdir) / "run.log", Silent()) as worker:
        setting = Setting(store, worker, Silent(), load_profile(profile), prepared.request.data, prepared.splits, usable_cores())
        start = store.put(prepared.artifact)
        adapters = any(component.format == "peft" for component in start.components.values())
        exported = start.model.format == "torch"
        steps = [{"pass": "merge-lora"}] * adapters + [{"pass": "export-onnx"}] * exported + [{"pass": "optimize-graph"}, step]
        artifact, _ = run_recipe(check_recipe(Recipe.model_validate({"step": steps}), start), start, setting)
    return artifact, prepared.splits("test")


def apart(artifact: Artifact, samples: list[Any], target: str) -> dict[str, float]:
    """`edgepipe.gaps.summary` of the file's outputs on a target against a plain session here."""
    runner, here = runner_for(load_profile(target)), LocalRunner()
    if runner.proof("parity").doubt:
        sys.exit(f"{target}: {runner.proof('parity').doubt}")
    try:
        with opened(runner, runner.push(artifact), threads=usable_cores()) as there:
            outputs = [run for one in there.predict(samples) for run in one.outputs]
        with opened(here, here.push(artifact), threads=usable_cores(), optimise=False) as plain:
            expected = [run for one in plain.predict(samples) for run in one.outputs]
    finally:
        runner.close()
    return summary([gap_of(a, b) for a, b in zip(expected, outputs, strict=True)])


if __name__ == "__main__":
    main()
