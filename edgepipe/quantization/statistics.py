"""One run over calibration data for everything a static pass asks: ranges, channels, second moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import DataError
from edgepipe.quantization.bias_correction import correct_biases
from edgepipe.quantization.calibration import observe
from edgepipe.quantization.calibrators import activation_range
from edgepipe.quantization.observers import Wanted
from edgepipe.quantization.rounding import quantize
from edgepipe.quantization.selection import select
from edgepipe.quantization.sites import matrix_of
from edgepipe.quantization.static import Scale, scale_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np

    from edgepipe.quantization.observers import Observer
    from edgepipe.quantization.session import Rewrite
    from edgepipe.quantization.sites import Site
    from edgepipe.quantization.weights8 import Rounding


class _Runs:
    """The inputs of every run of the model that the chosen samples make, one at a time; knows how many samples there are."""

    def __init__(self, rewrite: Rewrite, options: Any) -> None:
        samples = rewrite.ctx.data("calibration")
        chosen = select(samples, options.samples, options.selection, options.seed)
        self._rewrite, self._samples = rewrite, [samples[index] for index in chosen]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rewrite.ctx.runs(self._rewrite.artifact, self._samples))

    def __len__(self) -> int:
        return len(self._samples)


def statistics(
    rewrite: Rewrite, sites: Mapping[str, Site], options: Any, *, moments: bool = False, ranges: bool = True
) -> dict[str, Observer]:
    """An observer for what each site reads and, where there are convolutions and `ranges` are asked for, for every value
    that may stay in 8 bits between them."""
    graph, path = rewrite.graph, rewrite.snapshot()
    wanted = {
        site.data: Wanted(1 if site.kind == "convolution" else -1, moments and site.kind != "convolution")
        for site in sites.values()
        if site.kind in ("product", "attention", "convolution")
    }
    if ranges and any(site.kind == "convolution" for site in sites.values()):
        floats = graph.float_values(path)
        for node in graph.nodes:
            for name in (*node.input, *node.output):
                if name in floats:
                    wanted.setdefault(name, Wanted())
    session = rewrite.artifact.program.get("session", {})
    return observe(
        path,
        wanted,
        _Runs(rewrite, options),
        disabled_optimizers=session.get("disabled_optimizers", ()),
        progress=rewrite.ctx.progress,
    )


def activation_scales(found: Mapping[str, Observer], options: Any) -> tuple[dict[str, Scale], dict[str, str]]:
    """(scales by value, values without one and why): what no sample reached, or what was infinite."""
    scales, left = {}, {}
    for name, observer in found.items():
        try:
            low, high = activation_range(
                observer, options.calibrator, percentile=options.percentile, symmetric=options.symmetric_activations
            )
        except DataError as error:
            left[name] = error.what
            continue
        scales[name] = scale_of(low, high, symmetric=options.symmetric_activations)
    return scales, left


def corrected(rewrite: Rewrite, sites: dict[str, Site], rounding: Rounding, found: Mapping[str, Observer]) -> dict[str, Site]:
    """The sites again, after biases were moved by what rounding will shift."""
    graph = rewrite.graph
    nodes = {node.name: node for node in graph.nodes}

    def rounded(site: Site) -> Callable[[], np.ndarray]:
        def weight() -> np.ndarray:
            values = matrix_of(graph, nodes[site.node], site)
            return quantize(rounding.method, values, rounding.grid(site), rounding.hessian(site), name=site.weight).dequantized()

        return weight

    means = {name: mean for name, observer in found.items() if (mean := observer.channel_mean) is not None}
    correct_biases(graph, means, {name: rounded(site) for name, site in sites.items() if site.kind != "table"})
    return rewrite.again(sites)
