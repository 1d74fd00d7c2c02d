"""Gives verdicts: raw figures × budget × what may count as proof.

A figure is `held` or `broken` only when its provenance may prove its axis; otherwise it is `unproven`, with the
figure and the reason shown all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe import mobile
from edgepipe.errors import ModelError
from edgepipe.intervals import bootstrap
from edgepipe.latency_verdict import latency_rows
from edgepipe.operators import support_table, unsupported
from edgepipe.result import Result
from edgepipe.transfer import transfer_of

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.config import Budget
    from edgepipe.measure import Measurement
    from edgepipe.profile import Profile
    from edgepipe.runners import Proof
    from edgepipe.tasks import TaskSpec

MOVED = 1e-3  # of outputs: float32 moves by less when sums are taken in another order
INVARIANT = "all activations of a run share one scale: fixed scales (quantize-static, from calibration data) or one input a run keep neighbours out of it"


def judge(measured: Measurement, candidate: Artifact, baseline: Artifact, profile: Profile, task: TaskSpec, budget: Budget) -> list[Result]:
    """Every figure with its verdict, in the order a report shows them."""
    labelled = bool(candidate.program.get("labels"))
    judge_one = _Judge(profile, measured, budget, labelled)
    rows = [
        *judge_one.accuracy(task),
        judge_one.size(candidate, baseline),
        *latency_rows(measured, budget, judge_one.row),
        judge_one.memory(),
        *judge_one.parity(scales_are_shared(candidate)),
        operators(candidate, profile, measured.proof("operators")),
        *_accelerators(candidate, profile),
    ]
    if len(candidate.roles) == 1:
        return rows
    rows = [replace(row, component="pipeline") for row in rows]
    place = next(index for index, row in enumerate(rows) if row.axis == "size") + 1
    return [*rows[:place], *(_component_size(role, candidate, baseline, profile) for role in candidate.roles), *rows[place:]]


def _component_size(role: str, candidate: Artifact, baseline: Artifact, profile: Profile) -> Result:
    """What one component of several takes; the budget is the whole's."""
    before, after = baseline.components[role].size_bytes, candidate.components[role].size_bytes
    reason = f"{before / after:.2f} × smaller" if after < before else "as it was"
    return Result(profile.name, "size", "component bytes", "bytes", after, "measured", baseline=before, reason=reason, component=role)


def _accelerators(candidate: Artifact, profile: Profile) -> list[Result]:
    """What a phone's accelerators would take; only informative, so a model they cannot be asked about gives nothing."""
    try:
        return mobile.rows(profile, mobile.mobile_usability(candidate, profile))
    except ModelError:
        return []


@dataclass(frozen=True, slots=True)
class _Judge:
    profile: Profile
    measured: Measurement
    budget: Budget
    labelled: bool  # outputs are scores of labels: agreement of the top one says something

    def row(
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
        proof = self.measured.proof(axis)
        if verdict and (proof.doubt or doubt):
            verdict, reason = "unproven", "; ".join(text for text in (proof.doubt, doubt, reason) if text)
        if verdict and proof.note:
            reason = "; ".join(text for text in (reason, proof.note) if text)
        return Result(self.profile.name, axis, metric, unit, value, proof.provenance, verdict=verdict, reason=reason, **more)

    def accuracy(self, task: TaskSpec) -> list[Result]:
        base, ours = np.array(self.measured.baseline_counts), np.array(self.measured.candidate_counts)
        transfer = transfer_of(self.measured.transfer) if self.measured.transfer else None
        (before, after), spread, drops = bootstrap(task, base, ours, transfer)
        reason = transfer.told(self.profile.name) if transfer else ""
        drop, limit = before - after, self.budget.max_accuracy_drop
        few = transfer.doubt if transfer else ""
        within = drops[1] <= limit + self.budget.accuracy_margin
        doubt = (
            ""
            if within or drop > limit
            else f"the drop's 95 % bound {drops[1]:.2f} is over the limit plus margin: {len(base)} samples are too few"
        )
        conditions = {"batch": 1, "length": "task", "threads": self.measured.threads}
        return [
            self.row(
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
            self.row(
                "accuracy",
                f"{task.metric_name} drop",
                "points",
                drop,
                held=drop <= limit,
                doubt=few or doubt,
                budget=limit,
                interval=drops,
                n=len(base),
                conditions=conditions,
                reason=reason,
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

    def memory(self) -> Result:
        limit = min(self.budget.max_memory_ratio * self.profile.memory.ram_bytes, self.budget.max_memory_bytes or float("inf"))
        value, before = self.measured.memory["candidate"], self.measured.memory["baseline"]
        return self.row(
            "memory",
            "peak of a fresh process",
            "bytes",
            value,
            held=value <= limit,
            baseline=before,
            budget=limit,
            conditions={"batch": 1, "length": "longest", "threads": self.measured.threads},
        )

    def parity(self, shared: bool) -> list[Result]:
        """`shared`: activation scales are those of a whole run, so that neighbours and padding move outputs."""
        found, budget = self.measured.parity, self.budget
        n = int(found["n"])
        few = transfer_of(self.measured.transfer).doubt if self.measured.transfer else ""
        rows = [
            self.row(
                "parity",
                "cosine to a plain session",
                "",
                found["cosine"],
                better="higher",
                held=found["cosine"] >= budget.min_parity_cosine,
                doubt=few,
                budget=budget.min_parity_cosine,
                n=n,
            ),
            self.row(
                "parity",
                "max abs difference",
                "",
                found["max_abs"],
                n=n,
                budget=budget.max_parity_abs,
                doubt=few,
                held=None if budget.max_parity_abs is None else found["max_abs"] <= budget.max_parity_abs,
            ),
        ]
        if self.labelled:
            share, floor = found["label_agreement"], budget.min_label_agreement
            rows.append(
                self.row("parity", "label agreement", "share", share, better="higher", held=share >= floor, doubt=few, budget=floor, n=n)
            )
        for name, gaps in (("batch", self.measured.batch), ("padding", self.measured.padding)):
            if gaps:
                limit = budget.min_batch_agreement if self.labelled else None
                share, unit = (gaps["label_agreement"], "share") if self.labelled else (gaps["cosine"], "")
                reason = f"outputs move by up to {gaps['max_abs']:.2g} (cosine {gaps['cosine']:.5f}) {'in a batch of 8' if name == 'batch' else 'with padding behind'}"
                reason += f"; {INVARIANT}" if shared and gaps["max_abs"] > MOVED else ""
                rows.append(
                    self.row(
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


def scales_are_shared(candidate: Artifact) -> bool:
    """Whether the activations of a whole run share one scale, taken at run time."""
    from edgepipe.weights import all_nodes, load_onnx

    graphs = [load_onnx(component.main_file).graph for component in candidate.components.values() if component.format == "onnx"]
    return any(node.op_type.startswith("DynamicQuantize") for graph in graphs for node in all_nodes(graph))


def operators(candidate: Artifact, profile: Profile, proof: Proof) -> Result:
    """Whether every operator runs there: it did, or the runtime's support table says so."""
    from edgepipe.weights import all_nodes, load_onnx

    here = not proof.doubt

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
        proof.provenance if here else "predicted",
        baseline=None,
        budget=0,
        n=len(kinds),
        verdict="broken" if missing else "held",
        reason=reason,
    )
