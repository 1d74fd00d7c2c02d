"""What a phone's accelerators would take of a model: nodes, partitions, share of the arithmetic, and what to change.

Nothing runs on a phone. The graph is optimised as the phone's runtime does before it asks its providers (ONNX
Runtime's basic level), the support tables say which nodes each takes, and ONNX Runtime's own mobile usability
checker (onnxruntime.tools.mobile_helpers.usability_checker) groups them as the runtime would.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.accelerators import NO_KERNEL, refusal
from edgepipe.mobile_graph import optimised
from edgepipe.operators import support_table
from edgepipe.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.mobile_graph import Optimised
    from edgepipe.profile import Profile

LENGTH = 128  # tokens of the shape that is tried fixed
TITLES = {"coreml": "CoreML", "nnapi": "NNAPI", "xnnpack": "XNNPACK"}
YES, MAYBE, NO = "yes", "maybe", "no"
WIDE = ("it takes 2-D by 2-D, or equal batches, not 3-D by 2-D", "input 0 has 3 dimensions")


@dataclass(frozen=True, slots=True)
class Refused:
    """One operator that is left to the CPU, for one reason; `partitions` is how many there were if it were taken."""

    operator: str
    reason: str
    nodes: int
    partitions: int


@dataclass(frozen=True, slots=True)
class Split:
    """How the graph falls apart between an accelerator and the CPU; `partition_sizes` are the accelerator's, in nodes."""

    nodes: int
    taken: int
    partition_sizes: tuple[int, ...]
    arithmetic_share: float
    helps: str
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True)
class Usability:
    """What one accelerator makes of a model: as it is, and (where its shapes are not fixed) with them fixed."""

    accelerator: str
    provider: str
    copies: bool
    as_is: Split
    fixed: Split | None
    shapes: Mapping[str, tuple[int, ...]]  # of the inputs, in `fixed`
    changes: tuple[str, ...]

    @property
    def best(self) -> Split:
        return self.fixed or self.as_is


def accelerators_of(profile: Profile) -> tuple[str, ...]:
    """The providers that ONNX Runtime's packages for that phone hold; none for what is no phone."""
    if profile.cpu.model.startswith("apple-") and profile.cpu.arch == "aarch64":
        return ("coreml", "xnnpack")
    return ("nnapi", "xnnpack") if profile.reach.runner == "adb" else ()


def mobile_usability(artifact: Artifact, profile: Profile) -> list[Usability]:
    """One entry per accelerator of the phone; none for other devices and for models that are not ONNX.

    Loads the model and runs it once here. Raises `ModelError` for one that cannot be loaded or run.
    """
    from edgepipe.probes import fixed_feeds

    names = accelerators_of(profile)
    if not names or artifact.program["kind"] != "single" or artifact.model.format != "onnx":
        return []
    feeds = fixed_feeds(artifact, 1, LENGTH)
    fixed = optimised(artifact, {name: value.shape for name, value in feeds.items()}, feeds)
    dynamic = any(not isinstance(dim, int) for entry in artifact.model.signature["inputs"] for dim in entry["shape"])
    as_is = optimised(artifact, {}, {}) if dynamic else fixed
    shapes = {name: tuple(value.shape) for name, value in feeds.items()}
    found = []
    for name in names:
        table = support_table(name)
        first = _split(as_is, table, fixed.work)
        second = _split(fixed, table, fixed.work) if dynamic else None
        changes = _changes(TITLES[name], first, second, shapes, copies=table["copies"])
        found.append(Usability(name, table["provider"], table["copies"], first, second, shapes if dynamic else {}, changes))
    return found


class _Taken:
    """Stands in for the checker's list of supported operators: a node is supported when `takes` says so."""

    def __init__(self, takes: Callable[[Any], bool]) -> None:
        self.is_op_supported = takes


