"""A sample of the vocabulary stands for all of it."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.nn import functional

from edgepipe.training.objectives.contrastive import info_nce
from edgepipe.training.sampled_softmax import SampledOutputs, unigram

VOCABULARY, WIDTH = 200, 16


def setting() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(64, WIDTH, generator=generator)
    weights = torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.5
    return vectors, weights, torch.randint(0, VOCABULARY, (64,), generator=generator)


def losses(count: int, seed: int, estimate: Literal["softmax", "nce"] = "softmax") -> torch.Tensor:
    vectors, weights, targets = setting()
    sampled = SampledOutputs(count, estimate, unigram(torch.arange(VOCABULARY)))
    return sampled.losses(vectors, targets, lambda tokens: (weights[tokens], 0.0), torch.Generator().manual_seed(seed))


def test_sampled_softmax_comes_near_the_whole_one_as_the_sample_grows() -> None:
    vectors, weights, targets = setting()
    whole = functional.cross_entropy(vectors @ weights.T, targets)

    def apart(count: int) -> float:
        return abs(float(torch.stack([losses(count, seed).mean() for seed in range(50)]).mean() - whole))

    assert apart(2000) < 0.02 < apart(5)


def test_sampled_softmax_has_the_gradient_of_the_whole_one() -> None:
    vectors, weights, targets = setting()

    def gradient(sampled: bool) -> torch.Tensor:
        own = weights.clone().requires_grad_()
        if sampled:
            model = SampledOutputs(5000, "softmax", unigram(torch.zeros(VOCABULARY)))
            loss = model.losses(vectors, targets, lambda tokens: (own[tokens], 0.0), torch.Generator().manual_seed(1)).mean()
        else:
            loss = functional.cross_entropy(vectors @ own.T, targets)
        (found,) = torch.autograd.grad(loss, own)
        return found

    assert float(functional.cosine_similarity(gradient(True).flatten(), gradient(False).flatten(), dim=0)) > 0.99


def test_noise_contrastive_estimation_finds_the_right_tokens() -> None:
    """Trained with it alone, a table of scores ends up with the distribution of the data."""
    counts = torch.tensor([60.0, 25.0, 10.0, 4.0, 1.0])
    scores = torch.zeros(5, requires_grad=True)
    targets = torch.arange(5).repeat_interleave(counts.long())
    sampled = SampledOutputs(20, "nce", unigram(torch.zeros(5)))
    optimiser = torch.optim.Adam([scores], 0.05)
    for step in range(400):
        optimiser.zero_grad()
        drawn = sampled.losses(
            torch.zeros(100, 1), targets, lambda tokens: (torch.zeros(len(tokens), 1), scores[tokens]), torch.Generator().manual_seed(step)
        )
        drawn.mean().backward()
        optimiser.step()

    assert torch.allclose(torch.softmax(scores.detach(), 0), counts / 100, atol=0.06)


@pytest.mark.parametrize("estimate", ["softmax", "nce"])
def test_same_seed_gives_the_same_losses(estimate: Literal["softmax", "nce"]) -> None:
    assert torch.equal(losses(10, 3, estimate), losses(10, 3, estimate))
    assert not torch.equal(losses(10, 3, estimate), losses(10, 4, estimate))


def test_every_token_can_be_drawn() -> None:
    chances = unigram(torch.tensor([0, 1, 1000]))

    assert float(chances.min()) > 0 and float(chances.sum()) == pytest.approx(1)
    assert chances.tolist() == sorted(chances.tolist())


def test_own_pairs_are_told_from_all_but_rows_of_the_same_sample() -> None:
    generator = torch.Generator().manual_seed(2)
    ours = torch.randn(4, 8, generator=generator)
    alone = info_nce(ours, ours, torch.arange(4), 0.1)
    shuffled = info_nce(ours, ours[[1, 2, 3, 0]], torch.arange(4), 0.1)
    twins = info_nce(ours[[0, 0, 1, 2]], ours[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2]), 0.1)

    assert bool((alone < shuffled).all())
    assert float(twins.max()) < 0.1  # not punished for being like itself
