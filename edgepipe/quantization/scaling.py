"""Dividing the channels of an activation, which leaves a model's outputs as they are: whoever makes the activation makes it
smaller, whoever reads it multiplies its weights. SmoothQuant, AWQ and cross-layer equalization choose the factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.quantization.sites import attribute, find_sites

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.sites import Site

READERS = ("product", "convolution", "attention")
NORMALIZATIONS = {  # operator → its inputs that are a vector for each channel of what it gives
    "LayerNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1,),
    "RMSNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
    "BatchNormalization": (1, 2),
}
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", *POOLS)  # f(c · x) = c · f(x) for c > 0, channel by channel


@dataclass(frozen=True, slots=True)
class Scaled:
    """An activation whose channels were divided."""

    tensor: str
    read_as: str  # what its readers take now: another tensor where a Mul was put in
    factors: np.ndarray  # [channels]
    sites: tuple[str, ...]  # nodes whose weights were multiplied
    folded_into: str  # the node that gives the smaller values; "" where a Mul was put in


@dataclass(frozen=True, slots=True)
class Fold:
    """Where an activation's factors can go."""

    node: str
    parts: tuple[tuple[Any, int, bool], ...]  # (node, input, whether that constant is multiplied instead of divided)
    trailing: int  # axes after the channels: 0 for what a MatMul takes, 2 for an image


