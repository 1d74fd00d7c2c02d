"""Latency on an ARM board, predicted from counted instructions: port pressure, cache lines and memory bandwidth.

Per node: an out-of-order core takes as long as its busiest unit (vector pipes, load or store unit, integer units,
decoder), an in-order core as its vector instructions and wide loads after each other or its issue slots. On top come
what stores and cache misses stall, and the lines that main memory must deliver (a roofline: Williams et al., CACM
2009). Threads share the work but not the memory's bandwidth. The interval is as wide as published figures, also those
no constant was fitted to, were off: benchmarks/board_timings.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgepipe.cost.cores import Calibration, Core, Fitted, core_of, load_calibration
from edgepipe.cost.counting import CacheShape, Counts
from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.profile import Profile

Z90 = 1.645  # a normal's central 90 %
DEFAULT_BANDWIDTH_GB_S = 8.0
LINE_BYTES = 64
# Kernels of ONNX Runtime that use no thread pool (onnxruntime/core/providers/cpu/tensor/).
SERIAL_OPERATORS = frozenset({"Concat", "Pad", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
Bound = Literal["compute", "issue", "memory"]
RUNTIME = "onnxruntime"  # whose inferences are counted
_INSTRUCTIONS = (
    "fma_q", "fma_d", "dot", "mmla", "imul", "simd", "permute", "transfer", "fdiv", "load_simd", "load", "store_simd",
    "store", "branch", "alu", "mul", "div", "prefetch", "other",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """What one node takes on one core: cycles by cause, and lines to and from main memory."""

    compute: float
    unit: str  # which is busiest: vector, load, store, issue, integer, branch
    stall: float
    shared_lines: float  # that leave the cache which all cores share
    dram_ns: float
    dram_lines: float


@dataclass(frozen=True, slots=True)
class NodePrediction:
    name: str
    op_type: str
    ms: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class Prediction:
    """One inference's latency in ms: the likeliest, and a 90 % interval."""

    ms: float
    low: float
    high: float
    nodes: tuple[NodePrediction, ...]
    bound: Bound  # where most of the time goes
    unchecked: tuple[str, ...]  # operators that no published figure has checked; they widen the interval
    reasons: tuple[str, ...]  # why the interval is wider than usual


@dataclass(frozen=True, slots=True)
class Ratio:
    """Latency of one model over that of another on one device; errors that both share cancel."""

    value: float
    low: float
    high: float


def cache_shapes(profile: Profile) -> tuple[CacheShape, ...]:
    """The profile's data caches, as `counting.count` takes them."""
    core, _ = core_of(profile.cpu)
    cpu = profile.cpu
    shapes = [CacheShape(cpu.l1d_kib or core.l1d_kib, core.l1d_ways), CacheShape(cpu.l2_kib or core.l2_kib, core.l2_ways)]
    if l3_kib := cpu.l3_kib or (core.l3_kib if cpu.l2_kib is None else None):
        shapes.append(CacheShape(l3_kib, core.l3_ways))
    return tuple(shapes)


