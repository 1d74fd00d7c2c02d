"""Looks into a model without running it: parameters and bytes by part, operators, arithmetic, what would bind."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from edgepipe.cost.flops import LENGTH
from edgepipe.errors import ModelError, reading
from edgepipe.intake import find_source, weight_files
from edgepipe.weights import all_nodes, all_tensors, external_files, load_onnx, onnx_signature, safetensors_header

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.profile import Profile

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
LANES = (("avx512f", 16), ("avx2", 8), ("avx", 8), ("asimd", 4), ("wasm_simd128", 4), ("sse4_2", 4))


def inspect_model(model: str) -> dict[str, Any]:
    """{format, parameters, size_bytes, parts, operators, flops, flops_at, inputs, outputs}; reads headers, not weights."""
    with reading(ModelError):
        source = find_source(model)
    found = _onnx(source.folder / source.onnx) if source.onnx else _torch(source.folder, source.config)
    return {"model": model, "family": source.config.get("model_type"), "labels": list(source.labels), **found}


def _onnx(path: Path) -> dict[str, Any]:
    model = load_onnx(path)
    parts: dict[str, list[int]] = {}
    flops = 0
    weights = {}
    for tensor in all_tensors(model):
        size = math.prod(tensor.dims)
        weights[tensor.name] = list(tensor.dims)
        part = parts.setdefault(part_of(tensor.name), [0, 0])
        part[0] += size
        part[1] += size * _onnx_width(tensor.data_type)
    for node in all_nodes(model.graph):
        shape = next((weights[name] for name in node.input[1:2] if name in weights), None)
        if shape and node.op_type in ("MatMul", "Gemm", "MatMulInteger", "Attention", "QAttention"):
            flops += 2 * math.prod(shape) * LENGTH
    signature = onnx_signature(model)
    external = sum((path.parent / name).stat().st_size for name in external_files(model))
    return {
        "format": "onnx",
        "parameters": sum(p[0] for p in parts.values()),
        "size_bytes": path.stat().st_size + external,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "parts": _parts(parts),
        "operators": dict(Counter(node.op_type for node in all_nodes(model.graph)).most_common()),
        **_arithmetic(flops, any(entry["name"] == "input_ids" for entry in signature["inputs"])),
        **signature,
    }


def _arithmetic(flops: int, is_text: bool) -> dict[str, Any]:
    """Of text, every weight matrix meets every token; elsewhere the shape of the inputs decides, and only a run tells."""
    if is_text:
        return {"flops": flops, "flops_at": f"weights of matrix products × {LENGTH} tokens"}
    return {"flops": None, "flops_at": "not counted without a run: the inputs' shape decides; a build's manifest has it"}


def _onnx_width(data_type: int) -> int:
    import onnx

    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _torch(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    parts: dict[str, list[int]] = {}
    flops, size = 0, 0
    for name in weight_files(folder):
        size += (folder / name).stat().st_size
        if not name.endswith(".safetensors"):
            continue
        for info in safetensors_header(folder / name):
            part = parts.setdefault(part_of(info.name), [0, 0])
            part[0] += info.parameters
            part[1] += info.parameters * BYTES.get(info.dtype, 1)
            if len(info.shape) == 2 and "embedding" not in info.name:
                flops += 2 * info.parameters * LENGTH
    return {
        "format": "torch",
        "parameters": sum(p[0] for p in parts.values()) or None,
        "size_bytes": size,
        "parts": _parts(parts),
        "operators": {},
        **_arithmetic(flops, "vocab_size" in config),
    }


def part_of(name: str) -> str:
    """The part of a model a tensor belongs to: its path without layer numbers and the last two names."""
    words = [word for word in re.split(r"[./]", name) if word and not word.isdigit()]
    return ".".join(words[:-2][:5]) or words[0] if words else "(constants)"


def _parts(parts: dict[str, list[int]]) -> list[dict[str, Any]]:
    ordered = sorted(parts.items(), key=lambda item: -item[1][1])
    return [{"part": name, "parameters": entry[0], "bytes": entry[1]} for name, entry in ordered]


def binding(found: dict[str, Any], profile: Profile) -> dict[str, Any]:
    """What would bind on a profile, by the roofline (Williams et al., CACM 52(4), 2009): arithmetic at one fused
    multiply-add per lane, core and cycle against reading every weight once. A bound, not a prediction."""
    lanes = next((lanes for flag, lanes in LANES if flag in profile.cpu.isa), 1)
    peak = 2 * lanes * profile.cpu.cores * profile.cpu.clock_mhz * 1e6
    compute_ms = None if found["flops"] is None else 1000 * found["flops"] / peak
    bandwidth = profile.memory.bandwidth_gb_s
    memory_ms = 1000 * found["size_bytes"] / (bandwidth * 1e9) if bandwidth else None
    if compute_ms is None:
        binds = "unknown (the arithmetic was not counted)"
    elif memory_ms is None:
        binds = "unknown (the profile states no bandwidth)"
    else:
        binds = "arithmetic" if compute_ms >= memory_ms else "memory bandwidth"
    return {
        "profile": profile.name,
        "arithmetic_floor_ms": None if compute_ms is None else round(compute_ms, 3),
        "bandwidth_floor_ms": None if memory_ms is None else round(memory_ms, 3),
        "binds": binds,
        "share_of_ram": round(found["size_bytes"] / profile.memory.ram_bytes, 4),
    }
