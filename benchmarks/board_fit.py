"""Fits the constants of profiles/cores/calibration.toml to the figures of board_timings.toml that are not held out.

All cores at once, least squares on log(predicted ÷ published) with bounds that keep every constant physical and weak
priors that decide where figures do not. Needs scipy, which edgepipe itself does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from board_counts import Run

from edgepipe.cost.cores import Core, Fitted, FittedRuntime
from edgepipe.cost.latency import LINE_BYTES, Cost, node_cost, spread_over

# name, lowest, likely, highest, weight of the prior (in units of one figure that is 10 % off)
CORE_CONSTANTS = (
    ("compute_factor", 1.0, 1.15, 2.0, 0.5),
    ("store_cycles", 0.0, 1.0, 6.0, 0.2),
    ("l1_line_cycles", 0.0, 1.5, 12.0, 0.3),
    ("l1_jump_cycles", 0.0, 5.0, 20.0, 0.2),
    ("l2_line_cycles", 0.0, 4.0, 30.0, 0.3),
    ("l2_jump_cycles", 0.0, 15.0, 60.0, 0.2),
    ("shared_line_cycles", 0.0, 5.0, 16.0, 0.2),
    ("dram_line_ns", 0.0, 8.0, 40.0, 0.3),
    ("dram_jump_ns", 0.0, 20.0, 150.0, 0.2),
    ("dram_share", 0.15, 0.5, 0.9, 0.3),
)
COMMON_CONSTANTS = (("serial_fraction", 0.0, 0.05, 0.4, 0.3), ("sync_us", 4.0, 20.0, 400.0, 0.1))
SCALE = 0.1
SYNC_PRIOR = (60.0, 40.0)  # µs at 1 GHz


@dataclass(frozen=True)
class Figure:
    """One published time with what its prediction needs."""

    board: str
    core: str
    runtime: str
    version: str
    model: str
    precision: str  # int8 or float
    threads: int
    clock_mhz: float
    bandwidth_gb_s: float
    ms: float
    source: str
    run: Run
    held_out: str  # why, or empty
    doubtful: str  # why it cannot be compared (fitted to neither), or empty


FEATURES = ("compute_factor", "store_cycles", "l1_line_cycles", "l1_jump_cycles", "l2_line_cycles", "l2_jump_cycles")


class Problem:
    """All figures' groups as one matrix: cost is linear in the constants but for the bandwidth's limit."""

    def __init__(self, figures: list[Figure], tables: dict[str, Core]) -> None:
        self.figures = figures
        self.tables = tables
        self.names = sorted({figure.core for figure in figures})
        rows, starts = [], []
        for figure in figures:
            starts.append(len(rows))
            rows += [features(amounts, tables[figure.core]) for _, amounts, _ in figure.run.groups]
        self.rows = np.array(rows)  # [groups, len(FEATURES) + 3]
        self.starts = np.array(starts)
        of_figure = np.repeat(np.arange(len(figures)), np.diff([*starts, len(rows)]))
        self.core = np.array([self.names.index(figure.core) for figure in figures])[of_figure]
        self.threads, self.clock, self.bandwidth = (
            np.array([getattr(figure, name) for figure in figures], float)[of_figure] for name in ("threads", "clock_mhz", "bandwidth_gb_s")
        )
        self.threads[[serial for figure in figures for _, _, serial in figure.run.groups]] = 1
        self.synced = np.array([figure.run.layers / figure.clock_mhz if figure.threads > 1 else 0.0 for figure in figures])
        self.published = np.log([figure.ms for figure in figures])

    def errors(self, values: Any) -> Any:
        """log(predicted ÷ published) per figure; what `error` says one by one."""
        constants = values[: len(self.names) * len(CORE_CONSTANTS)].reshape(len(self.names), -1)[self.core]
        serial, sync_us = values[-2:]
        part = serial + (1 - serial) / self.threads
        cycles = (self.rows[:, : len(FEATURES)] * constants[:, : len(FEATURES)]).sum(1)
        shared, lines, jumps = self.rows[:, -3:].T
        per_shared, line_ns, jump_ns, share = constants[:, len(FEATURES) :].T
        cycles = np.maximum(cycles * part, np.where(self.threads > 1, shared * per_shared, 0.0))
        memory_ns = np.maximum((lines * line_ns + jumps * jump_ns) * part, lines * LINE_BYTES / (self.bandwidth * share))
        ms = np.add.reduceat(cycles / self.clock / 1e3 + memory_ns / 1e6, self.starts)
        return np.log(ms + self.synced * sync_us) - self.published

    def named(self, values: Any) -> tuple[dict[str, Fitted], dict[str, float]]:
        found = {}
        for name, part in zip(self.names, values[:-2].reshape(len(self.names), -1), strict=True):
            constants = {constant[0]: float(value) for constant, value in zip(CORE_CONSTANTS, part, strict=True)}
            found[name] = Fitted(to="", figures=1, log_sigma=1.0, **constants)
        return found, {"serial_fraction": float(values[-2]), "sync_us": float(values[-1])}


def features(amounts: dict[str, int], core: Core) -> list[float]:
    """What each constant is multiplied with, asked of `node_cost` with that constant 1 and the others 0."""
    nothing = dict.fromkeys((constant[0] for constant in CORE_CONSTANTS), 0.0)

    def cost(name: str) -> Cost:
        values = {**nothing, "compute_factor": 1e-9, "dram_share": 0.5, name: 1.0}
        return node_cost(amounts, core, Fitted(to="", figures=1, log_sigma=1.0, **values))

    found = [cost(name) for name in FEATURES]
    return [found[0].compute, *(c.stall for c in found[1:]), found[0].shared_lines, found[0].dram_lines, cost("dram_jump_ns").dram_ns]


def predicted_ms(figure: Figure, core: Core, fitted: Fitted, serial_fraction: float, runtime: FittedRuntime) -> float:
    work, waiting = work_and_waiting(figure, core, fitted, serial_fraction)
    return runtime.factor * work + runtime.sync_us * waiting


def work_and_waiting(figure: Figure, core: Core, fitted: Fitted, serial_fraction: float) -> tuple[float, float]:
    """What a runtime's factor and sync_us are multiplied with."""
    ms = 0.0
    for _, amounts, serial in figure.run.groups:
        cost = node_cost(amounts, core, fitted)
        threads = 1 if serial else figure.threads
        ms += sum(spread_over(cost, fitted, figure.clock_mhz, figure.bandwidth_gb_s, threads, serial_fraction))
    return ms, figure.run.layers / figure.clock_mhz if figure.threads > 1 else 0.0


