"""Makes a device's table of kernel costs: on the device where it can be reached, else from counted instructions."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from edgepipe.cost.fusions import FUSIONS, GRAPHS
from edgepipe.cost.kernels import kernels, model_of, random_inputs
from edgepipe.cost.table import CostTable, runtime_of
from edgepipe.errors import UsageError
from edgepipe.graph_costs import graph_costs
from edgepipe.runners import runner_for
from edgepipe.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from edgepipe.cost.joined import Graphs
    from edgepipe.profile import Profile
    from edgepipe.progress import Progress

STAGE = "devices measure"
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
    progress.stage(STAGE, profile.name)
    costs = graph_costs(_graphs(), profile, Store.default(), progress, disabled_optimizers=REFUSING, fresh=True, stage=STAGE)
    times = costs.ms
    entries = tuple(
        {"kernel": kernel.kind, "precision": kernel.precision, "shape": list(kernel.shape), "ms": round(times[kernel.name], 5)}
        for kernel in kernels()
    )
    fusions = {name: round(times[f"{name}/fused"] / times[f"{name}/parts"], 3) for name in FUSIONS}
    progress.finish(STAGE, f"{len(entries)} kernels {costs.source}")
    return CostTable(profile.name, costs.source, runtime_of(profile), profile.cpu.model, entries, fusions)


def _graphs() -> Graphs:
    """Every kernel, and every fusion fused and in parts, as a graph of its own."""
    found: dict[str, tuple[Any, Mapping[str, np.ndarray]]] = {kernel.name: model_of([kernel]) for kernel in kernels()}
    for name in FUSIONS:
        for variant, fused in (("fused", True), ("parts", False)):
            model = GRAPHS[name](fused)
            found[f"{name}/{variant}"] = model, random_inputs(model)
    return found
