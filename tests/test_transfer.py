"""Accuracy carried over from the host by a sample: who is run on the target, and what that makes of the figure."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.config import Task
from edgepipe.intervals import bootstrap
from edgepipe.runners.agent import AgentPrediction
from edgepipe.tasks import TaskSpec, load_task
from edgepipe.transfer import NEAREST, TOLERANCE, Transfer, agreement, margin, sampling_plan, transfer_of, upper_share

TASK: TaskSpec = load_task(Task(name="text-classification"))


def prediction(*scores: float, **more: object) -> AgentPrediction:
    return AgentPrediction([{"logits": np.array([scores])}], 0, 0)


def outputs(n: int, seed: int = 0) -> list[AgentPrediction]:
    rng = np.random.default_rng(seed)
    return [prediction(0.0, value) for value in rng.normal(size=n)]


def column(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=float)[:, None]


def ran(plan: Transfer, host: np.ndarray, target: np.ndarray) -> Transfer:
    """The plan with what the target gave for its samples; the baseline is the host's."""
    for index in [*plan.random, *plan.nearest]:
        plan.candidate[index], plan.baseline[index] = [float(target[index])], [float(host[index])]
    return plan


def estimate(host: np.ndarray, target: np.ndarray, plan: Transfer) -> tuple[float, tuple[float, float]]:
    """The candidate's points and their interval."""
    (_, value), spread, _ = bootstrap(TASK, column(host), column(host), ran(plan, host, target))
    return value, spread


# --- the plan


@given(n=st.integers(1, 400), wanted=st.integers(1, 400), labelled=st.booleans())
def test_plan_takes_as_many_as_asked_and_none_twice(n: int, wanted: int, labelled: bool) -> None:
    plan = sampling_plan(outputs(n), labelled, wanted)

    assert len(plan.random) == len(set(plan.random)) == min(n, wanted)
    assert not set(plan.random) & set(plan.nearest)
    assert {*plan.random, *plan.nearest} <= set(range(n))
    assert len(plan.nearest) == (min(NEAREST, n - len(plan.random)) if labelled else 0)


def test_plan_of_all_runs_every_sample_once() -> None:
    for wanted in (None, 30, 31):
        plan = sampling_plan(outputs(30), True, wanted)

        assert (plan.random, plan.nearest) == (list(range(30)), [])


def test_plan_is_the_same_each_time_and_adds_those_nearest_to_a_tie() -> None:
    found = outputs(300)

    plan, again = sampling_plan(found, True, 100), sampling_plan(found, True, 100)

    assert plan == again
    margins = [margin(one) for one in found]
    furthest = max(margins[index] for index in plan.nearest)
    assert all(margins[index] >= furthest for index in set(range(300)) - {*plan.random, *plan.nearest})
    assert plan.near == [index for index in plan.random if margins[index] < furthest]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[3.0, 1.0, 2.5]], 0.5),
        ([[1.0, 1.0]], 0.0),
        ([[[5.0, 1.0], [2.0, 1.75]]], 0.25),  # a sequence: its closest position
        ([[-0.5]], 0.5),  # one score: its distance from zero
        (7.0, 7.0),
    ],
)
def test_margin_is_the_lead_of_the_winner_where_it_is_least(scores: object, expected: float) -> None:
    assert margin(AgentPrediction([{"logits": np.array(scores)}], 0, 0)) == expected


# --- the estimator


