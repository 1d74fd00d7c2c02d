"""Why each layer is quantized as it is: for the recipe, the manifest and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.tuning.outliers import outliers
from edgepipe.tuning.schemes import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.tuning.assignment import Option
    from edgepipe.tuning.search import Search


def reason(search: Search, scheme: str, names: list[str]) -> str:
    """What the layers of one step gain, by the figures that chose it."""
    kernel = BY_NAME[scheme].kernel
    timed = [search.costs.ms[name] for name in names if name in search.costs.ms and kernel in search.costs.ms[name]]
    layers = f"{len(names)} layer{'s' if len(names) > 1 else ''}"
    if kernel == "float32":
        return f"{layers}: float32 kernels are as fast or faster there, and {BY_NAME[scheme].bits} bits in the file hold the size budget"
    if not timed:
        return f"{layers}: {BY_NAME[scheme].bits} bits a value"
    before, after = sum(ms["float32"] for ms in timed), sum(ms[kernel] for ms in timed)
    return f"{layers}: {before / max(after, 1e-9):.2f} × float32's speed on {search.setting.profile.name} ({search.costs.source})"


def summary(chosen: Mapping[str, Option]) -> str:
    counts: dict[str, int] = {}
    for option in chosen.values():
        counts[option.scheme] = counts.get(option.scheme, 0) + 1
    return ", ".join(f"{count} {scheme}" for scheme, count in sorted(counts.items(), key=lambda entry: -entry[1]))


def report(search: Search, chosen: Mapping[str, Option]) -> dict[str, Any]:
    """What the manifest keeps and the report shows, layer by layer."""
    back = {name for entry in search.put_back for name in entry["nodes"]}
    rows = []
    for name, site in search.sites.items():
        option = chosen[name]
        why = "its region lost on the target, so it was put back" if name in back else _why(search, name, option)
        rows.append(
            {
                "node": name,
                "operator": site.operator,
                "shape": [site.k, site.n],
                "parameters": site.parameters,
                "scheme": option.scheme,
                "reason": why,
                "bytes": option.bytes,
                "ms": search.costs.ms.get(name, {}),
                "divergence": {scheme: by[name] for scheme, by in search.losses.items() if name in by},
            }
        )
    return {
        "costs": search.costs.source,
        "costs_reason": search.costs.reason,
        "without": search.costs.without,
        "sites": rows,
        "put_back": search.put_back,
        "steps": search.steps,
        "outliers": outliers(search.artifact, search.sites, search.setting),
    }


def _why(search: Search, name: str, option: Option) -> str:
    ms = search.costs.ms.get(name, {})
    kernel = BY_NAME[option.scheme].kernel
    if kernel in ms and kernel != "float32":
        return f"{ms['float32'] / max(ms[kernel], 1e-9):.2f} × float32's speed"
    if ms and kernel == "float32":
        best = min((value, key) for key, value in ms.items() if key != "float32")
        gain = ms["float32"] / max(best[0], 1e-9)
        return f"{best[1]} is {gain:.2f} × float32's speed{', and loses more' if gain > 1 else ''}"
    return "looked up, not computed" if search.sites[name].kind == "table" else "no other kernel takes it"