class Scaling:
    """The constants of a graph while their channels are scaled; `commit` writes them into it."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.sites = graph, find_sites(graph)
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str) -> np.ndarray:
        """A constant as it is by now."""
        return self._arrays[name] if name in self._arrays else self.graph.array(name)

    def activations(self) -> dict[str, list[Site]]:
        """Every tensor that sites read, with those whose weights can make up for its scale, in the graph's order."""
        result: dict[str, list[Site]] = {}
        for site in self.sites.values():
            if site.kind in READERS and self.graph.is_float(site.weight):
                result.setdefault(site.data, []).append(site)
        return {tensor: sites for tensor, sites in result.items() if self._alike(tensor, sites)}

    def _alike(self, tensor: str, sites: list[Site]) -> bool:
        """Whether the sites see the same channels, read the tensor once each, and share their weights with nobody else."""
        names = {site.node for site in sites}
        if len({(channels(self.node(site), site), trailing(site)) for site in sites}) > 1:
            return False
        for site in sites:
            readers = self.graph.consumers[site.weight]
            if list(self.node(site).input).count(tensor) != 1 or any(reader is None or reader.name not in names for reader in readers):
                return False
        return True

    def node(self, site: Site) -> Any:
        return self.graph.producer[site.output]

    def read_by_others(self, tensor: str, sites: Sequence[Site]) -> bool:
        """Whether anything but these sites would notice smaller values."""
        names = {site.node for site in sites}
        return any(reader is None or reader.name not in names for reader in self.graph.consumers[tensor])

    def input_peaks(self, sites: Sequence[Site]) -> np.ndarray:
        """The largest |weight| that meets each channel, [channels], over all the sites."""
        import numpy as np

        peaks = []
        for site in sites:
            weight, node = np.abs(self.array(site.weight)), self.node(site)
            if site.kind == "convolution":
                group = attribute(node, "group", 1)
                peaks.append(weight.reshape(group, -1, *weight.shape[1:]).max((1, *range(3, weight.ndim + 1))).reshape(-1))
            else:
                peaks.append(weight.max(0 if _transposed(node) else 1))
        return np.asarray(np.max(peaks, 0))

    def multiply_inputs(self, sites: Sequence[Site], factors: np.ndarray) -> None:
        """Multiply the weights that meet each channel. A weight that several sites read is multiplied once."""
        for site in {site.weight: site for site in sites}.values():
            weight = self.array(site.weight)
            self._arrays[site.weight] = (weight * spread(self.node(site), site, factors)).astype(weight.dtype)

    def fold_of(self, tensor: str, sites: Sequence[Site]) -> Fold | None:
        """Where the channels of a tensor can be divided without a node more; None where they can not."""
        if self.read_by_others(tensor, sites):
            return None
        count, after = channels(self.node(sites[0]), sites[0]), trailing(sites[0])
        found = self._parts(tensor, count, after)
        return None if found is None else Fold(found[0].name, tuple(found[1]), after)

    def _parts(self, tensor: str, count: int, after: int) -> tuple[Any, list[tuple[Any, int, bool]]] | None:
        node = self.graph.producer.get(tensor)
        if node is None or node.output[0] != tensor:
            return None
        if node.op_type in NORMALIZATIONS:
            batch = node.op_type == "BatchNormalization"
            vectors = [(node, i, False) for i in NORMALIZATIONS[node.op_type] if i < len(node.input) and node.input[i]]
            fits = all(self._has(node.input[i], (count,)) for _, i, _ in vectors) and batch == (after > 0)
            return (node, vectors) if fits and attribute(node, "axis", -1) == -1 else None
        if node.op_type in ("Conv", "MatMul", "Gemm", "Attention"):
            return self._weights(node, count, after)
        if node.op_type in ("Add", "Mul", "Div"):
            return self._with_constant(node, count, after)
        if node.op_type in HOMOGENEOUS and (after or node.op_type not in POOLS):
            return self._alone(node.input[0], count, after)
        return None

    def _alone(self, tensor: str, count: int, after: int) -> tuple[Any, list[tuple[Any, int, bool]]] | None:
        return self._parts(tensor, count, after) if len(self.graph.consumers[tensor]) == 1 else None

    def _weights(self, node: Any, count: int, after: int) -> tuple[Any, list[tuple[Any, int, bool]]] | None:
        site = self.sites.get(node.name)
        if site is None or len(self.graph.consumers[site.weight]) > 1 or (site.kind == "convolution") != (after > 0):
            return None
        if node.op_type == "Attention":  # what comes out is a mean of the values: the last third of what the weights give
            plain = len(node.output) == 1 and not any(a.name == "qkv_hidden_sizes" for a in node.attribute) and site.n == 3 * count
            if not plain or any(node.input[4:5]):
                return None
        elif site.n != count:
            return None
        parts = [(node, 1, False)]
        if len(node.input) > 2 and node.input[2]:
            if not self._has(node.input[2], (site.n,)):
                return None
            parts.append((node, 2, False))
        return node, parts

    def _with_constant(self, node: Any, count: int, after: int) -> tuple[Any, list[tuple[Any, int, bool]]] | None:
        for i in (1,) if node.op_type == "Div" else (0, 1):
            shape = (count,) + (1,) * after
            if self._has(node.input[i], shape):
                if node.op_type != "Add":
                    return node, [(node, i, node.op_type == "Div")]
                found = self._alone(node.input[1 - i], count, after)
                return None if found is None else (found[0], [*found[1], (node, i, False)])
        return None

    def _has(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a constant has this shape, but for axes of length one in front."""
        if not self.graph.is_float(name):
            return False
        ours = self.graph.shape(name)
        return ours[len(ours) - len(shape) :] == shape and math.prod(ours) == math.prod(shape) and len(ours) >= len(shape)

    def output_peaks(self, fold: Fold) -> np.ndarray:
        """The largest |weight| that makes each channel of a convolution or product, [channels]."""
        import numpy as np

        node = fold.parts[0][0]
        weight = np.abs(self.array(node.input[1]))
        axes = tuple(range(1, weight.ndim)) if node.op_type == "Conv" or _transposed(node) else (0,)
        return np.asarray(weight.max(axes))

    def divide_outputs(self, fold: Fold, factors: np.ndarray) -> None:
        """Have an activation made smaller, channel by channel."""
        import numpy as np

        for node, i, multiplied in fold.parts:
            name = self._own(node, i)
            values = self.array(name)
            by = np.asarray(factors if multiplied else 1 / factors, np.float32)
            if node.op_type == "Attention":
                by = np.concatenate([np.ones(2 * len(by), np.float32), by])
            if node.op_type == "Conv":
                by = by.reshape(-1, *[1] * (values.ndim - 1))
            elif _transposed(node) and i == 1:
                by = by[:, None]
            elif values.ndim and node.op_type in ("Add", "Mul", "Div"):
                by = by.reshape(-1, *[1] * fold.trailing)
            self._arrays[name] = (values * by).astype(values.dtype)

    def _own(self, node: Any, i: int) -> str:
        """The constant of one input as that input's alone: exporters let layers share vectors that are equal."""
        name = str(node.input[i])
        if len(self.graph.consumers[name]) == 1:
            return name
        values = self.array(name)
        self.graph.consumers[name].remove(node)
        node.input[i] = self.graph.constant(f"{name}_own", values)
        self.graph.consumers[node.input[i]].append(node)
        return str(node.input[i])

    def put_in(self, tensor: str, sites: Sequence[Site], factors: np.ndarray) -> str | None:
        """A Mul by 1 / factors in front of the sites; gives what they read then. None where some stand in an If or Loop body.
        Takes effect with `commit`."""
        import numpy as np
        import onnx

        names = {site.node for site in sites}
        first = [node for node in self.graph.model.graph.node if node.name in names]
        if len(first) < len(names):
            return None
        inverse = (1 / factors).astype(np.float32).reshape(-1, *[1] * trailing(sites[0]))
        output = self.graph.fresh(f"{tensor}_scaled")
        constant = self.graph.constant(f"{tensor}_scale", inverse)
        self.graph.before(first[0], onnx.helper.make_node("Mul", [tensor, constant], [output], name=self.graph.fresh(f"{tensor}_scaling")))
        for node in first:
            node.input[list(node.input).index(tensor)] = output
        return output

    def commit(self) -> None:
        """Write what was scaled into the graph."""
        for name, values in self._arrays.items():
            self.graph.set_constant(name, values)
        self._arrays.clear()

    def finish(self) -> None:
        """`commit`, and have the graph look at its nodes anew."""
        self.commit()
        self.graph.apply()


def channels(node: Any, site: Site) -> int:
    """Of the activation that a site reads."""
    return site.shape[1] * int(attribute(node, "group", 1)) if site.kind == "convolution" else site.k


def trailing(site: Site) -> int:
    """Axes after an activation's channels."""
    return len(site.shape) - 2 if site.kind == "convolution" else 0


def spread(node: Any, site: Site, factors: np.ndarray) -> np.ndarray:
    """A number for each channel of what a site reads, laid out to be multiplied with its weight as that is stored."""
    import numpy as np

    if site.kind != "convolution":
        return factors[None, :] if _transposed(node) else factors[:, None]
    group = int(attribute(node, "group", 1))
    rows = np.repeat(factors.reshape(group, -1), site.shape[0] // group, 0)
    return rows.reshape(*rows.shape, *[1] * trailing(site))


def _transposed(node: Any) -> bool:
    return bool(node.op_type == "Gemm" and attribute(node, "transB", 0))