def error(figure: Figure, tables: dict[str, Core], constants: dict[str, Fitted], serial_fraction: float, runtime: FittedRuntime) -> float:
    """log(predicted ÷ published)."""
    return math.log(predicted_ms(figure, tables[figure.core], constants[figure.core], serial_fraction, runtime) / figure.ms)


def fit_runtime(figures: list[Figure], tables: dict[str, Core], constants: dict[str, Fitted], serial_fraction: float) -> FittedRuntime:
    """A runtime's factor and sync_us, those of the cores given: least squares on log(predicted ÷ published).

    Few figures hardly tell the two apart, so SYNC_PRIOR says what waking and joining a few threads can take: 25 to 40 µs
    at these clocks. Left free, sync_us doubles and boards left out in turn are predicted worse (15 % off, not 11).
    """
    parts = np.array([work_and_waiting(f, tables[f.core], constants[f.core], serial_fraction) for f in figures])
    published = np.log([f.ms for f in figures])
    from scipy.optimize import least_squares

    likely, spread = SYNC_PRIOR

    def residuals(values: Any) -> Any:
        return np.append((np.log(parts @ values) - published) / SCALE, (values[1] - likely) / spread)

    solved = least_squares(residuals, (1.2, likely), bounds=((0.5, 0.0), (3.0, 400.0)), x_scale=(1, likely))
    boards, models = sorted({f.board for f in figures}), sorted({f.model for f in figures})
    to = f"{', '.join(boards)}: {', '.join(models)}"
    return FittedRuntime(to=to, figures=len(figures), factor=float(solved.x[0]), sync_us=float(solved.x[1]))


def fit(figures: list[Figure], tables: dict[str, Core]) -> tuple[dict[str, Fitted], dict[str, float]]:
    """Constants per core, and those all cores share."""
    from scipy.optimize import least_squares

    problem = Problem(figures, tables)
    table = [constant for _ in problem.names for constant in CORE_CONSTANTS] + list(COMMON_CONSTANTS)
    low, likely, high, weight = (np.array([constant[i] for constant in table]) for i in range(1, 5))
    spans = high - low

    def residuals(values: Any) -> Any:
        return np.concatenate([problem.errors(values) / SCALE, 4 * weight * (values - likely) / spans])

    solved = least_squares(residuals, likely, bounds=(low, high), x_scale=spans, loss="soft_l1", f_scale=1.5)
    return problem.named(solved.x)
