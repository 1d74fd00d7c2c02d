"""Makes a device's table of kernel costs: on the device where it can be reached, else from counted instructions."""

from __future__ import annotations

import statistics
from contextlib import closing
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Artifact
from edgepipe.cost.counting import count
from edgepipe.cost.fusions import FUSIONS, GRAPHS
from edgepipe.cost.kernels import kernels, model_of
from edgepipe.cost.latency import cache_shapes, predict
from edgepipe.cost.table import CostTable, runtime_of
from edgepipe.emulation import emulated, emulator_env
from edgepipe.errors import UsageError
from edgepipe.runners import runner_for
from edgepipe.store import Store, cache_root
from edgepipe.weights import onnx_component

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.profile import Profile
    from edgepipe.progress import Progress
    from edgepipe.runners import Runner

STAGE = "devices measure"
WARM, RUNS = 5, 20
REFUSING = ("SkipLayerNormFusion", "BiasGeluFusion", "AttentionFusion", "MatMulAddFusion")  # so that parts stay parts


def measure_kernels(profile: Profile, progress: Progress) -> CostTable:
    """Costs on one thread. Raises `UsageError` for a device that can neither be reached nor predicted."""
    with closing(runner_for(profile)) as runner:
        proof = runner.proof("latency")
        if runner.emulates and profile.cpu.arch != "aarch64":
            raise UsageError(
                f"kernels are counted for ARM cores only, and {profile.title} is {profile.cpu.arch}", where=f"profile {profile.name}"
            )
        if proof.doubt or proof.provenance not in ("measured", "predicted"):
            raise UsageError(
                f"kernels of {profile.title} can be neither timed nor counted here: {proof.doubt}",
                where=f"profile {profile.name}",
                fix=f"edgepipe devices doctor {profile.name} tells what is missing",
            )
        store = Store.default()
        progress.stage(STAGE, profile.name)
        with store.workdir() as workdir:
            times = _counted(profile, workdir, progress) if runner.emulates else _timed(runner, store, workdir, progress)
    entries = tuple(
        {"kernel": kernel.kind, "precision": kernel.precision, "shape": list(kernel.shape), "ms": round(times[kernel.name], 5)}
        for kernel in kernels()
    )
    fusions = {name: round(times[f"{name}/fused"] / times[f"{name}/parts"], 3) for name in FUSIONS}
    source = "counted" if proof.provenance == "predicted" else "measured"
    progress.finish(STAGE, f"{len(entries)} kernels {source}")
    return CostTable(profile.name, source, runtime_of(profile), profile.cpu.model, entries, fusions)


def _fusion_graphs() -> dict[str, Any]:
    return {f"{name}/{'fused' if fused else 'parts'}": GRAPHS[name](fused) for name in FUSIONS for fused in (True, False)}


def _counted(profile: Profile, workdir: Path, progress: Progress) -> dict[str, float]:
    """All kernels in one emulated run; a node's time is predicted from its counts, a kernel's is that of its nodes."""
    import onnx

    progress.update(STAGE, "counting instructions")
    chosen, graphs = kernels(), _fusion_graphs()
    model, feeds = model_of(chosen, graphs)
    path = workdir / "kernels.onnx"
    onnx.save_model(model, path)
    emulation = emulated(profile)
    counts = count(
        emulation.command,
        emulation.python,
        emulator_env(emulation),
        path,
        feeds,
        caches=cache_shapes(profile),
        disabled_optimizers=REFUSING,
        plugin_folder=cache_root() / "devices" / "counter",
    )
    found = predict(counts, profile, 1)
    names = [*(kernel.name for kernel in chosen), *graphs]
    return {name: sum(node.ms for node in found.nodes if node.name.startswith(name + "/")) for name in names}


def _timed(runner: Runner, store: Store, workdir: Path, progress: Progress) -> dict[str, float]:
    """Medians on the device, each kernel in a process of its own."""
    singles = {kernel.name: model_of([kernel]) for kernel in kernels()}
    singles |= {name: model_of([], {name: graph}) for name, graph in _fusion_graphs().items()}
    times = {}
    for number, (name, (model, feeds)) in enumerate(singles.items()):
        progress.update(STAGE, name, number, len(singles))
        artifact = _artifact(model, workdir / f"kernel-{number}")
        opened = runner.open(runner.push(store.put(artifact)), threads=1, optimise=name.split("/")[0] not in FUSIONS)
        try:
            opened.repeat(feeds, WARM)
            times[name] = statistics.median(opened.repeat(feeds, RUNS)) / 1e6
        finally:
            opened.close()
    return times


def _artifact(model: Any, folder: Path) -> Artifact:
    import onnx

    folder.mkdir()
    onnx.save_model(model, folder / "model.onnx")
    program = {"kind": "single", "component": "model", "task": "fidelity", "preprocess": {"kind": "tensors"}}
    return Artifact({"model": onnx_component(folder)}, (), program)