def predict(counts: Counts, profile: Profile, threads: int | None = None) -> Prediction:
    """Latency of the counted inference on the profile's device with `threads` (default: the profile's).

    `counts` must come from the emulation of the profile's CPU, with `cache_shapes(profile)`. Raises `UsageError` for
    a profile that is no ARM board.
    """
    if profile.cpu.arch != "aarch64":
        raise UsageError(f"latency is predicted for ARM boards, and {profile.name} is {profile.cpu.arch}", where=f"profile {profile.name}")
    calibration = load_calibration()
    core, stand_in = core_of(profile.cpu)
    fitted = calibration.cores[core.core]
    threads = min(threads or profile.runtime.threads, profile.cpu.cores)
    parts = [(node.name, node.op_type, node.amounts) for node in counts.nodes]
    if counts.rest:
        parts.append(("between nodes", "", counts.rest))
    nodes = tuple(_node(name, op_type, amounts, core, profile, threads, calibration) for name, op_type, amounts in parts)
    ms = sum(node.ms for node in nodes)
    times: dict[Bound, float] = {"compute": 0.0, "issue": 0.0, "memory": 0.0}
    for node in nodes:
        times[node.bound] += node.ms
    unknown = {n.op_type for n in nodes if n.op_type and n.op_type not in calibration.checked_operators}
    share = sum(n.ms for n in nodes if n.op_type in unknown) / ms if ms else 0.0
    reasons = []
    if share > 0.01:
        reasons.append(f"{share:.0%} of the time is in operators that no published figure has checked")
    if stand_in:
        reasons.append(f"{profile.cpu.model} is predicted as a {stand_in}")
    elif not fitted.figures:
        reasons.append(f"no constant was fitted to a {core.core}; they are {fitted.to}")
    if profile.memory.bandwidth_gb_s is None:
        reasons.append(f"the profile has no memory bandwidth; {DEFAULT_BANDWIDTH_GB_S:g} GB/s assumed")
    known = interval_sigma(core.core, threads, calibration, RUNTIME)
    guessed = stand_in or not fitted.figures or profile.memory.bandwidth_gb_s is None
    sigma = math.hypot(
        known,
        calibration.unchecked_log_sigma * share,
        calibration.stand_in_log_sigma if guessed else 0.0,
    )
    spread = math.exp(Z90 * sigma)
    bound = max(times, key=lambda cause: times[cause])
    return Prediction(ms, ms / spread, ms * spread, nodes, bound, tuple(sorted(unknown)), tuple(reasons))


def interval_sigma(core: str, threads: int, calibration: Calibration, runtime_name: str) -> float:
    """Of log(predicted ÷ published): the runtime's own figures where it has some like this one, else never narrower."""
    fitted, runtime = calibration.cores[core], calibration.runtimes[runtime_name]
    sigma = math.hypot(fitted.log_sigma, calibration.threads_log_sigma if threads > 1 else 0.0)
    if runtime.log_sigma is None:
        return sigma
    return runtime.log_sigma if core in runtime.cores and threads > 1 else max(sigma, runtime.log_sigma)


def ratio(model: Prediction, other: Prediction) -> Ratio:
    """`model`'s latency over `other`'s, both predicted for one device and thread count; exactly 1 for the same counts."""
    if model.nodes == other.nodes:
        return Ratio(1.0, 1.0, 1.0)
    calibration = load_calibration()
    unchecked = max(_alone(model, other), _alone(other, model))  # what both have in common cancels
    spread = math.exp(Z90 * math.hypot(calibration.ratio_log_sigma, calibration.unchecked_log_sigma * unchecked))
    value = model.ms / other.ms
    return Ratio(value, value / spread, value * spread)


def _alone(prediction: Prediction, other: Prediction) -> float:
    """Share of the time in operators that no published figure has checked, and that the other model does not have."""
    kinds = set(prediction.unchecked) - {node.op_type for node in other.nodes}
    return sum(node.ms for node in prediction.nodes if node.op_type in kinds) / prediction.ms if prediction.ms else 0.0


def _node(
    name: str, op_type: str, amounts: Mapping[str, int], core: Core, profile: Profile, threads: int, calibration: Calibration
) -> NodePrediction:
    fitted, runtime = calibration.cores[core.core], calibration.runtimes[RUNTIME]
    cost = node_cost(amounts, core, fitted)
    bandwidth = profile.memory.bandwidth_gb_s or DEFAULT_BANDWIDTH_GB_S
    clock, serial = profile.cpu.clock_mhz, calibration.serial_fraction
    work_ms, memory_ms = spread_over(cost, fitted, clock, bandwidth, 1, serial)
    sync_ms, used = 0.0, 1
    if threads > 1 and op_type and op_type not in SERIAL_OPERATORS:  # what runs between nodes stays on one thread,
        # and so do nodes too small to share
        shared = spread_over(cost, fitted, clock, bandwidth, threads, serial)
        waiting = runtime.sync_us / clock  # µs at 1 GHz → ms at the clock
        if runtime.factor * sum(shared) + waiting < runtime.factor * (work_ms + memory_ms):
            (work_ms, memory_ms), sync_ms, used = shared, waiting, threads
    computing = cost.compute * _part(used, serial) / clock / 1e3
    bound: Bound = "issue" if cost.unit in ("issue", "branch") else "compute"
    if computing < (work_ms + memory_ms) / 2:
        bound = "memory"
    return NodePrediction(name, op_type, runtime.factor * (work_ms + memory_ms) + sync_ms, bound)


