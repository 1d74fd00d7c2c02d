"""Gives verdicts: raw figures × budget × what may count as proof.

A figure is `held` or `broken` only when its provenance may prove its axis; otherwise it is `unproven`, with the
figure and the reason shown all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.intervals import bootstrap, median_interval, ratio_interval
from edgepipe.operators import support_table, unsupported
from edgepipe.result import Result
from edgepipe.runners import runner_for

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.config import Budget
    from edgepipe.measure import Measurement
    from edgepipe.profile import Profile
    from edgepipe.tasks import TaskSpec

SURE = 99.0  # per cent; several shapes are judged, and one unlucky of them would fail the build
BUSY = 0.25  # share of the machine that others may use before times prove nothing


def judge(measured: Measurement, candidate: Artifact, baseline: Artifact, profile: Profile, task: TaskSpec, budget: Budget) -> list[Result]:
    """Every figure with its verdict, in the order a report shows them."""
    runner = runner_for(profile)
    labelled = bool(candidate.program.get("labels"))
    judge_one = _Judge(profile, runner.provenance, runner.doubt, measured, budget, labelled)
    return [
        *judge_one.accuracy(task),
        judge_one.size(candidate, baseline),
        *judge_one.latency(),
        judge_one.memory(),
        *judge_one.parity(),
        operators(candidate, profile, not runner.doubt),
    ]


@dataclass(frozen=True, slots=True)
class _Judge:
    profile: Profile
    provenance: str
    unproven: str  # why figures of this provenance prove nothing; empty when they do
    measured: Measurement
    budget: Budget
    labelled: bool  # outputs are scores of labels: agreement of the top one says something

    def _row(
        self,
        axis: str,
        metric: str,
        unit: str,
        value: float | None,
        *,
        held: bool | None = None,
        reason: str = "",
        doubt: str = "",
        **more: Any,
    ) -> Result:
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
        doubt = (
            ""
            if within or drop > limit
            else f"the drop's 95 % bound {drops[1]:.2f} is over the limit plus margin: {len(base)} samples are too few"
        )
        conditions = {"batch": 1, "length": "task", "threads": self.measured.threads}
        return [
            self._row(
                "accuracy",
                task.metric_name,
                "points",
                after,
                better="higher",
                baseline=before,
                interval=spread,
                n=len(base),
                conditions=conditions,
            ),
            self._row(
                "accuracy",
                f"{task.metric_name} drop",
                "points",
                drop,
                held=drop <= limit,
                doubt=doubt,
                budget=limit,
                interval=drops,
                n=len(base),
                conditions=conditions,
            ),
        ]

    def size(self, candidate: Artifact, baseline: Artifact) -> Result:
        before = sum(component.size_bytes for component in baseline.components.values())
        after = sum(component.size_bytes for component in candidate.components.values())
        limit = min(self.budget.max_size_ratio * before, self.budget.max_size_bytes or float("inf"))
        return Result(
            self.profile.name,
            "size",
            "component bytes",
            "bytes",
            after,
            "measured",
            baseline=before,
            budget=limit,
            verdict="held" if after <= limit else "broken",
            reason=f"{before / after:.2f} × smaller",
        )

    def latency(self) -> list[Result]:
        busy = f"other programs used {self.measured.other_load:.0%} of the machine meanwhile" if self.measured.other_load > BUSY else ""
        rows = []
        for timing in self.measured.timings:
            conditions = {"batch": timing.batch, "length": timing.length, "threads": self.measured.threads}
            before, after = float(np.median(timing.baseline_ms)), float(np.median(timing.candidate_ms))
            spread = ratio_interval(timing)
            reason = f"{before / after:.2f} × as fast as float32 [{1 / spread[1]:.2f}, {1 / spread[0]:.2f}]"
            more: dict[str, Any] = {"baseline": before, "n": len(timing.candidate_ms), "conditions": conditions}
            if timing.end_to_end:
                rows.append(
                    self._row(
                        "latency",
                        "end-to-end median",
                        "ms",
                        after,
                        reason=f"with encoding, {reason}",
                        interval=median_interval(timing.candidate_ms),
                        **more,
                    )
                )
                continue
            limit = self.budget.max_latency_ratio * before
            if timing.length == "task" and self.budget.max_latency_ms is not None:
                limit = min(limit, self.budget.max_latency_ms)
            # Figure and limit move together when the machine does, so the interval is that of the ratio.
            surely_over = ratio_interval(timing, SURE)[0] * before > limit
            noise = "" if after <= limit or surely_over else "over the limit by less than the noise"
            rows.append(
                self._row(
                    "latency",
                    "median",
                    "ms",
                    after,
                    held=after <= limit,
                    doubt=busy or noise,
                    reason=reason,
                    budget=limit,
                    interval=median_interval(timing.candidate_ms),
                    **more,
                )
            )
            if timing.length == "task":
                rows.append(
                    self._row(
                        "latency",
                        "p95",
                        "ms",
                        float(np.percentile(timing.candidate_ms, 95)),
                        **{**more, "baseline": float(np.percentile(timing.baseline_ms, 95))},
                    )
                )
            rate = [1000 * timing.batch / float(np.mean(times)) for times in (timing.baseline_ms, timing.candidate_ms)]
            rows.append(self._row("latency", "throughput", "samples/s", rate[1], better="higher", **{**more, "baseline": rate[0]}))
        return rows

    def memory(self) -> Result:
        limit = min(self.budget.max_memory_ratio * self.profile.memory.ram_bytes, self.budget.max_memory_bytes or float("inf"))
        value, before = self.measured.memory["candidate"], self.measured.memory["baseline"]
        return self._row(
            "memory",
            "peak of a fresh process",
            "bytes",
            value,
            held=value <= limit,
            baseline=before,
            budget=limit,
            conditions={"batch": 1, "length": "longest", "threads": self.measured.threads},
        )

    def parity(self) -> list[Result]:
        found, budget = self.measured.parity, self.budget
        n = int(found["n"])
        rows = [
            self._row(
                "parity",
                "cosine to a plain session",
                "",
                found["cosine"],
                better="higher",
                held=found["cosine"] >= budget.min_parity_cosine,
                budget=budget.min_parity_cosine,
                n=n,
            ),
            self._row(
                "parity",
                "max abs difference",
                "",
                found["max_abs"],
                n=n,
                budget=budget.max_parity_abs,
                held=None if budget.max_parity_abs is None else found["max_abs"] <= budget.max_parity_abs,
            ),
        ]
        if self.labelled:
            share, floor = found["label_agreement"], budget.min_label_agreement
            rows.append(self._row("parity", "label agreement", "share", share, better="higher", held=share >= floor, budget=floor, n=n))
        for name, gaps in (("batch", self.measured.batch), ("padding", self.measured.padding)):
            if gaps:
                limit = budget.min_batch_agreement if self.labelled else None
                share, unit = (gaps["label_agreement"], "share") if self.labelled else (gaps["cosine"], "")
                reason = f"outputs move by up to {gaps['max_abs']:.2g} (cosine {gaps['cosine']:.5f}) {'in a batch of 8' if name == 'batch' else 'with padding behind'}"
                rows.append(
                    self._row(
                        "parity",
                        f"{name} invariance",
                        unit,
                        share,
                        better="higher",
                        held=None if limit is None else share >= limit,
                        budget=limit,
                        n=int(gaps["n"]),
                        reason=reason,
                    )
                )
        return rows


def operators(candidate: Artifact, profile: Profile, here: bool) -> Result:
    """Whether every operator runs there: it did, or the runtime's support table says so."""
    from edgepipe.weights import all_nodes, load_onnx

    missing = [] if here else unsupported(candidate, profile)
    kinds = {node.op_type for component in candidate.components.values() for node in all_nodes(load_onnx(component.main_file).graph)}
    table = support_table(profile.runtime.operators)
    reason = (
        f"no kernel for {', '.join(missing)}"
        if missing
        else "loaded and ran"
        if here
        else f"by the support table of {table['runtime']} {table['version']}"
    )
    return Result(
        profile.name,
        "operators",
        "without a kernel",
        "operator types",
        len(missing),
        "measured" if here else "predicted",
        baseline=None,
        budget=0,
        n=len(kinds),
        verdict="broken" if missing else "held",
        reason=reason,
    )
