"""Writes the support tables of the accelerators that phones have: CoreML, NNAPI and XNNPACK in ONNX Runtime.

    python export/operators/make_mobile.py        # writes coreml.json, nnapi.json and xnnpack.json beside this file

The lists of CoreML (its ML Program format, iOS 15 and later) and NNAPI are read from the installed wheel
(onnxruntime/tools/mobile_helpers/*.md); every sentence of their notes is either turned into a constraint by RULES or
named in UNCHECKED, so a newer wheel with a new sentence stops this program. The wheel has no list for XNNPACK. What
the notes leave out was read in the providers' sources in microsoft/onnxruntime, at the newest commits at hand, named
in `source`. An operator is taken when all of its constraints hold:

    types       {input: data types}; inputs not named are not looked at, input 0 has the table's types otherwise
    rank        {input: [least, most]}
    constant    inputs that must be initializers
    attributes  {attribute: values it may have}; one that a node leaves out has its default, which is allowed
    since       [first, last] version of the operator's definition
    matmul      both operands 2-D and the second constant, or both of the same 3 or more dimensions and batch
    gemm_bias   the third operand is a vector, or 1 in every dimension but the last
    fused_into  an activation that only runs as part of one of these operators before it
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

Constraints = dict[str, Any]
FLOAT, HALF, INTEGERS = "float32", "float16", ["int32", "int64"]
POOL_2D: Constraints = {"rank": {"0": [4, 4]}}

RULES: dict[str, Constraints] = {
    "Both inputs must be bool.": {"types": {"0": ["bool"], "1": ["bool"]}},
    "Only 2D Pool is supported currently. 3D and 5D support can be added if needed.": POOL_2D,
    "Only 2D Pool is supported.": POOL_2D,
    "Only 1D/2D Conv is supported.": {"rank": {"0": [3, 4]}},
    "Only 2D Conv is supported.": POOL_2D,
    "Only 2D Resize is supported.": POOL_2D,
    "4D input.": POOL_2D,
    "Bias if provided must be constant.": {"constant": ["B"]},
    "Weight and bias must be constant.": {"constant": ["W", "B"]},
    "Weights and bias should be constant.": {"constant": ["W", "w", "B"]},
    "padding_type of SAME_UPPER/SAME_LOWER is not supported.": {"attributes": {"auto_pad": ["NOTSET", "VALID"]}},
    "Only DCR mode DepthToSpace is supported.": {"attributes": {"mode": ["DCR"]}},
    "Only constant mode Pad is supported.": {"attributes": {"mode": ["constant"]}},
    "Input pads and constant_value should be constant.": {"constant": ["pads", "constant_value"]},
    "batch_dims must be 0.": {"attributes": {"batch_dims": [0]}},
    "Input B must be constant.": {"constant": ["B"]},
    "Only supports cases when both inputs are fp32.": {"types": {"0": [FLOAT], "1": [FLOAT]}},
    "starts/ends/axes/steps must be constant initializers.": {"constant": ["starts", "ends", "axes", "steps"]},
    "If provided, `splits` must be constant.": {"constant": ["split"]},
    "Input axes should be constant.": {"constant": ["axes"]},
    "`X`/`Y` branches must be float or float16.": {"types": {"0": ["bool"], "1": [FLOAT, HALF], "2": [FLOAT, HALF]}},
    "`repeats` may be a constant initializer or a runtime tensor (MLProgram only). Input rank up to 5.": {"rank": {"0": [1, 5]}},
    "Input indices should be constant if not int32 type.": {"types_unless_constant": {"1": ["int32"]}},
    "All quantization scales and zero points should be constant.": {"constant": ["*_scale", "*_zero_point"]},
    "Number of splits must evenly divide split axis size. Input split should be constant if provided.": {"constant": ["split"]},
}
UNCHECKED = (
    "kernel_shape must have default values.",
    "output_shape is not supported.",
    "output_padding must have default values.",
    "If 'mode' is 'CRD' the input must have a fixed shape.",
    "'mode' of 'linear' or 'zeros'.",
    "(mode==linear && padding_mode==reflection && align_corners==0) is not supported.",
    "Only support for transA == 0, alpha == 1.0 and beta == 1.0 is currently implemented.",  # stands at MatMul, is about Gemm
    "this ask for a `epislon` (default 1e-4) where onnx don't provide",
    "See [resize_op_builder.cc]",
    "Produced by ORT's",
    "Input pads values should be non-negative.",
    "If input B is not constant, transB should be 1.",
)
PLAIN_GEMM: Constraints = {"attributes": {"transA": [0], "alpha": [1.0], "beta": [1.0]}}
REDUCTION: Constraints = {"constant": ["axes"], "attributes": {"noop_with_empty_axes": [0]}}

COREML: dict[str, Constraints] = {
    "Cast": {"types": {"0": [FLOAT, HALF, *INTEGERS]}},
    "Slice": {"types": {"0": [FLOAT, HALF, "int64"]}},
    "Gemm": PLAIN_GEMM,
    "ReduceSum": REDUCTION,
    "ReduceMean": REDUCTION,
    "ReduceMax": REDUCTION,
    "Pow": {"types": {"0": [FLOAT, HALF], "1": [FLOAT, HALF]}},  # the source takes two float16 as well
}
NNAPI: dict[str, Constraints] = {
    "MatMul": {"matmul": True},
    "Gemm": {**PLAIN_GEMM, "rank": {"0": [2, 2], "1": [2, 2]}, "constant": ["B"], "gemm_bias": True, "since": [7, 19]},
    "Gather": {"rank": {"0": [1, 4]}},
    "ReduceMean": {**REDUCTION, "rank": {"0": [1, 4]}},
    "Reshape": {"constant": ["shape"]},
    "DequantizeLinear": {"types": {"0": ["uint8", "int8"]}},
    "QLinearConv": {"types": {"0": ["uint8", "int8"]}},
    "QLinearMatMul": {"types": {"0": ["uint8", "int8"]}, "constant": ["b"], "rank": {"0": [2, 2], "3": [2, 2]}},
    "QLinearAdd": {"types": {"0": ["uint8", "int8"]}},
    "QLinearAveragePool": {"types": {"0": ["uint8", "int8"]}},
    "QLinearSigmoid": {"types": {"0": ["uint8", "int8"]}},
    "Cast": {"types": {"0": [FLOAT, "int32"]}},
}
WEIGHTED: Constraints = {"rank": {"0": [4, 4], "1": [4, 4]}, "constant": ["W", "w", "B"]}
POOLED: Constraints = {**POOL_2D, "attributes": {"ceil_mode": [0], "auto_pad": ["NOTSET", "VALID", "SAME_UPPER"]}}
ACTIVATION: Constraints = {"fused_into": ["Conv", "MaxPool", "AveragePool"]}
XNNPACK: dict[str, Constraints] = {
    "Conv": {**WEIGHTED, "since": [11, None]},
    "ConvTranspose": WEIGHTED,
    "QLinearConv": {"rank": {"0": [4, 4], "3": [4, 4]}, "constant": ["w", "B"], "types": {"0": ["uint8", "int8"]}, "since": [10, None]},
    "MaxPool": {**POOLED, "types": {"0": [FLOAT, "uint8", "int8"]}, "since": [11, None]},
    "AveragePool": {**POOLED, "since": [11, None]},
    "Softmax": {"last_axis": True},
    "Resize": {**POOL_2D, "types": {"0": [FLOAT, "uint8", "int8"]}, "attributes": {"mode": ["linear"]}, "since": [10, None]},
    "Gemm": {**PLAIN_GEMM, "rank": {"0": [1, 2], "1": [1, 2], "2": [1, 2]}, "constant": ["B", "C"], "since": [7, None]},
    "MatMul": {"rank": {"0": [1, 2], "1": [1, 2]}, "constant": ["B"]},
    "Clip": {**ACTIVATION, "constant": ["min", "max"]},
    "Relu": ACTIVATION,
}

HEADS: dict[str, dict[str, Any]] = {
    "coreml": {
        "provider": "CoreMLExecutionProvider",
        "format": "ML Program (iOS 15 and later)",
        "source": "tools/mobile_helpers/coreml_supported_mlprogram_ops.md of the wheel; microsoft/onnxruntime, core/providers/coreml/builders:"
        " helper.cc (rank 5, dimension 16384), impl/base_op_builder.cc (types, external weights), cast, slice, gemm, binary, reduction, where"
        " op builders (2024 to 2025; stored copies, not the wheel's own commit)",
        "types": [FLOAT, HALF],
        "static_shapes": True,  # it takes dynamic ones too, "performance may be negatively impacted"; the wheel's checker counts them out
        "max_rank": 5,
        "max_dimension": 16384,
        "external_weights": False,
        "copies": True,
        "since": [1, None],
    },
    "nnapi": {
        "provider": "NnapiExecutionProvider",
        "format": "Android 10 (API 29) and later; deprecated since Android 15",
        "source": "tools/mobile_helpers/nnapi_supported_ops.md of the wheel; microsoft/onnxruntime, core/providers/nnapi/nnapi_builtin/builders:"
        " impl/base_op_builder.cc at 194144d (types, static shapes, external weights), impl/base_op_builder.h at b6a9927 (versions to 19),"
        " impl/gemm_op_builder.cc at a0d1834 and op_builder_helpers.cc at bc9f2c2 (MatMul), impl/gather_op_builder.cc at 32d19a8, reduction op builder",
        "types": [FLOAT],
        "static_shapes": True,
        "max_rank": 4,
        "max_dimension": None,
        "external_weights": False,
        "copies": True,
        "since": [1, 19],
    },
    "xnnpack": {
        "provider": "XnnpackExecutionProvider",
        "format": "CPU kernels, in the Android and iOS packages",
        "source": "microsoft/onnxruntime, core/providers/xnnpack: xnnpack_execution_provider.cc at 1b38b58 (kernels), detail/node_support_checker.cc"
        " and nn/max_pool.cc at 6479e4b, math/matmul.cc, nn/softmax.cc and nn/conv_base.cc at d6efbe4, math/gemm.cc at 2944c6f",
        "types": [FLOAT],
        "static_shapes": False,
        "static_inner": ["Conv", "ConvTranspose", "QLinearConv", "MaxPool", "AveragePool", "Softmax", "Resize"],
        "max_rank": None,
        "max_dimension": None,
        "external_weights": True,
        "copies": False,
        "since": [1, None],
    },
}


def listed(path: Path) -> dict[tuple[str, str], tuple[str, Constraints]]:
    """(domain, operator) → its note, and the constraints that follow from it."""
    import onnx.defs

    spelling = {schema.name.lower(): schema.name for schema in onnx.defs.get_all_schemas()}  # the list has "Argmax"
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = line.strip().split("|")
        if len(cells) == 4 and ":" in cells[1]:
            domain, _, name = cells[1].partition(":")
            name = spelling.get(name.lower(), name) if domain == "ai.onnx" else name
            found[domain, name] = (cells[2].replace("<br/>", " "), _constraints(cells[2], f"{path.name}: {name}"))
    return found


def _constraints(note: str, where: str) -> Constraints:
    merged: Constraints = {}
    for sentence in filter(None, (part.strip() for part in note.split("<br/>"))):
        if sentence in RULES:
            merged = _merged(merged, RULES[sentence])
        elif not sentence.startswith(UNCHECKED):
            raise SystemExit(f"{where}: nothing here knows what follows from {sentence!r}; add it to RULES or UNCHECKED")
    return merged


def _merged(one: Constraints, other: Constraints) -> Constraints:
    """Both; of inputs and attributes that both name, `other` counts."""
    result = dict(one)
    for key, value in other.items():
        if isinstance(value, dict):
            result[key] = {**result.get(key, {}), **value}
        elif key == "constant":
            result[key] = sorted({*result.get(key, []), *value})
        else:
            result[key] = value
    return result


def _with_indices(constraints: Constraints, domain: str, operator: str) -> Constraints:
    """The same with inputs by index, as nodes have them."""
    import onnx.defs

    if "constant" not in constraints:
        return constraints
    wanted = constraints["constant"]
    if domain != "ai.onnx":  # QLinear operators of ONNX Runtime: x, scale, zero point for each operand, then for the output
        counts = {"QLinearAdd": 8, "QLinearAveragePool": 5, "QLinearSigmoid": 5}
        return {**constraints, "constant": [index for index in range(counts[operator]) if index % 3]}
    inputs = [entry.name for entry in onnx.defs.get_schema(operator).inputs]
    chosen = [i for i, name in enumerate(inputs) if name in wanted or any(w[0] == "*" and name.endswith(w[1:]) for w in wanted)]
    return {**constraints, "constant": chosen}


def write(name: str, operators: dict[tuple[str, str], tuple[str, Constraints]], extra: dict[str, Constraints]) -> None:
    import onnxruntime

    domains: dict[str, list[str]] = defaultdict(list)
    for (domain, operator), (note, constraints) in sorted(operators.items()):
        entry = _with_indices(_merged(constraints, extra.get(operator, {})), domain, operator)
        entry |= {"note": note} if note else {}
        domains[domain].append(f'      "{operator}": {json.dumps(entry, ensure_ascii=False)}')
    parts = {key: json.dumps(value) for key, value in {"runtime": "onnxruntime", "version": onnxruntime.__version__, **HEADS[name]}.items()}
    body = ",\n".join(f'    "{domain}": {{\n' + ",\n".join(lines) + "\n    }" for domain, lines in domains.items())
    parts["operators"] = "{\n" + body + "\n  }"
    text = ",\n".join(f'  "{key}": {value}' for key, value in parts.items())
    Path(__file__).with_name(f"{name}.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def main() -> None:
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "tools" / "mobile_helpers"
    write("coreml", listed(folder / "coreml_supported_mlprogram_ops.md"), COREML)
    write("nnapi", listed(folder / "nnapi_supported_ops.md"), NNAPI)
    write("xnnpack", {("ai.onnx", operator): ("", {}) for operator in XNNPACK}, XNNPACK)


if __name__ == "__main__":
    main()
