"""What a fused operator costs against its parts on this machine, measured on graphs of a few nodes, 384 wide (MiniLM).

Fusions are not free: ONNX Runtime's SkipLayerNormalization has been measured at 2-3 × the time of Add +
LayerNormalization on x86. So each one is measured before it is used.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

FUSIONS = ("SkipLayerNormalization", "BiasGelu", "Attention")
HIDDEN, LENGTH, HEADS = 384, 128, 12
RUNS = 80
_MS = "com.microsoft"


def measure_fusions(threads: int) -> dict[str, float]:
    """Time of each fused operator over the time of its parts (below 1: the fusion pays).

    Alternating, and the fastest run of each counts: what else the machine does can only slow a run down, so the
    fastest repeats where a median would not.
    """
    return {name: _ratio(GRAPHS[name](True), GRAPHS[name](False), threads) for name in FUSIONS}


def _ratio(fused: Any, parts: Any, threads: int) -> float:
    import numpy as np

    from edgepipe.driver import driver_module

    # The runtime must not fuse the parts again, so both run without its optimiser.
    sessions = [driver_module().open_session(model.SerializeToString(), threads, optimise=False) for model in (fused, parts)]
    rng = np.random.default_rng(0)
    feeds = {
        i.name: rng.standard_normal([d if isinstance(d, int) else 1 for d in i.shape]).astype(np.float32) for i in sessions[0].get_inputs()
    }
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(RUNS + 5):
        for session, taken in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, feeds)
            if run >= 5:  # the first runs allocate
                taken.append(time.perf_counter() - start)
    return round(min(times[0]) / min(times[1]), 3)


def _graph(nodes: list[Any], inputs: dict[str, list[int]], weights: dict[str, Any]) -> Any:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes, "probe",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=min(onnx.IR_VERSION, 10))


def _vector(size: int, scale: float = 0.05) -> Any:
    import numpy as np

    return (np.random.default_rng(1).standard_normal(size) * scale).astype(np.float32)


def _skip_layer_norm(fused: bool) -> Any:
    from onnx.helper import make_node

    weights = {"gamma": _vector(HIDDEN) + 1, "beta": _vector(HIDDEN), "bias": _vector(HIDDEN)}
    if fused:
        nodes = [make_node("SkipLayerNormalization", ["x", "skip", "gamma", "beta", "bias"], ["y"], domain=_MS, epsilon=1e-12)]
    else:
        nodes = [make_node("Add", ["x", "bias"], ["a"]), make_node("Add", ["a", "skip"], ["b"]),
                 make_node("LayerNormalization", ["b", "gamma", "beta"], ["y"], axis=-1, epsilon=1e-12)]  # fmt: skip
    shape = [1, LENGTH, HIDDEN]
    return _graph(nodes, {"x": shape, "skip": shape}, weights)


def _bias_gelu(fused: bool) -> Any:
    from onnx.helper import make_node

    width = 4 * HIDDEN
    if fused:
        nodes = [make_node("BiasGelu", ["x", "bias"], ["y"], domain=_MS)]
    else:
        nodes = [make_node("Add", ["x", "bias"], ["a"]), make_node("Gelu", ["a"], ["y"], domain=_MS)]
    return _graph(nodes, {"x": [1, LENGTH, width]}, {"bias": _vector(width)})


def _attention(fused: bool) -> Any:
    import numpy as np
    from onnx.helper import make_node

    size = HIDDEN // HEADS
    weight, bias = _vector(HIDDEN * 3 * HIDDEN).reshape(HIDDEN, 3 * HIDDEN), _vector(3 * HIDDEN)
    if fused:
        return _graph(
            [make_node("Attention", ["x", "w", "b"], ["y"], domain=_MS, num_heads=HEADS)],
            {"x": [1, LENGTH, HIDDEN]},
            {"w": weight, "b": bias},
        )
    weights = {
        "split": np.array([1, LENGTH, HEADS, size]),
        "join": np.array([1, LENGTH, HIDDEN]),
        "scale": np.array(size**0.5, dtype=np.float32),
    }
    nodes = []
    for index, name in enumerate("qkv"):
        weights[f"w{name}"] = np.ascontiguousarray(weight[:, index * HIDDEN : (index + 1) * HIDDEN])
        weights[f"b{name}"] = bias[index * HIDDEN : (index + 1) * HIDDEN]
        nodes += [make_node("MatMul", ["x", f"w{name}"], [f"m{name}"]), make_node("Add", [f"m{name}", f"b{name}"], [f"a{name}"]),
                  make_node("Reshape", [f"a{name}", "split"], [f"r{name}"]),
                  make_node("Transpose", [f"r{name}"], [f"t{name}"], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3])]  # fmt: skip
    nodes += [make_node("MatMul", ["tq", "tk"], ["scores"]), make_node("Div", ["scores", "scale"], ["scaled"]), make_node("Softmax", ["scaled"], ["p"], axis=-1),
              make_node("MatMul", ["p", "tv"], ["ctx"]), make_node("Transpose", ["ctx"], ["back"], perm=[0, 2, 1, 3]), make_node("Reshape", ["back", "join"], ["y"])]  # fmt: skip
    return _graph(nodes, {"x": [1, LENGTH, HIDDEN]}, weights)


GRAPHS: dict[str, Callable[[bool], Any]] = {"SkipLayerNormalization": _skip_layer_norm, "BiasGelu": _bias_gelu, "Attention": _attention}
