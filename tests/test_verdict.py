"""Verdicts: what may count as proof, and what a broken budget costs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe.artifact import Artifact
from edgepipe.config import Budget, Task
from edgepipe.errors import AXIS_EXIT_CODES
from edgepipe.intervals import bootstrap, ratio_interval
from edgepipe.measure import Measurement
from edgepipe.operators import unsupported
from edgepipe.profile import Profile, host_profile, load_profile
from edgepipe.result import Result, exit_code, overall
from edgepipe.runners import Proof, runner_for
from edgepipe.tasks import load_task
from edgepipe.verdict import judge, operators
from edgepipe.weights import onnx_component
from tests.measurements import counts, measurement, timing
from tests.onnx_models import bag_of_words, one_node

TASK = load_task(Task(name="text-classification"))
LOOSE = Budget(max_size_ratio=10)
BROKEN = {
    "accuracy": (LOOSE, {"candidate_counts": counts(1700)}),
    "size": (Budget(max_size_ratio=0.5), {}),
    "latency": (LOOSE, {"timings": [timing(10, 20)]}),
    "memory": (Budget(max_size_ratio=10, max_memory_bytes=50_000_000), {}),
    "parity": (LOOSE, {"parity": {"n": 200, "cosine": 0.9, "max_abs": 3.0, "label_agreement": 0.9}}),
}


def judged(artifact: Artifact, profile: Profile | None = None, budget: Budget = LOOSE, **changes: Any) -> list[Result]:
    profile = profile or host_profile()
    runner = runner_for(profile)
    found = measurement(**{"proofs": {axis: asdict(runner.proof(axis)) for axis in AXIS_EXIT_CODES}, **changes})
    return judge(found, artifact, artifact, profile, TASK, budget)


def verdicts(results: list[Result]) -> dict[str, set[str]]:
    """Verdicts by axis, reported figures left out."""
    found: dict[str, set[str]] = {}
    for result in results:
        if result.verdict:
            found.setdefault(result.axis, set()).add(result.verdict)
    return found


def row(results: list[Result], metric: str, **conditions: Any) -> Result:
    return next(r for r in results if r.metric == metric and all(r.conditions.get(key) == value for key, value in conditions.items()))


def of(folder: Path, model: Any, artifact: Artifact) -> Artifact:
    folder.mkdir(exist_ok=True)
    onnx.save_model(model, folder / "model.onnx")
    return artifact.with_component("model", onnx_component(folder))


def test_good_figures_measured_on_the_target_hold_on_every_axis(onnx_artifact: Artifact) -> None:
    results = judged(onnx_artifact)

    assert verdicts(results) == {axis: {"held"} for axis in AXIS_EXIT_CODES}
    assert {result.provenance for result in results} == {"measured"}
    assert (overall(results), exit_code(results, strict=True)) == ("held", 0)


@pytest.mark.parametrize("axis", BROKEN)
def test_figure_over_its_budget_breaks_its_axis_alone(onnx_artifact: Artifact, axis: str) -> None:
    budget, changes = BROKEN[axis]

    results = judged(onnx_artifact, budget=budget, **changes)

    found = verdicts(results)
    assert "broken" in found.pop(axis)
    assert set().union(*found.values()) == {"held"}
    assert (overall(results), exit_code(results, strict=False)) == ("broken", AXIS_EXIT_CODES[axis])


def test_several_broken_axes_exit_with_the_lowest_code(onnx_artifact: Artifact) -> None:
    changes = {key: value for _, more in BROKEN.values() for key, value in more.items()}

    results = judged(onnx_artifact, budget=Budget(max_size_ratio=0.5, max_memory_bytes=50_000_000), **changes)

    assert exit_code(results, strict=True) == 10
    assert exit_code([result for result in results if result.axis not in ("accuracy", "size")], strict=True) == 12


@pytest.mark.parametrize("axis", ["accuracy", "latency", "memory", "parity"])
@pytest.mark.parametrize("broken", [False, True])
def test_figures_of_a_machine_that_stands_in_prove_nothing(onnx_artifact: Artifact, axis: str, broken: bool) -> None:
    budget, changes = BROKEN[axis] if broken else (LOOSE, {})

    results = judged(onnx_artifact, load_profile("rpi4"), budget, **changes)

    assert verdicts(results)[axis] == {"unproven"}
    assert all(result.provenance == "host" and "rpi4" in result.reason for result in results if result.axis == axis and result.verdict)


def test_size_and_operators_need_no_device(onnx_artifact: Artifact) -> None:
    results = judged(onnx_artifact, load_profile("rpi4"))

    assert {(result.axis, result.provenance, result.verdict) for result in results if result.axis in ("size", "operators")} == {
        ("size", "measured", "held"),
        ("operators", "predicted", "held"),
    }
    assert (overall(results), exit_code(results, strict=False), exit_code(results, strict=True)) == ("unproven", 0, 16)


def test_what_broke_comes_before_what_is_unproven(onnx_artifact: Artifact) -> None:
    results = judged(onnx_artifact, load_profile("rpi4"), Budget(max_size_ratio=0.5))

    assert (overall(results), exit_code(results, strict=True)) == ("broken", 11)


def test_small_drop_on_few_samples_is_unproven(onnx_artifact: Artifact) -> None:
    result = row(judged(onnx_artifact, baseline_counts=counts(36, 40), candidate_counts=counts(20, 40)[::-1]), "accuracy drop")
    even = row(judged(onnx_artifact, baseline_counts=counts(20, 40), candidate_counts=counts(20, 40)[::-1]), "accuracy drop")

    assert result.verdict == "broken"
    assert (even.value, even.verdict) == (0.0, "unproven")
    assert "40 samples are too few" in even.reason


def test_margin_decides_how_far_the_bound_may_lie_over_the_limit(onnx_artifact: Artifact) -> None:
    figures = {"baseline_counts": counts(1800), "candidate_counts": [[0.0]] * 40 + counts(1800)[40:-30] + [[1.0]] * 30}

    strict, loose = (
        row(judged(onnx_artifact, budget=Budget(max_size_ratio=10, accuracy_margin=margin), **figures), "accuracy drop")
        for margin in (0.1, 2.0)
    )

    assert strict.value == loose.value == pytest.approx(0.5)
    assert strict.interval is not None
    assert 1.1 < strict.interval[1] < 3.0
    assert (strict.verdict, loose.verdict) == ("unproven", "held")


def test_drop_exactly_at_the_limit_holds_and_a_gain_holds(onnx_artifact: Artifact) -> None:
    at_limit = row(judged(onnx_artifact, candidate_counts=counts(1780)), "accuracy drop")
    gain = row(judged(onnx_artifact, candidate_counts=counts(1900)), "accuracy drop")

    assert (at_limit.value, at_limit.verdict) == (pytest.approx(1.0), "held")
    assert (gain.value, gain.verdict) == (pytest.approx(-5.0), "held")


def test_size_has_the_tighter_of_two_limits(onnx_artifact: Artifact) -> None:
    size = onnx_artifact.model.size_bytes

    found = [
        row(judged(onnx_artifact, budget=Budget(max_size_ratio=ratio, max_size_bytes=most)), "component bytes")
        for ratio, most in ((2, size - 1), (0.5, size), (1, size))
    ]

    assert [(result.verdict, result.budget) for result in found] == [("broken", size - 1), ("broken", 0.5 * size), ("held", size)]


@pytest.mark.parametrize(
    ("candidate_ms", "noise", "verdict"),
    [(5.0, 0.02, "held"), (10.0, 0.02, "held"), (11.0, 0.5, "unproven"), (10.3, 0.001, "broken"), (20.0, 0.3, "broken")],
    ids=["faster", "tie", "slower-within-noise", "slower-beyond-noise", "much-slower"],
)
def test_latency_breaks_only_when_its_whole_interval_is_over_the_limit(
    onnx_artifact: Artifact, candidate_ms: float, noise: float, verdict: str
) -> None:
    measured = timing(10.0, candidate_ms, noise=noise)

    result = row(judged(onnx_artifact, timings=[measured]), "median")

    assert result.verdict == verdict
    assert result.value is not None
    assert result.baseline is not None
    assert candidate_ms <= 10.0 or result.value > result.baseline
    assert (ratio_interval(measured)[0] > 1.0) == (verdict == "broken")


def test_absolute_latency_limit_is_for_the_tasks_own_lengths(onnx_artifact: Artifact) -> None:
    budget = Budget(max_size_ratio=10, max_latency_ms=8.0)

    results = judged(onnx_artifact, budget=budget, timings=[timing(20, 10, noise=0.001), timing(20, 10, noise=0.001, length="128")])

    task, fixed = row(results, "median", length="task"), row(results, "median", length="128")
    assert (task.verdict, task.budget) == ("broken", 8.0)
    assert (fixed.verdict, fixed.budget) == ("held", pytest.approx(20, rel=0.01))


def test_latency_on_a_busy_machine_is_unproven(onnx_artifact: Artifact) -> None:
    for figures in ({}, {"timings": [timing(10, 20)]}):
        results = judged(onnx_artifact, other_load=0.4, **figures)
        assert verdicts(results)["latency"] == {"unproven"}
        assert "40% of the machine" in row(results, "median").reason
        assert verdicts(results)["memory"] == {"held"}


def test_end_to_end_times_percentiles_and_throughput_are_reported_only(onnx_artifact: Artifact) -> None:
    results = judged(onnx_artifact)

    assert {result.metric for result in results if result.axis == "latency" and result.verdict is None} == {
        "end-to-end median",
        "p95",
        "throughput",
    }
    assert row(results, "throughput", length="task").value == pytest.approx(200, rel=0.02)


def test_memory_is_a_share_of_the_devices_ram(onnx_artifact: Artifact) -> None:
    host = host_profile()
    small = host.model_copy(update={"memory": host.memory.model_copy(update={"ram_bytes": 300_000_000})})

    result = row(judged(onnx_artifact, small), "peak of a fresh process")

    assert (result.budget, result.verdict) == (75_000_000, "broken")


@pytest.mark.parametrize(
    ("figure", "metric", "budget"),
    [
        ({"cosine": 0.9}, "cosine to a plain session", LOOSE),
        ({"label_agreement": 0.9}, "label agreement", LOOSE),
        ({"max_abs": 0.1}, "max abs difference", Budget(max_size_ratio=10, max_parity_abs=0.01)),
        ({"cosine": float("nan")}, "cosine to a plain session", LOOSE),
    ],
)
def test_each_parity_figure_has_its_own_limit(onnx_artifact: Artifact, figure: dict[str, float], metric: str, budget: Budget) -> None:
    close = measurement().parity

    results = judged(onnx_artifact, budget=budget, parity={**close, **figure})

    assert [result.metric for result in results if result.verdict == "broken"] == [metric]


def test_what_moves_with_its_neighbours_is_told_what_to_do(onnx_artifact: Artifact, tmp_path: Path) -> None:
    onnx.save_model(one_node("DynamicQuantizeLinear"), tmp_path / "model.onnx")
    shared = onnx_artifact.with_component("model", onnx_component(tmp_path))
    moved = {"n": 200, "cosine": 0.99, "max_abs": 0.3, "label_agreement": 0.97}

    for artifact, batch, told in ((shared, moved, True), (shared, measurement().batch, False), (onnx_artifact, moved, False)):
        assert ("quantize-static" in row(judged(artifact, batch=batch), "batch invariance").reason) is told


def test_invariance_is_reported_and_judged_only_when_asked(onnx_artifact: Artifact) -> None:
    moved = {"n": 200, "cosine": 0.99, "max_abs": 0.5, "label_agreement": 0.97}

    reported, judged_too = (
        judged(onnx_artifact, budget=Budget(max_size_ratio=10, min_batch_agreement=limit), batch=moved) for limit in (None, 0.98)
    )

    assert row(reported, "batch invariance").verdict is None
    assert (row(judged_too, "batch invariance").verdict, row(judged_too, "padding invariance").verdict) == ("broken", "held")


def test_operator_without_a_kernel_breaks_with_its_name(onnx_artifact: Artifact, tmp_path: Path) -> None:
    artifact = of(tmp_path, one_node("Wobble", domain="com.example"), onnx_artifact)

    result = operators(artifact, load_profile("rpi4"), Proof("host", "it stood in"))

    assert (result.verdict, result.value, result.provenance) == ("broken", 1, "predicted")
    assert "com.example:Wobble" in result.reason


def test_operators_depend_on_the_models_opset(onnx_artifact: Artifact, tmp_path: Path) -> None:
    old, new = (of(tmp_path / str(opset), one_node("Gelu", opset=opset), onnx_artifact) for opset in (19, 20))

    assert unsupported(old, load_profile("rpi4")) == ["ai.onnx:Gelu (opset 19)"]
    assert unsupported(new, load_profile("rpi4")) == []


def test_every_operator_of_the_small_classifier_has_a_kernel(onnx_artifact: Artifact, tmp_path: Path) -> None:
    assert unsupported(of(tmp_path, bag_of_words(opset=21), onnx_artifact), load_profile("rpi4")) == []


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
@settings(max_examples=30)
def test_bootstrap_interval_holds_the_figure_and_repeats(pairs: list[tuple[bool, bool]]) -> None:
    base, ours = (np.array([[float(pair[side])] for pair in pairs]) for side in (0, 1))

    _, values, drops = bootstrap(TASK, base, ours)

    assert values[0] <= TASK.metric(ours) <= values[1]
    assert drops[0] - 1e-9 <= TASK.metric(base) - TASK.metric(ours) <= drops[1] + 1e-9
    assert (values, drops) == bootstrap(TASK, base, ours)[1:]


def test_bootstrap_is_paired() -> None:
    same = np.array(counts(1000, 2000))

    _, values, drops = bootstrap(TASK, same, same)

    assert drops == (0.0, 0.0)
    assert values[1] - values[0] == pytest.approx(2 * 1.96 * 100 * np.sqrt(0.25 / 2000), rel=0.1)


def test_more_samples_give_a_narrower_interval() -> None:
    widths = [np.diff(bootstrap(TASK, np.array(counts(n // 2, n)), np.array(counts(n // 2, n)[::-1]))[2])[0] for n in (50, 5000)]

    assert widths[0] > 5 * widths[1]


def test_measurements_survive_json() -> None:
    whole = measurement()

    assert Measurement.from_json(json.loads(json.dumps(whole.to_json()))) == whole