def _part(threads: int, serial: float) -> float:
    """Of one thread's time, what `threads` take for the same work."""
    return serial + (1 - serial) / threads


def spread_over(cost: Cost, fitted: Fitted, clock_mhz: float, bandwidth_gb_s: float, threads: int, serial: float) -> tuple[float, float]:
    """Milliseconds of work and of waiting for main memory when `threads` cores share a node."""
    part = _part(threads, serial)
    work_ms = (cost.compute + cost.stall) * part / clock_mhz / 1e3
    if threads > 1:  # one core alone never asks faster than the shared cache can answer
        work_ms = max(work_ms, cost.shared_lines * fitted.shared_line_cycles / clock_mhz / 1e3)
    delivered_ns = cost.dram_lines * LINE_BYTES / (bandwidth_gb_s * fitted.dram_share)
    return work_ms, max(cost.dram_ns * part, delivered_ns) / 1e6


def node_cost(amounts: Mapping[str, int], core: Core, fitted: Fitted) -> Cost:
    """Cycles of one node on one core."""

    def of(*names: str) -> float:
        return float(sum(amounts.get(name, 0) for name in names))

    permute_rate = core.permute_q_per_cycle or core.other_simd_q_per_cycle
    dot_rate = core.dot_q_per_cycle or 1.0  # never executed where the core has none
    vector = (
        of("fma_q") / core.fma_f32_q_per_cycle
        + of("fma_d") / core.fma_f32_d_per_cycle
        + of("dot", "mmla") / dot_rate
        + of("imul") / core.mul_int_q_per_cycle
        + of("simd") / core.other_simd_q_per_cycle
        + of("permute", "transfer") / permute_rate
        + of("fdiv") * core.fdiv_q_cycles
    )
    instructions = of(*_INSTRUCTIONS)
    loaded, stored = of("load_q", "load_d"), of("store_q", "store_d")
    if core.in_order:
        # A load of 128 bits issues alone, a narrower one beside vector arithmetic.
        wide = of("load_q") * (1 / core.load_q_per_cycle - 1)
        busy = {"vector": vector + wide, "issue": instructions / core.issue_width}
    else:
        split = max(0.0, loaded - of("load_simd")) + max(0.0, stored - of("store_simd"))  # one µop per register
        busy = {
            "vector": vector,
            "load": of("load_q") / core.load_q_per_cycle + of("load_d", "load") / core.load_per_cycle,
            "store": of("store_q") / core.store_q_per_cycle + of("store_d", "store"),
            "issue": (instructions + split) / core.issue_width,
            "integer": of("alu", "mul") / core.alu_per_cycle + of("div") * core.fdiv_q_cycles,
            "branch": of("branch") / core.branch_per_cycle,
        }
    unit = max(busy, key=lambda name: busy[name])
    lines = [(of(f"l{level}_misses"), of(f"l{level}_jumps")) for level in (1, 2, 3) if f"l{level}_misses" in amounts]
    prices = [(fitted.l1_line_cycles, fitted.l1_jump_cycles), (fitted.l2_line_cycles, fitted.l2_jump_cycles)]
    stall = (of("store_q") + of("store_d") / 2) * fitted.store_cycles
    for (missed, jumps), (beyond, jumps_beyond), (line, jump) in zip(lines, lines[1:], prices, strict=False):
        stall += (missed - beyond) * line + max(0.0, jumps - jumps_beyond) * jump  # what goes further is priced there
    missed, jumps = lines[-1] if lines else (0.0, 0.0)
    moved = missed + of("written_back")
    shared = lines[-2][0] if len(lines) > 1 else 0.0  # of two levels the second is shared, of three the third
    return Cost(busy[unit] * fitted.compute_factor, unit, stall, shared, moved * fitted.dram_line_ns + jumps * fitted.dram_jump_ns, moved)