def _split(graph: Optimised, table: Mapping[str, Any], work: Mapping[str, int]) -> Split:
    from onnxruntime.tools.mobile_helpers.usability_checker import check_partitioning

    nodes = graph.model.graph.node
    reasons = {tuple(node.output): refusal(node, graph.graph, table) for node in nodes}

    def parts(*, pretend: str = "") -> Any:
        """The runtime's grouping, as if operators of the kind `pretend` were all taken."""
        taken = _Taken(lambda node: not reasons.get(tuple(node.output), NO_KERNEL) or _kind(node) == pretend)
        return check_partitioning(graph.model.graph, taken, require_fixed_input_sizes=False)

    found = parts()
    done = sum(work.get(node.output[0], 0) for node in nodes if not reasons[tuple(node.output)])
    total = sum(work.get(node.output[0], 0) for node in nodes)
    share = done / total if total else 0.0
    why = Counter((_kind(node), reasons[tuple(node.output)]) for node in nodes if reasons[tuple(node.output)])
    without = {kind: int(parts(pretend=kind).num_partitions) for kind in {kind for kind, _ in why}}
    refused = tuple(
        Refused(kind, reason, count, without[kind]) for (kind, reason), count in sorted(why.items(), key=lambda e: (-e[1], e[0]))
    )
    sizes = tuple(len(group) for group in found.supported_groups)
    helps = _helps(found.suitability().name.lower() if sizes else NO, share, copies=table["copies"])
    return Split(int(found.num_nodes), int(found.num_supported_nodes), sizes, share, helps, refused)


def _kind(node: Any) -> str:
    return f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else str(node.op_type)


def _helps(suitability: str, share: float, *, copies: bool) -> str:
    """The checker's own judgement of nodes and partitions, and no more than the share of the arithmetic allows.

    XNNPACK runs on the CPU as well: partitions cost it no copies, so the share alone decides.
    """
    by_share = YES if share > 0.75 else MAYBE if share > 0.5 else NO
    return min(suitability, by_share, key=(NO, MAYBE, YES).index) if copies else by_share


def _changes(title: str, as_is: Split, fixed: Split | None, shapes: Mapping[str, tuple[int, ...]], *, copies: bool) -> tuple[str, ...]:
    """What would make the accelerator take more, the most telling first."""
    changes = []
    best = fixed or as_is
    if fixed and fixed.taken > as_is.taken:
        inputs = ", ".join(f"{name} {' × '.join(map(str, shape))}" for name, shape in shapes.items())
        changes.append(
            f"fix the input shapes ({inputs}; python -m onnxruntime.tools.make_dynamic_shape_fixed): {title} then takes"
            f" {_extent(fixed)} instead of {_extent(as_is)}"
        )
    kinds = {entry.operator for entry in best.refused}
    if copies and (fused := sorted(kind.partition(":")[2] for kind in kinds if kind.startswith("com.microsoft:"))):
        changes.append(f"leave {', '.join(fused)} unfused or unquantized: {title} has kernels for their parts only")
    if kinds & {"MatMulInteger", "ConvInteger"}:
        changes.append(f"give it float weights: {title} has nothing for dynamic int8")
    wide = [entry for entry in best.refused if entry.operator == "MatMul" and entry.reason.startswith(WIDE)]
    if wide:
        nodes = sum(entry.nodes for entry in wide)
        changes.append(f"reshape the first operand of {nodes} MatMul to two dimensions: {wide[0].reason}")
    if copies:  # without copies, borders cost nothing
        breaking = sorted((e for e in best.refused if e.partitions < len(best.partition_sizes)), key=lambda e: (e.partitions, e.operator))
        changes += [
            f"{e.operator} breaks the graph up ({e.nodes} of them; {e.reason}): {_counted(e.partitions)} without it" for e in breaking[:3]
        ]
    return tuple(changes)


def _extent(split: Split) -> str:
    return f"{split.taken} of {split.nodes} nodes in {_counted(len(split.partition_sizes))}"


def _counted(partitions: int) -> str:
    return f"{partitions} partition{'' if partitions == 1 else 's'}"


def rows(profile: Profile, found: Sequence[Usability]) -> list[Result]:
    """One informative figure per accelerator and shape: the share of the arithmetic it would take, with the rest as its reason."""
    results = []
    for entry in found:
        table = support_table(entry.accelerator)
        for split, shapes in ((entry.as_is, "as exported"), (entry.fixed, "fixed")):
            if split is None:
                continue
            parts = f"{_extent(split)}; worth it: {split.helps}"
            advice = "; ".join(entry.changes[:2]) if split is entry.best else ""
            by = f"by the support table of {table['runtime']} {table['version']}"
            results.append(
                Result(
                    profile.name,
                    "operators",
                    f"{TITLES[entry.accelerator]} share of arithmetic",
                    "share",
                    split.arithmetic_share,
                    "predicted",
                    better="higher",
                    n=split.nodes,
                    reason="; ".join(text for text in (parts, by, advice) if text),
                    conditions={"batch": 1, "shapes": shapes, "partitions": len(split.partition_sizes)},
                )
            )
    return results
