"""Writes the operator-support table of ONNX Runtime's CPU provider, read from the installed wheel.

    python export/operators/make.py        # writes onnxruntime-cpu.json beside this file

A node runs there when its operator's version (the newest since-version in ONNX that is not above the model's
opset) lies inside one of the ranges in `operators`, or is listed in `functions`: no kernel is needed, the runtime
expands the operator's ONNX function body, or folds Constant. Types of tensors are not looked at.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

PROVIDER = "CPUExecutionProvider"
NO_END = 2**31 - 1  # how the runtime writes "no last version"
NOT_EXPANDED = {("Bernoulli", 22), ("SwiGLU", 28), ("Swish", 24)}  # fail on ONNX's test models (1.32.0; Swish from opset 25)

Operator = tuple[str, str]  # domain, name
Known = dict[Operator, set[int]]  # every operator version the runtime knows, with or without a kernel
Kernels = dict[Operator, set[tuple[int, int | None]]]  # first and last operator version of each kernel


def kernels(known: Known) -> Kernels:
    """Version ranges of every kernel.

    One without a last version serves only the operator version it starts at: RandomNormal's, from 1, loads
    at opset 21 and not at 22 (1.32.0). Such a range is closed here where ONNX has a later version.
    """
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    found: Kernels = defaultdict(set)
    for kernel in (kernel for kernel in get_all_opkernel_def() if kernel.provider == PROVIDER):
        operator, (first, last) = (kernel.domain, kernel.op_name), kernel.version_range
        following = min((version for version in known[operator] if version > first), default=None)
        end = last if last != NO_END else following and following - 1
        found[operator].add((first, end))
    return found


def functions(known: Known, table: Kernels) -> dict[Operator, list[int]]:
    """Operator versions that run without a kernel of their own."""
    import onnx.defs

    found: dict[Operator, list[int]] = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        operator, version = (schema.domain, schema.name), schema.since_version
        has_body = schema.has_function or schema.has_context_dependent_function or schema.name == "Constant"
        has_kernel = any(first <= version <= (last or version) for first, last in table.get(operator, ()))
        usable = version in known[operator] and not schema.deprecated and (schema.name, version) not in NOT_EXPANDED
        if has_body and usable and not has_kernel:
            found[operator] = sorted([*found[operator], version])
    return found


def _by_domain(values: dict[Operator, Any]) -> str:
    """JSON with domains and operators sorted, one operator a line."""
    domains: dict[str, list[str]] = defaultdict(list)
    for (domain, name), value in sorted(values.items()):
        domains[domain or "ai.onnx"].append(f'      "{name}": {json.dumps(value, separators=(",", ":"))}')
    return "{\n" + ",\n".join(f'    "{domain}": {{\n' + ",\n".join(lines) + "\n    }" for domain, lines in domains.items()) + "\n  }"


def main() -> None:
    import onnx
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    known: Known = defaultdict(set)
    for schema in get_all_operator_schema():
        known[schema.domain, schema.name].add(schema.since_version)
    table = kernels(known)
    source = f"get_all_opkernel_def() of the {platform.system()} {platform.machine()} wheel; onnx.defs of onnx {onnx.__version__}"
    head = {"runtime": "onnxruntime", "version": onnxruntime.__version__, "provider": PROVIDER, "source": source}
    parts = {key: json.dumps(value) for key, value in head.items()} | {
        "operators": _by_domain({operator: sorted(ranges, key=lambda span: span[0]) for operator, ranges in table.items()}),
        "functions": _by_domain(functions(known, table)),
    }
    text = ",\n".join(f'  "{key}": {value}' for key, value in parts.items())
    Path(__file__).with_name("onnxruntime-cpu.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
