"""Gives verdicts: raw figures × budget × what may count as proof.

A figure is `held` or `broken` only when its provenance may prove its axis; otherwise it is `unproven`, with the
figure and the reason shown all the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.errors import AXIS_EXIT_CODES, UNPROVEN_EXIT_CODE
from edgepipe.profile import host_profile, runs_here
from edgepipe.resources import resource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.config import Budget
    from edgepipe.measure import Measurement, Timing
    from edgepipe.profile import Profile
    from edgepipe.tasks import TaskSpec

RESAMPLES = 1000
BUSY = 0.25  # share of the machine that others may use before times prove nothing


@dataclass(frozen=True, slots=True)
class Result:
    """One figure of one axis; `verdict` is None where no budget stands against it."""

    profile: str
    axis: str
    metric: str
    unit: str
    value: float | None
    provenance: str
    baseline: float | None = None
    budget: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    verdict: str | None = None
    reason: str = ""
    better: str = "lower"  # which way is better, and so on which side of the budget the value must lie
    component: str = "model"
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in self.__slots__}
        return {**data, "interval": list(self.interval) if self.interval else None, "conditions": dict(self.conditions)}


def judge(
    measured: Measurement, candidate: Artifact, baseline: Artifact, profile: Profile, task: TaskSpec, budget: Budget
) -> list[Result]:
    """Every figure with its verdict, in the order a report shows them."""
    here = runs_here(profile)
    provenance = "measured" if here else "host"
    judge_one = _Judge(profile, provenance, "" if here else _stand_in(profile), measured, budget)
    return [
        *judge_one.accuracy(task),
        judge_one.size(candidate, baseline),
        *judge_one.latency(),
        judge_one.memory(),
        *judge_one.parity(),
        operators(candidate, profile, here),
    ]


def _stand_in(profile: Profile) -> str:
    return f"no runner reaches {profile.name} from here yet; this machine stood in"


@dataclass(frozen=True, slots=True)
class _Judge:
    profile: Profile
    provenance: str
    unproven: str  # why figures of this provenance prove nothing; empty when they do
    measured: Measurement
    budget: Budget

    def _row(self, axis: str, metric: str, unit: str, value: float | None, *, held: bool | None = None, reason: str = "", doubt: str = "", **more: Any) -> Result:
        """`held` None: no budget. `doubt`: why the figure cannot prove anything although its provenance could."""
        verdict = None if held is None else "held" if held else "broken"
        if verdict and (self.unproven or doubt):
            verdict, reason = "unproven", "; ".join(text for text in (self.unproven, doubt, reason) if text)
        return Result(self.profile.name, axis, metric, unit, value, self.provenance, verdict=verdict, reason=reason, **more)

    def accuracy(self, task: TaskSpec) -> list[Result]:
        base, ours = np.array(self.measured.baseline_counts), np.array(self.measured.candidate_counts)
        before, after = task.metric(base), task.metric(ours)
        spread, drops = bootstrap(task, base, ours)
        drop, limit = before - after, self.budget.max_accuracy_drop
        within = drops[1] <= limit + self.budget.accuracy_margin
        doubt = "" if within or drop > limit else f"the drop's 95 % bound {drops[1]:.2f} is over the limit plus margin: {len(base)} samples are too few"
        conditions = {"batch": 1, "length": "task", "threads": self.measured.threads}
        return [
            self._row("accuracy", task.metric_name, "points", after, better="higher", baseline=before, interval=spread, n=len(base), conditions=conditions),
            self._row("accuracy", f"{task.metric_name} drop", "points", drop, held=drop <= limit, doubt=doubt, budget=limit, interval=drops, n=len(base), conditions=conditions),
        ]

    def size(self, candidate: Artifact, baseline: Artifact) -> Result:
        before = sum(component.size_bytes for component in baseline.components.values())
        after = sum(component.size_bytes for component in candidate.components.values())
        limit = min(self.budget.max_size_ratio * before, self.budget.max_size_bytes or float("inf"))
        return Result(
            self.profile.name, "size", "component bytes", "bytes", after, "measured", baseline=before, budget=limit,
            verdict="held" if after <= limit else "broken", reason=f"{before / after:.2f} × smaller",
        )  # fmt: skip

    def latency(self) -> list[Result]:
        busy = f"other programs used {self.measured.other_load:.0%} of the machine meanwhile" if self.measured.other_load > BUSY else ""
        rows = []
        for timing in self.measured.timings:
            conditions = {"batch": timing.batch, "length": timing.length, "threads": self.measured.threads}
            before, after = float(np.median(timing.baseline_ms)), float(np.median(timing.candidate_ms))
            ratio, spread = after / before, ratio_interval(timing)
            reason = f"{before / after:.2f} × as fast as float32 [{1 / spread[1]:.2f}, {1 / spread[0]:.2f}]"
            more: dict[str, Any] = {"baseline": before, "n": len(timing.candidate_ms), "conditions": conditions}
            if timing.end_to_end:
                rows.append(self._row("latency", "end-to-end median", "ms", after, reason=f"with encoding, {reason}", interval=median_interval(timing.candidate_ms), **more))
                continue
            limit = self.budget.max_latency_ratio * before
            # Only an interval wholly over the limit says that it broke: a tie is noise, not a regression.
            held = ratio <= self.budget.max_latency_ratio or spread[0] <= self.budget.max_latency_ratio
            if timing.length == "task" and self.budget.max_latency_ms is not None:
                limit = min(limit, self.budget.max_latency_ms)
                held = held and after <= self.budget.max_latency_ms
            rows.append(self._row("latency", "median", "ms", after, held=held, doubt=busy, reason=reason, budget=limit, interval=median_interval(timing.candidate_ms), **more))
            if timing.length == "task":
                rows.append(self._row("latency", "p95", "ms", float(np.percentile(timing.candidate_ms, 95)), **{**more, "baseline": float(np.percentile(timing.baseline_ms, 95))}))
            rate = [1000 * timing.batch / float(np.mean(times)) for times in (timing.baseline_ms, timing.candidate_ms)]
            rows.append(self._row("latency", "throughput", "samples/s", rate[1], better="higher", **{**more, "baseline": rate[0]}))
        return rows

    def memory(self) -> Result:
        limit = min(self.budget.max_memory_ratio * self.profile.memory.ram_bytes, self.budget.max_memory_bytes or float("inf"))
        value, before = self.measured.memory["candidate"], self.measured.memory["baseline"]
        return self._row("memory", "peak of a fresh process", "bytes", value, held=value <= limit, baseline=before, budget=limit,
                         conditions={"batch": 1, "length": "longest", "threads": self.measured.threads})  # fmt: skip

    def parity(self) -> list[Result]:
        found, budget = self.measured.parity, self.budget
        n = int(found["n"])
        rows = [
            self._row("parity", "cosine to a plain session", "", found["cosine"], better="higher", held=found["cosine"] >= budget.min_parity_cosine, budget=budget.min_parity_cosine, n=n),
            self._row("parity", "max abs difference", "", found["max_abs"], n=n, budget=budget.max_parity_abs,
                      held=None if budget.max_parity_abs is None else found["max_abs"] <= budget.max_parity_abs),
            self._row("parity", "label agreement", "share", found["label_agreement"], better="higher", held=found["label_agreement"] >= budget.min_label_agreement, budget=budget.min_label_agreement, n=n),
        ]  # fmt: skip
        for name, gaps in (("batch", self.measured.batch), ("padding", self.measured.padding)):
            if gaps:
                limit, share = budget.min_batch_agreement, gaps["label_agreement"]
                reason = f"outputs move by up to {gaps['max_abs']:.2g} (cosine {gaps['cosine']:.5f}) {'in a batch of 8' if name == 'batch' else 'with padding behind'}"
                rows.append(self._row("parity", f"{name} invariance", "share", share, better="higher", held=None if limit is None else share >= limit, budget=limit, n=int(gaps["n"]), reason=reason))
        return rows


def bootstrap(task: TaskSpec, base: np.ndarray, ours: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals of the candidate's metric and of the paired drop (Efron's percentile bootstrap, fixed seed)."""
    rng = np.random.default_rng(0)
    values, drops = [], []
    for _ in range(RESAMPLES):
        picked = rng.integers(0, len(base), len(base))
        before, after = task.metric(base[picked]), task.metric(ours[picked])
        values.append(after)
        drops.append(before - after)
    return _bounds(values), _bounds(drops)


