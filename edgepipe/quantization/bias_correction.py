"""Bias correction: rounding a weight shifts the mean of what its layer gives; the bias takes that back.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, section 4.2, with
the inputs' means from calibration (its "empirical" way): E[ŷ] − E[y] = E[x] · (Ŵ − W). Padding of convolutions is ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.quantization.scaling import channels
from edgepipe.quantization.sites import attribute, find_sites, matrix_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.sites import Site

ADDS_BIAS = {"Add": (0, 1), "BiasGelu": (1,), "FastGelu": (1,), "SkipLayerNormalization": (4,)}


def correct_biases(graph: Graph, means: Mapping[str, np.ndarray], dequantized: Mapping[str, Callable[[], np.ndarray]]) -> list[str]:
    """Correct the bias of every site named in `dequantized`, and give the names of those that had one to correct.

    `means` has the mean of each channel by tensor; `dequantized` gives a site's rounded weight, [k, n], one at a time. The
    graph must still hold the weights as they were. A convolution or Gemm without a bias gets one; a MatMul without, none.
    """
    sites = find_sites(graph)
    done = []
    for name, rounded in dequantized.items():
        site = sites.get(name)
        if site is None or site.data not in means or site.kind not in ("product", "convolution", "attention"):
            continue
        node = graph.producer[site.output]
        delta = rounded() - matrix_of(graph, node, site)
        if _add_to_bias(graph, node, site, -expected_shift(delta, means[site.data], node, site)):
            done.append(name)
    graph.index()
    return done


def expected_shift(delta: np.ndarray, mean: np.ndarray, node: Any, site: Site) -> np.ndarray:
    """How far an error [k, n] of a weight moves the mean of each output, [n], for the mean of each input channel."""
    import numpy as np

    if site.kind != "convolution":
        return np.asarray(mean @ delta, np.float32)
    group = int(attribute(node, "group", 1))
    summed = delta.T.reshape(site.n, site.shape[1], -1).sum(2)  # over the kernel: every position has the same mean
    own = np.repeat(mean.reshape(group, channels(node, site) // group), site.n // group, 0)
    return np.asarray((summed * own).sum(1), np.float32)


def _add_to_bias(graph: Graph, node: Any, site: Site, shift: np.ndarray) -> bool:
    place = _place_of_bias(graph, node, site)
    if place is None:
        return False
    holder, i = place
    if i >= len(holder.input) or not holder.input[i]:
        holder.input.extend([""] * (i + 1 - len(holder.input)))
        holder.input[i] = graph.constant(f"{site.weight}_bias", shift)
        return True
    name = str(holder.input[i])
    values = graph.array(name)
    corrected = (values + shift.reshape(values.shape)).astype(values.dtype)
    if len(graph.consumers[name]) == 1:
        graph.set_constant(name, corrected)
    else:  # exporters let layers share vectors that are equal
        graph.consumers[name].remove(holder)
        holder.input[i] = graph.constant(f"{name}_own", corrected)
    return True


def _place_of_bias(graph: Graph, node: Any, site: Site) -> tuple[Any, int] | None:
    """The node and input where a constant of n values is added to what the site gives."""
    if node.op_type != "MatMul":
        absent = len(node.input) < 3 or not node.input[2]
        return (node, 2) if (absent and node.op_type != "Attention") or (not absent and _vector(graph, node.input[2], site.n)) else None
    readers = graph.consumers[site.output]
    if len(readers) != 1 or readers[0] is None:
        return None
    reader = readers[0]
    places = ADDS_BIAS.get(reader.op_type, ())
    found = [i for i in places if i < len(reader.input) and reader.input[i] != site.output and _vector(graph, reader.input[i], site.n)]
    return (reader, found[0]) if found else None


def _vector(graph: Graph, name: str, n: int) -> bool:
    return graph.is_float(name) and graph.shape(name)[-1:] == (n,) and all(length == 1 for length in graph.shape(name)[:-1])