def flipping_near_ties(seed: int, n: int = 1500) -> tuple[list[AgentPrediction], np.ndarray, np.ndarray]:
    """(outputs, right on the host, right on the target): samples nearer to a tie go wrong on the target."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n) * 2
    host = (rng.random(n) < 0.9).astype(float)
    target = np.where((np.abs(scores) < 0.4) & (rng.random(n) < 0.5), 0.0, host)
    return [prediction(0.0, value) for value in scores], host, target


def test_estimate_is_unbiased_although_near_ties_are_run_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    found, host, target = flipping_near_ties(0)
    generator, estimates = np.random.default_rng, []
    for seed in range(300):
        monkeypatch.setattr("edgepipe.transfer.np.random.default_rng", lambda _=0, seed=seed: generator(seed))
        plan = ran(sampling_plan(found, True, 200), host, target)
        mixed, there, here, share = plan.fill(column(host), plan.candidate)
        estimates.append(TASK.metric(mixed) + share * (TASK.metric(there) - TASK.metric(here)))

    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - 100 * target.mean()) < 3 * error
    assert 100 * host.mean() - 100 * target.mean() > 20 * error  # what an uncorrected figure would be off by


@pytest.mark.parametrize("wanted", [1, 20, 200])
def test_estimate_is_the_hosts_own_where_all_agree(wanted: int) -> None:
    found, host, _ = flipping_near_ties(1)

    value, _ = estimate(host, host, sampling_plan(found, True, wanted))

    assert value == pytest.approx(100 * host.mean(), abs=1e-9)


def test_estimate_is_the_targets_own_where_it_ran_all() -> None:
    found, host, target = flipping_near_ties(2)
    own = bootstrap(TASK, column(host), column(target))

    through = bootstrap(TASK, column(host), column(host), ran(sampling_plan(found, True, None), host, target))

    assert np.array(through) == pytest.approx(np.array(own))


@given(n=st.integers(2, 120), wanted=st.integers(1, 120), seed=st.integers(0, 20))
def test_estimate_is_the_targets_own_where_the_plan_happens_to_cover_all(n: int, wanted: int, seed: int) -> None:
    found, host, target = flipping_near_ties(seed, n)
    plan = sampling_plan(found, True, wanted)
    if len(plan.random) + len(plan.nearest) == n:
        mixed, there, here, share = ran(plan, host, target).fill(column(host), plan.candidate)
        correction = share * (TASK.metric(there) - TASK.metric(here)) if len(there) else 0.0

        assert TASK.metric(mixed) + correction == pytest.approx(100 * target.mean())


def test_interval_holds_the_true_figure_and_is_wider_where_the_target_disagrees() -> None:
    found, host, target = flipping_near_ties(3)

    agreeing = estimate(host, host, sampling_plan(found, True, 200))[1]
    disagreeing = estimate(host, target, sampling_plan(found, True, 200))[1]

    assert disagreeing[0] <= 100 * target.mean() <= disagreeing[1]
    assert disagreeing[1] - disagreeing[0] > 1.3 * (agreeing[1] - agreeing[0])


def test_interval_is_narrower_with_more_target_samples() -> None:
    found, host, target = flipping_near_ties(4)

    widths = [high - low for low, high in (estimate(host, target, sampling_plan(found, False, wanted))[1] for wanted in (50, 200, None))]

    assert widths == sorted(widths, reverse=True)


def test_rank_correlation_survives_the_round_trip_through_json() -> None:
    task = load_task(Task(name="sentence-similarity"))
    rng = np.random.default_rng(0)
    human = rng.random(80)
    host = np.stack([human + rng.normal(size=80) * 0.2, human], axis=1)
    plan = sampling_plan(outputs(80), False, 40)
    plan.candidate = {index: host[index].tolist() for index in plan.random}
    plan.baseline = dict(plan.candidate)

    kept = transfer_of(json.loads(json.dumps(plan.to_json())))

    assert kept == plan
    (before, after), _, _ = bootstrap(task, host, host, kept)
    assert before == after == pytest.approx(task.metric(host))


# --- how far the two are apart


@pytest.mark.parametrize("n", [1, 20, 200, 2000])
def test_upper_share_of_none_is_exact(n: int) -> None:
    bound = upper_share(0, n)

    assert (1 - bound) ** n == pytest.approx(0.05)  # a share that large shows nothing once in twenty times


@given(n=st.integers(1, 3000), data=st.data())
def test_upper_share_lies_above_what_was_seen_and_grows_with_it(n: int, data: st.DataObject) -> None:
    differ = data.draw(st.integers(0, n))

    bound = upper_share(differ, n)

    assert differ / n - 1e-9 <= bound <= 1
    if differ < n:
        assert upper_share(differ + 1, n) >= bound or differ == 0


def test_agreement_tells_random_samples_from_those_nearest_to_a_tie() -> None:
    host = [prediction(1.0, 0.0), prediction(0.0, 1.0), prediction(0.51, 0.5)]
    target = [prediction(1.0, 0.0), prediction(0.0, 1.0 - TOLERANCE / 2), prediction(0.505, 0.507)]

    found = agreement(host, target, 2, 100)

    assert (found["differ"], found["nearest_differ"], found["n"], found["nearest"], found["of"]) == (0, 1, 2, 1, 100)
    assert found["max_share"] == pytest.approx(0.007)
    assert found["beyond"] == 0


def test_outputs_that_are_no_labels_differ_beyond_a_tolerance_whatever_is_largest() -> None:
    host = [prediction(1.0, 0.999), prediction(1.0, 0.5)]
    target = [prediction(0.999, 1.0), prediction(1.0, 0.2)]

    labelled, plain = (agreement(host, target, 2, 2, labelled=flag) for flag in (True, False))

    assert (labelled["differ"], plain["differ"]) == (1, 1)
    assert agreement(host[:1], target[:1], 1, 1, labelled=False)["differ"] == 0


@pytest.mark.parametrize(
    ("differ", "nearest", "near_differ", "of", "says", "never"),
    [
        (0, 0, 0, 200, ("all 200 samples ran on rpi4's kernels",), "every sample ran here"),
        (0, 50, 0, 2000, ("every sample ran here, 200 random ones on rpi4's kernels too", "under 1.5% of all, 95 %", "0 of the 50"), "corrected"),
        (0, 50, 3, 2000, ("0 differ there", "and 3 of the 50 nearest to a tie do"), "corrected"),
        (0, 0, 0, 2000, ("0 differ there",), "nearest"),
        (7, 50, 12, 2000, ("differ from this machine's on 7 of 200 random samples and on 12 of the 50", "corrected"), "every sample"),
    ],
)  # fmt: skip
def test_report_tells_what_the_target_ran(differ: int, nearest: int, near_differ: int, of: int, says: tuple[str, ...], never: str) -> None:
    found = {"of": of, "differ": differ, "nearest_differ": near_differ}
    plan = Transfer(list(range(200)), list(range(200, 200 + nearest)), agreement={name: float(value) for name, value in found.items()})
    plan.baseline_agreement = {"n": 16.0, "differ": 0.0, "beyond": 0.0}

    told = plan.told("rpi4")

    assert all(words in told for words in says), told
    assert never not in told


@pytest.mark.parametrize(("n", "of", "doubted"), [(5, 2000, True), (99, 2000, True), (100, 2000, False), (5, 5, False)])
def test_few_random_samples_of_many_speak_for_nothing(n: int, of: int, doubted: bool) -> None:
    plan = Transfer(list(range(n)), [], agreement={"of": float(of), "differ": 0.0})

    assert bool(plan.doubt) is doubted