def ratio_interval(timing: Timing) -> tuple[float, float]:
    """95 % interval of the ratio of medians, samples resampled in pairs."""
    base, ours = np.array(timing.baseline_ms), np.array(timing.candidate_ms)
    picked = np.random.default_rng(0).integers(0, len(base), (RESAMPLES // 2, len(base)))
    return _bounds(np.median(ours[picked], axis=1) / np.median(base[picked], axis=1))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    array = np.array(values)
    picked = np.random.default_rng(0).integers(0, len(array), (RESAMPLES // 2, len(array)))
    return _bounds(np.median(array[picked], axis=1))


def _bounds(values: Any) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@cache
def support_table(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((resource("export") / "operators" / f"{name}.json").read_text(encoding="utf-8"))
    return data


def unsupported(candidate: Artifact, profile: Profile) -> list[str]:
    """Operators of the model for which the profile's runtime has no kernel, as `domain:Operator (opset n)`."""
    from edgepipe.weights import all_nodes, load_onnx

    table = support_table(profile.runtime.operators)
    missing = set()
    for component in candidate.components.values():
        model = load_onnx(component.main_file)
        opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
        local = {(f.domain, f.name) for f in model.functions}
        for node in all_nodes(model.graph):
            domain = node.domain or "ai.onnx"
            version = opsets.get(domain, 1)
            ranges = table["operators"].get(domain, {}).get(node.op_type, [])
            known = any(first <= version and (last is None or version <= last) for first, last in ranges)
            function = any(since <= version for since in table["functions"].get(domain, {}).get(node.op_type, []))
            if not known and not function and (node.domain, node.op_type) not in local:
                missing.add(f"{domain}:{node.op_type} (opset {version})")
    return sorted(missing)


def unknown_here(artifact: Artifact) -> list[str]:
    """Operators of an ONNX model that this machine's runtime cannot run, so that no pass and no proof could."""
    host = host_profile()
    table = support_table(host.runtime.operators)
    missing = unsupported(artifact, host)
    if host.runtime.version == table["version"]:
        return missing
    return [name for name in missing if name.split(":")[0] not in table["operators"]]  # another version may know more


def operators(candidate: Artifact, profile: Profile, here: bool) -> Result:
    """Whether every operator runs there: it did, or the runtime's support table says so."""
    from edgepipe.weights import all_nodes, load_onnx

    missing = [] if here else unsupported(candidate, profile)
    kinds = {node.op_type for component in candidate.components.values() for node in all_nodes(load_onnx(component.main_file).graph)}
    table = support_table(profile.runtime.operators)
    reason = f"no kernel for {', '.join(missing)}" if missing else "loaded and ran" if here else f"by the support table of {table['runtime']} {table['version']}"
    return Result(
        profile.name, "operators", "without a kernel", "operator types", len(missing), "measured" if here else "predicted", baseline=None,
        budget=0, n=len(kinds), verdict="broken" if missing else "held", reason=reason,
    )  # fmt: skip


def overall(results: Sequence[Result]) -> str:
    verdicts = {result.verdict for result in results}
    return "broken" if "broken" in verdicts else "unproven" if "unproven" in verdicts else "held"


def exit_code(results: Sequence[Result], *, strict: bool) -> int:
    """The lowest code of the axes that broke; 16 for unproven ones under `strict`; else 0."""
    broken = [AXIS_EXIT_CODES[result.axis] for result in results if result.verdict == "broken"]
    if broken:
        return min(broken)
    return UNPROVEN_EXIT_CODE if strict and overall(results) == "unproven" else 0
