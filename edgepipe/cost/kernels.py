"""The kernels whose costs are tabled: products, convolutions, attention's shapes and element-wise operators, per precision.

Each is a small ONNX graph of its own. Shapes are MiniLM's and BERT-base's, ResNet's and MobileNet's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

_MS = "com.microsoft"
PRECISIONS = ("float32", "int8-dynamic", "int8-static", "int4")
PRODUCTS = ((16, 384, 384), (16, 384, 1536), (128, 384, 384), (128, 384, 1536), (128, 1536, 384), (128, 768, 768))
CONVOLUTIONS = ((64, 64, 28, 3, 1), (128, 128, 28, 1, 1), (256, 256, 14, 1, 1), (128, 128, 28, 3, 128))
ELEMENTWISE = ("LayerNormalization", "Softmax", "Gelu", "Add")
BLOCK = 32


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel at one shape: products (m, k, n), convolutions (channels in, out, side, kernel, groups),
    attention (heads, tokens, size of a head), element-wise (rows, columns)."""

    kind: str  # matmul | conv | attention | an element-wise operator
    precision: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.precision}-{'x'.join(map(str, self.shape))}"

    @property
    def title(self) -> str:
        if self.kind == "conv":
            inside, out, side, size, groups = self.shape
            return f"{'depthwise ' if groups > 1 else ''}convolution {size}×{size}, {inside}→{out}, {side}×{side}"
        return f"{self.kind} {'×'.join(map(str, self.shape))}"


def kernels() -> list[Kernel]:
    found = [Kernel("matmul", precision, shape) for shape in PRODUCTS for precision in PRECISIONS]
    found += [Kernel("conv", precision, shape) for shape in CONVOLUTIONS for precision in PRECISIONS[:3]]
    found += [Kernel("attention", "float32", (12, 128, 32))]
    return found + [Kernel(kind, "float32", (128, 384)) for kind in ELEMENTWISE]


def model_of(chosen: Sequence[Kernel]) -> tuple[Any, dict[str, np.ndarray]]:
    """One ONNX model with every kernel in it, its nodes named `<kernel>/<n>`, and inputs for it."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, inputs, outputs, weights, feeds = [], [], [], [], {}
    for kernel in chosen:
        made, given, constants = _BUILDERS.get(kernel.kind, _elementwise)(kernel, rng)
        for index, node in enumerate(made):
            node.name = f"{kernel.name}/{index}"
            for names in (node.input, node.output):
                names[:] = [f"{kernel.name}/{name}" if name else "" for name in names]
        nodes += made
        weights += [numpy_helper.from_array(value, f"{kernel.name}/{name}") for name, value in constants.items()]
        for name, value in given.items():
            feeds[f"{kernel.name}/{name}"] = value
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            inputs.append(helper.make_tensor_value_info(f"{kernel.name}/{name}", kind, value.shape))
        outputs.append(helper.make_empty_tensor_value_info(f"{kernel.name}/y"))
    graph = helper.make_graph(nodes, "kernels", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=min(onnx.IR_VERSION, 10)), feeds


def random_inputs(model: Any) -> dict[str, np.ndarray]:
    """Inputs for a model of float32 inputs of fixed shapes."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _quantized(rng: Any, shape: tuple[int, ...]) -> Any:
    import numpy as np

    return rng.integers(-127, 128, shape).astype(np.int8)


def _matmul(kernel: Kernel, rng: Any) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    import numpy as np
    from onnx.helper import make_node

    m, k, n = kernel.shape
    x = rng.standard_normal((1, m, k)).astype(np.float32)
    scales = np.full(n, 0.01, np.float32)
    if kernel.precision == "float32":
        return [make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, {"w": rng.standard_normal((k, n)).astype(np.float32)}
    if kernel.precision == "int8-dynamic":
        node = make_node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain=_MS)
        return [node], {"x": x}, {"w": _quantized(rng, (k, n)), "s": scales}
    if kernel.precision == "int8-static":
        constants = {"xs": np.float32(0.02), "xz": np.uint8(128), "w": _quantized(rng, (k, n)), "ws": scales, "wz": np.zeros(n, np.int8)}
        constants |= {"ys": np.float32(0.5), "yz": np.uint8(128)}
        node = make_node("QLinearMatMul", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"])
        return [node], {"x": rng.integers(0, 256, (1, m, k)).astype(np.uint8)}, {name: np.array(value) for name, value in constants.items()}
    packed = rng.integers(0, 256, (n, k // BLOCK, BLOCK // 2)).astype(np.uint8)
    node = make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain=_MS, K=k, N=n, bits=4, block_size=BLOCK, accuracy_level=4)
    return [node], {"x": x}, {"w": packed, "s": np.full(n * k // BLOCK, 0.01, np.float32)}


def _conv(kernel: Kernel, rng: Any) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    import numpy as np
    from onnx.helper import make_node

    inside, out, side, size, groups = kernel.shape
    pad = [size // 2] * 4
    x = rng.standard_normal((1, inside, side, side)).astype(np.float32)
    wide = (out, inside // groups, size, size)
    if kernel.precision == "float32":
        weights = rng.standard_normal(wide).astype(np.float32)
        return [make_node("Conv", ["x", "w"], ["y"], pads=pad, group=groups)], {"x": x}, {"w": weights}
    if kernel.precision == "int8-dynamic":
        nodes = [make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
                 make_node("ConvInteger", ["q", "w", "qz"], ["y"], pads=pad, group=groups)]  # fmt: skip
        return nodes, {"x": x}, {"w": rng.integers(0, 256, wide).astype(np.uint8)}
    constants = {"xs": np.float32(0.02), "xz": np.uint8(128), "w": _quantized(rng, wide), "ws": np.full(out, 0.01, np.float32)}
    constants |= {"wz": np.zeros(out, np.int8), "ys": np.float32(0.5), "yz": np.uint8(128)}
    node = make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"], pads=pad, group=groups)
    given = rng.integers(0, 256, (1, inside, side, side)).astype(np.uint8)
    return [node], {"x": given}, {name: np.array(value) for name, value in constants.items()}


def _attention(kernel: Kernel, rng: Any) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    import numpy as np
    from onnx.helper import make_node

    heads, tokens, size = kernel.shape
    given = {name: rng.standard_normal((1, heads, tokens, size)).astype(np.float32) for name in "qv"}
    given["k"] = rng.standard_normal((1, heads, size, tokens)).astype(np.float32)
    nodes = [make_node("MatMul", ["q", "k"], ["s"]), make_node("Softmax", ["s"], ["p"], axis=-1), make_node("MatMul", ["p", "v"], ["y"])]
    return nodes, given, {}


def _elementwise(kernel: Kernel, rng: Any) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    import numpy as np
    from onnx.helper import make_node

    given = {"x": rng.standard_normal((1, *kernel.shape)).astype(np.float32)}
    if kernel.kind == "LayerNormalization":
        ones = np.ones(kernel.shape[-1], np.float32)
        return [make_node(kernel.kind, ["x", "g", "b"], ["y"], axis=-1)], given, {"g": ones, "b": ones}
    if kernel.kind == "Add":
        return [make_node("Add", ["x", "z"], ["y"])], given | {"z": given["x"]}, {}
    return [make_node(kernel.kind, ["x"], ["y"], domain=_MS if kernel.kind == "Gelu" else "")], given, {}


_BUILDERS = {"matmul": _matmul, "conv": _conv, "attention": _attention}
