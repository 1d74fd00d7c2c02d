"""Floating-point (or integer) operations of one inference: 2 × multiply-adds of matrix products and convolutions.

Counted from the shapes the runtime reports while it runs, so that fused and quantized operators count too;
element-wise work is left out, as is usual (Kaplan et al., arXiv 2001.08361, section 2.1).
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.readers import Sample

LENGTH = 128  # tokens of the text that is counted


def count_flops(artifact: Artifact, threads: int, sample: Sample | None = None) -> dict[str, Any]:
    """{"flops", "shape": {input: shape}} for one text of LENGTH tokens, one image, or `sample`."""
    import onnxruntime

    from edgepipe.probes import feeds_of, fixed_feeds

    feeds = feeds_of(artifact, [sample]) if sample else fixed_feeds(artifact, 1, LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(artifact.model.main_file), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    total = sum(node_flops(event["args"]) for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"))
    return {"flops": total, "shape": {name: list(value.shape) for name, value in feeds.items()}}


def node_flops(args: dict[str, Any]) -> int:
    kind = args.get("op_name", "")
    inputs, outputs = _shapes(args.get("input_type_shape", [])), _shapes(args.get("output_type_shape", []))
    if not inputs or not outputs:
        return 0
    out = math.prod(outputs[0])
    if kind in ("MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"):
        return 2 * out * (inputs[0][-1] if inputs[0] else 1)
    if kind in ("Gemm", "FusedGemm"):
        inner = math.prod(inputs[0]) * math.prod(inputs[1]) // max(1, out)  # (m·k)(k·n)/(m·n) = k²
        return 2 * out * math.isqrt(inner)
    if kind in ("Conv", "FusedConv", "ConvInteger", "QLinearConv"):
        weight = inputs[1] if kind != "QLinearConv" else inputs[3]
        return 2 * out * math.prod(weight[1:])
    if kind in ("Attention", "QAttention"):
        batch, length, width = inputs[0]
        projected = inputs[1][-1]
        return 2 * batch * length * width * projected + 4 * batch * length * length * (projected // 3)
    if kind in ("LSTM", "DynamicQuantizeLSTM"):
        return 2 * inputs[0][0] * inputs[0][1] * (math.prod(inputs[1]) + math.prod(inputs[2]))
    return 0


def _shapes(entries: list[dict[str, list[int]]]) -> list[list[int]]:
    return [next(iter(entry.values())) for entry in entries]
