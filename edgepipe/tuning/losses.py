"""What each layer alone moves the outputs by, under each way of storing it: the divergence on calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.quantization.graph import Graph
from edgepipe.quantization.rounding import Grid, quantize
from edgepipe.quantization.sensitivity import Probe, sensitivities
from edgepipe.quantization.sites import find_sites, is_transposed, matrix_of
from edgepipe.tuning.looking import runs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.pipeline import Setting
    from edgepipe.quantization.sites import Site
    from edgepipe.tuning.schemes import Scheme

SAMPLES = 12


def losses(artifact: Artifact, schemes: Iterable[Scheme], names: Iterable[str], setting: Setting) -> dict[str, dict[str, float]]:
    """{scheme: {layer: 1 − cosine}}. Empty without data; layers in bodies of If, Loop and Scan have none."""
    feeds = list(runs_of(artifact, setting, SAMPLES))
    if not feeds:
        return {}
    wanted = set(names)
    result: dict[str, dict[str, float]] = {}
    with setting.store.workdir() as workdir:
        graph = Graph(artifact.model.main_file, workdir)
        sites = {name: site for name, site in find_sites(graph).items() if name in wanted and site.kind != "recurrent"}
        nodes = {node.name: node for node in graph.nodes}
        for scheme in schemes:
            probes = [
                Probe(
                    name,
                    site.weight,
                    _rounded(graph, nodes[name], site, scheme),
                    site.data if scheme.kernel.startswith("int8") and site.kind != "table" else None,
                    "dynamic" if scheme.kernel.startswith("int8") and site.kind != "table" else None,
                )
                for name, site in sites.items()
                if site.operator in scheme.operators
            ]
            found = sensitivities(
                artifact.model.main_file,
                probes,
                feeds,
                threads=setting.threads,
                disabled_optimizers=artifact.program.get("session", {}).get("disabled_optimizers", ()),
                progress=lambda what, done, total: setting.progress.update("tune", what, done, total),
            )
            result[scheme.name] = {name: divergence.cosine for name, divergence in found.items()}
    return result


def _rounded(graph: Graph, node: object, site: Site, scheme: Scheme) -> Callable[[], np.ndarray]:
    """The layer's weight as the scheme stores it, in its own shape."""
    grid = Grid(scheme.bits, True, scheme.group_size)

    def weight() -> np.ndarray:
        if site.kind == "table":
            return quantize("nearest", graph.array(site.weight).T, grid, name=site.weight).dequantized().T
        values = quantize("mse" if scheme.bits < 8 else "nearest", matrix_of(graph, node, site), grid, name=site.weight).dequantized()
        return (values.T if is_transposed(node) else values).reshape(site.shape)

    return weight
