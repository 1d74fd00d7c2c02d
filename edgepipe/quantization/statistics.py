"""One run over calibration data for everything a static pass asks: ranges, channels, second moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.errors import DataError
from edgepipe.quantization.bias_correction import correct_biases
from edgepipe.quantization.calibration import observe
from edgepipe.quantization.calibrators import activation_range
from edgepipe.quantization.observers import Wanted
from edgepipe.quantization.rounding import NEEDS_HESSIAN, quantize
from edgepipe.quantization.selection import select
from edgepipe.quantization.sites import matrix_of
from edgepipe.quantization.static import Scale, scale_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgepipe.quantization.observers import Observer
    from edgepipe.quantization.session import Rewrite
    from edgepipe.quantization.sites import Site
    from edgepipe.quantization.weights8 import Rounding
    from edgepipe.readers import Sample


class _Runs:
    """The inputs of every run of the model that the chosen samples make, one at a time; knows how many samples there are."""

    def __init__(self, rewrite: Rewrite, options: Any) -> None:
        samples = rewrite.ctx.data("calibration")
        score = _embeddings(rewrite, samples) if options.selection == "importance" and len(samples) > options.samples else None
        method: Any = "random" if score is None and options.selection == "importance" else options.selection  # that is all of them
        chosen = select(samples, options.samples, method, options.seed, score=score)
        self._rewrite, self._samples = rewrite, [samples[index] for index in chosen]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rewrite.ctx.runs(self._rewrite.artifact, self._samples))

    def __len__(self) -> int:
        return len(self._samples)


def _embeddings(rewrite: Rewrite, samples: Sequence[Sample]) -> np.ndarray:
    """What the model makes of each sample, [n, d]: its first output, the mean over positions of which there are several."""
    model, found = rewrite.ctx.run(rewrite.artifact), []
    for number, sample in enumerate(samples):
        rewrite.ctx.progress("looking at what samples give", number, len(samples))
        outputs = [next(iter(model(feeds).values())) for feeds in rewrite.ctx.runs(rewrite.artifact, [sample])]
        rows = [each.reshape(*each.shape[:2], -1).mean(axis=-1) if each.ndim == 4 else each.reshape(-1, each.shape[-1]) for each in outputs]
        found.append(np.concatenate(rows).mean(axis=0))
    return np.stack(found)


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


def hessians(rewrite: Rewrite, sites: Mapping[str, Site], options: Any) -> Callable[[Site], np.ndarray | None]:
    """2 XᵀX / rows of what a site reads, where the rounding method needs it. Raises `DataError` without calibration data."""
    if options.method not in NEEDS_HESSIAN:
        return lambda site: None
    if not rewrite.ctx.has("calibration"):
        raise DataError(
            f"{options.method} needs calibration data",
            where=f"pass {rewrite.name}",
            fix="give --calibration FILE, or round by nearest or mse",
        )
    return moments_of(statistics(rewrite, sites, options, moments=True, ranges=False), sites)


def moments_of(found: Mapping[str, Observer], sites: Mapping[str, Site]) -> Callable[[Site], np.ndarray | None]:
    """2 XᵀX / rows of what a site reads. Layers that share a weight have one between them, so that it is rounded once."""
    readers: dict[str, list[str]] = {}
    for site in sites.values():
        readers.setdefault(site.weight, []).append(site.data)

    def hessian(site: Site) -> np.ndarray | None:
        seen = [found[data].hessian for data in readers.get(site.weight, [site.data]) if data in found]
        known = [each for each in seen if each is not None]
        return sum(known[1:], known[0]) / np.float32(len(known)) if len(known) > 1 else known[0] if known else None

    return hessian


def activation_scales(found: Mapping[str, Observer], options: Any) -> tuple[dict[str, Scale], dict[str, str]]:
    """(scales by value, values without one and why): what no sample reached, or what was infinite."""
    scales, left = {}, {}
    for name, observer in found.items():
        try:
            low, high = activation_range(
                observer, _method(observer, options.calibrator), percentile=options.percentile, symmetric=options.symmetric_activations
            )
        except DataError as error:
            left[name] = error.what
            continue
        scales[name] = scale_of(low, high, symmetric=options.symmetric_activations)
    return scales, left


def _method(observer: Observer, calibrator: str) -> str:
    """Measured: cut at 99.99 %, MiniLM's embeddings move from 0.994 to 0.925 of their cosine, for its outliers carry meaning;
    with the whole range of what its convolutions give, RapidOCR's recogniser reads noise."""
    if calibrator != "auto":
        return calibrator
    return "min-max" if observer.wanted.channel_axis == -1 else "percentile"


def corrected(rewrite: Rewrite, sites: dict[str, Site], rounding: Rounding, found: Mapping[str, Observer]) -> dict[str, Site]:
    """The sites again, after biases were moved by what rounding will shift."""
    graph = rewrite.graph
    nodes = {node.name: node for node in graph.nodes}

    def rounded(site: Site) -> Callable[[], np.ndarray]:
        def weight() -> np.ndarray:
            values = matrix_of(graph, nodes[site.node], site)
            return quantize(rounding.method_for(site), values, rounding.grid(site), rounding.hessian(site), name=site.weight).dequantized()

        return weight

    means = {name: mean for name, observer in found.items() if (mean := observer.channel_mean) is not None}
    correct_biases(graph, means, {name: rounded(site) for name, site in sites.items() if site.kind != "table"})
    return rewrite.again(sites)
