"""What is drawn more often counts less, so that means stay what they are; unequal samples are found out."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.training.batches import Batches
from edgepipe.training.importance_sampling import UNIFORM, ImportanceSampler, probabilities, systematic
from tests.models import sentences
from tests.passes.running import artifact_of

if TYPE_CHECKING:
    from pathlib import Path

scores = st.lists(st.one_of(st.just(float("nan")), st.floats(0, 100)), min_size=1, max_size=60)


@given(scores)
def test_probabilities_add_up_and_leave_nobody_out(values: list[float]) -> None:
    chances = probabilities(torch.tensor(values, dtype=torch.float64))

    assert float(chances.sum()) == pytest.approx(1)
    assert float(chances.min()) >= UNIFORM / len(values) * (1 - 1e-9)


@given(scores, st.integers(0, 100))
def test_each_is_drawn_as_often_as_its_probability_says(values: list[float], seed: int) -> None:
    chances = probabilities(torch.tensor(values, dtype=torch.float64))

    draws = systematic(chances, random.Random(seed))

    assert len(draws) == len(values)
    times = Counter(draw.sample for draw in draws)
    for sample, chance in enumerate(chances.tolist()):
        assert abs(times[sample] - len(values) * chance) < 1 + 1e-6
    assert all(draw.weight == pytest.approx(1 / (len(values) * float(chances[draw.sample]))) for draw in draws)


def test_weighted_mean_over_draws_is_the_mean_over_samples() -> None:
    """Unbiased: the mean over many epochs' draws of anything, the gradient included, is that of the data."""
    rng = np.random.default_rng(0)
    values, known = rng.normal(size=(40, 3)), rng.exponential(size=40) ** 3
    chances = probabilities(torch.tensor(known))

    estimates = [
        np.mean([draw.weight * values[draw.sample] for draw in systematic(chances, random.Random(seed))], axis=0) for seed in range(4000)
    ]

    error = np.std(estimates, axis=0) / len(estimates) ** 0.5
    assert np.all(np.abs(np.mean(estimates, axis=0) - values.mean(axis=0)) < 4 * error)


def test_first_epoch_has_each_sample_once_and_later_ones_more_of_what_is_hard(classifier: Path) -> None:
    samples = [{"text": text, "label": label} for text, label in sentences(32)]
    sampler = ImportanceSampler(32, "loss", seed=1)
    batches = Batches(artifact_of(classifier), samples, 8, seed=1, sampler=sampler)

    class Pair:
        batch = None

    seen = []
    for batch in batches.epoch(0):
        assert batch.samples is not None and batch.weights is not None
        assert torch.allclose(batch.weights, torch.ones(batch.rows))
        seen += batch.samples.tolist()
        pair = Pair()
        pair.batch = batch  # type: ignore[assignment]
        sampler.weighed(pair, torch.where(batch.samples < 4, 10.0, 0.1))  # type: ignore[arg-type]
    assert sorted(seen) == list(range(32))

    drawn = Counter(sample for batch in batches.epoch(1) for sample in batch.samples.tolist())  # type: ignore[union-attr]
    assert drawn.total() == 32
    assert sum(drawn[sample] for sample in range(4)) > 20


def test_restored_sampler_draws_the_running_epoch_again(classifier: Path) -> None:
    sampler, other = (ImportanceSampler(20, "loss", seed=4) for _ in range(2))
    sampler._scores = torch.rand(20, dtype=torch.float64)
    drawn = sampler.draws(3)
    sampler._scores = torch.rand(20, dtype=torch.float64)  # what the epoch taught since

    other.restore(sampler.state())

    assert other.draws(3) == drawn
    assert other.draws(4) == sampler.draws(4) != drawn
