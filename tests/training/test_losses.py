"""Losses: zero for the teacher's own outputs, blind to padding, labels used where there are any."""

from __future__ import annotations

import pytest
import torch

from edgepipe.training.batches import IGNORED, Batch
from edgepipe.training.losses import Loss, distance, divergence, remoteness, task_loss

RNG = torch.Generator().manual_seed(0)


def test_task_loss_is_the_mean_over_positions_that_have_a_class() -> None:
    scores = torch.randn(2, 3, 4, generator=RNG)
    targets = torch.tensor([[IGNORED, 1, IGNORED], [2, IGNORED, IGNORED]])

    expected = -torch.stack([scores[0, 1].log_softmax(-1)[1], scores[1, 0].log_softmax(-1)[2]])

    torch.testing.assert_close(task_loss(scores, targets), expected)
    assert task_loss(scores, torch.full((2, 3), IGNORED)).tolist() == [0, 0]


@pytest.mark.parametrize("classes", [True, False])
def test_distance_to_oneself_is_nothing_and_to_others_something(classes: bool) -> None:
    ours = {"logits": torch.randn(4, 3, generator=RNG)}
    theirs = {"logits": torch.randn(4, 3, generator=RNG)}

    assert distance(ours, ours, None, classes=classes, temperature=2.0).mean().item() == pytest.approx(0, abs=1e-6)
    assert distance(ours, theirs, None, classes=classes, temperature=2.0).mean().item() > 0.01


@pytest.mark.parametrize("classes", [True, False])
def test_padding_does_not_count(classes: bool) -> None:
    ours, theirs = torch.randn(2, 5, 8, generator=RNG), torch.randn(2, 5, 8, generator=RNG)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    before = distance({"hidden": ours}, {"hidden": theirs}, mask, classes=classes, temperature=1.0)

    ours[1, 2:] = 100

    torch.testing.assert_close(distance({"hidden": ours}, {"hidden": theirs}, mask, classes=classes, temperature=1.0), before)


def test_divergence_keeps_the_size_of_its_gradient_over_temperatures() -> None:
    theirs = torch.randn(4, 3, generator=RNG)
    sizes = []
    for temperature in (4.0, 8.0):
        ours = torch.zeros(4, 3, requires_grad=True)
        divergence(ours, theirs, temperature).mean().backward()
        assert ours.grad is not None
        sizes.append(ours.grad.norm().item())

    assert sizes[0] == pytest.approx(sizes[1], rel=0.2)


def test_remoteness_sees_direction_and_size() -> None:
    theirs = torch.randn(4, 16, generator=RNG)

    assert remoteness(2 * theirs, theirs).mean().item() == pytest.approx(1, rel=1e-4)  # same direction, off by its own size
    assert remoteness(-theirs, theirs).mean().item() == pytest.approx(2 + 4, rel=1e-4)


def test_samples_without_classes_learn_from_the_teacher_alone() -> None:
    class Teacher(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    loss = Loss(classes=False, teacher=Teacher(), distill=0.0)
    inputs = {"x": torch.randn(3, 4, generator=RNG)}

    assert loss(lambda given: {"output": 2 * given["x"]}, Batch(inputs, None)).mean().item() == pytest.approx(0, abs=1e-6)
    assert loss(lambda given: {"output": given["x"]}, Batch(inputs, None)).mean().item() == pytest.approx(0.25, rel=1e-4)
