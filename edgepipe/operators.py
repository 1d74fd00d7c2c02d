"""Which operators a runtime has kernels for: the support tables in `export/operators/`, made from the runtimes themselves."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from edgepipe.profile import host_profile
from edgepipe.resources import resource
from edgepipe.weights import all_nodes, load_onnx

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.profile import Profile


@cache
def support_table(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((resource("export") / "operators" / f"{name}.json").read_text(encoding="utf-8"))
    return data


def unsupported(candidate: Artifact, profile: Profile) -> list[str]:
    """Operators of the model for which the profile's runtime has no kernel, as `domain:Operator (opset n)`."""
    table = support_table(profile.runtime.operators)
    missing = set()
    for component in candidate.components.values():
        model = load_onnx(component.main_file)
        opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
        local = {(f.domain, f.name) for f in model.functions}
        for node in all_nodes(model.graph):
            domain = node.domain or "ai.onnx"
            version = since_version(node.op_type, domain, opsets.get(domain, 1))
            ranges = table["operators"].get(domain, {}).get(node.op_type, [])
            known = any(first <= version and (last is None or version <= last) for first, last in ranges)
            function = version in table["functions"].get(domain, {}).get(node.op_type, [])
            if not known and not function and (node.domain, node.op_type) not in local:
                missing.add(f"{domain}:{node.op_type} (opset {opsets.get(domain, 1)})")
    return sorted(missing)


def since_version(operator: str, domain: str, opset: int) -> int:
    """The version of the operator's definition that an opset means, which is what kernels are registered for."""
    import onnx

    try:
        schema = onnx.defs.get_schema(operator, max_inclusive_version=opset, domain="" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:  # not one of ONNX's own operators
        return opset
    return int(schema.since_version)


def unknown_here(artifact: Artifact) -> list[str]:
    """Operators of an ONNX model that this machine's runtime cannot run, so that no pass and no proof could."""
    host = host_profile()
    table = support_table(host.runtime.operators)
    missing = unsupported(artifact, host)
    if host.runtime.version == table["version"]:
        return missing
    return [name for name in missing if name.split(":")[0] not in table["operators"]]  # another version may know more
