"""What a CPU core does in a cycle, as data: `profiles/cores/<core>.toml`, each fact with its source.

Rates come from Arm's optimisation guides, compilers' schedules and measured peaks; what those do not tell (stalls,
how much of the memory's bandwidth a core gets) is fitted to published timings: `profiles/cores/calibration.toml`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field

from edgepipe.resources import resource
from edgepipe.toml import Table, parse, read_toml

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.profile import Cpu

CALIBRATION = "calibration.toml"
# Cores without a file of their own run as the nearest that has one (same pipes, or same family); said in the prediction.
NEAREST = {
    "cortex-a35": "cortex-a53", "cortex-a57": "cortex-a72", "cortex-a75": "cortex-a76", "cortex-a77": "cortex-a76",
    "cortex-x2": "cortex-x1",
    "cortex-a510": "cortex-a55", "cortex-a520": "cortex-a55", "cortex-a710": "cortex-a78", "cortex-a715": "cortex-a78",
    "cortex-a720": "cortex-a78", "neoverse-n2": "neoverse-n1", "neoverse-v1": "cortex-x1",
}  # fmt: skip


class Core(Table):
    """Rates are instructions per cycle; Q: 128-bit registers, D: 64-bit."""

    core: str
    aliases: tuple[str, ...] = Field(default=(), description="cores with the same pipes")
    in_order: bool
    issue_width: int
    simd_pipes: int
    fma_f32_q_per_cycle: float
    fma_f32_d_per_cycle: float
    dot_q_per_cycle: float = Field(description="0: the core has none")
    mul_int_q_per_cycle: float
    other_simd_q_per_cycle: float
    permute_q_per_cycle: float | None = Field(default=None, description="default: as other_simd_q_per_cycle")
    load_q_per_cycle: float
    load_per_cycle: float
    store_q_per_cycle: float
    alu_per_cycle: float
    branch_per_cycle: float
    fma_latency_cycles: int | None = None
    fma_accumulate_latency_cycles: int | None = None
    fdiv_q_cycles: float = Field(default=12, description="a divide or square root of four float32 values")
    l1d_kib: int
    l1d_ways: int = 4
    l2_kib: int
    l2_ways: int = 16
    l3_kib: int | None = None
    l3_ways: int = 16
    cache_line_bytes: int = 64
    sources: dict[str, str]


def core_of(cpu: Cpu) -> tuple[Core, str]:
    """The core's table, and its name where another core had to stand in for it (else empty)."""
    tables, wanted = all_cores(), cpu.model
    while wanted not in tables:
        wanted = NEAREST.get(wanted) or ("cortex-a76" if cpu.int8_dot_product else "cortex-a72")
    return tables[wanted], "" if wanted == cpu.model else wanted


@cache
def all_cores() -> dict[str, Core]:
    """Every core that has a table, also by its aliases."""
    paths = sorted(path for path in (resource("profiles") / "cores").glob("*.toml") if path.name != CALIBRATION)
    tables = [load_core(path) for path in paths]
    return {name: table for table in tables for name in (*table.aliases, table.core)}


@cache
def load_core(path: Path) -> Core:
    return parse(Core, read_toml(path), source=path)


class Fitted(Table):
    """What one core's guides do not tell, fitted by benchmarks/board_timings.py."""

    to: str = Field(description="the published figures it was fitted to, or the core whose constants it shares")
    figures: int = Field(ge=0, description="how many; 0: shared")
    compute_factor: float = Field(gt=0, description="cycles per cycle of the busiest unit: dependences, latencies")
    store_cycles: float = Field(ge=0, description="per 128-bit register stored: write buffers, write-backs")
    l1_line_cycles: float = Field(ge=0, description="per line missing in L1, found in L2, what prefetching leaves")
    l1_jump_cycles: float = Field(ge=0, description="more, where no stream of misses led to it")
    l2_line_cycles: float = Field(ge=0, description="per line missing in L2, found in L3")
    l2_jump_cycles: float = Field(ge=0)
    shared_line_cycles: float = Field(ge=0, description="per line that the cache all cores share hands out, to whichever core")
    dram_line_ns: float = Field(ge=0, description="per line that one core fetches from main memory")
    dram_jump_ns: float = Field(ge=0)
    dram_share: float = Field(gt=0, le=1, description="of the memory's peak bandwidth, what all cores together get")
    log_sigma: float = Field(gt=0, description="of log(predicted ÷ published), so that 90 % lie inside the interval")


class FittedRuntime(Table):
    """How much slower than its counted instructions one runtime is; ncnn, which the cores were fitted with, is the unit."""

    to: str = Field(description="the published figures it was fitted to")
    figures: int = Field(ge=0)
    factor: float = Field(gt=0, description="on a node's work and waiting: what counting one warm inference does not see")
    sync_us: float = Field(ge=0, description="per node on several threads, at 1 GHz: to start the threads and to wait for the last")
    log_sigma: float | None = Field(default=None, gt=0, description="of log(predicted ÷ published) of its own figures")
    cores: tuple[str, ...] = Field(default=(), description="whose figures, on all cores at once, log_sigma is of")


class Calibration(Table):
    """profiles/cores/calibration.toml, written by benchmarks/board_timings.py."""

    serial_fraction: float = Field(ge=0, lt=1, description="of a node's work that one thread does alone")
    threads_log_sigma: float = Field(ge=0, description="joins log_sigma with several threads")
    ratio_log_sigma: float = Field(gt=0, description="of the ratio of two models' latencies on one device")
    unchecked_log_sigma: float = Field(gt=0, description="joins × the share of time in operators without a published figure")
    stand_in_log_sigma: float = Field(gt=0, description="joins where another core stands in, or no bandwidth is known")
    checked_operators: tuple[str, ...]
    cores: dict[str, Fitted]
    runtimes: dict[str, FittedRuntime]


@cache
def load_calibration() -> Calibration:
    path = resource("profiles") / "cores" / CALIBRATION
    return parse(Calibration, read_toml(path), source=path)
