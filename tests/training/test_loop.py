"""The loop finds the best state on dev and leaves the parameters there, the same ones each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.errors import PassError
from edgepipe.training.batches import Batch
from edgepipe.training.loop import Fitted, Schedule, fit, rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Points:
    """Batches of points (x, 3x + 1), as many as asked."""

    def __init__(self, count: int, slope: float = 3.0) -> None:
        self._count, self._slope = count, slope

    def __len__(self) -> int:
        return self._count

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        for index in range(skip, self._count):
            x = torch.randn(8, 1, generator=torch.Generator().manual_seed(number * 1000 + index))
            yield Batch({"x": x}, self._slope * x + 1)

    def in_order(self) -> Iterator[Batch]:
        return self.epoch(99)


def line() -> dict[str, torch.nn.Parameter]:
    return {"slope": torch.nn.Parameter(torch.zeros(1)), "offset": torch.nn.Parameter(torch.zeros(1))}


def squared(parameters: dict[str, torch.nn.Parameter]) -> Callable[[Batch], torch.Tensor]:
    def loss(batch: Batch) -> torch.Tensor:
        assert batch.targets is not None
        return (parameters["slope"] * batch.inputs["x"] + parameters["offset"] - batch.targets).square().flatten()

    return loss


def fitted(parameters: dict[str, torch.nn.Parameter], *, dev: Points | None = None, **settings: object) -> Fitted:
    schedule = Schedule(**{"epochs": 4, "learning_rate": 0.1, **settings})  # type: ignore[arg-type]
    train, dev = Points(50), dev or Points(4)
    return fit(parameters, squared(parameters), train, dev, schedule, lambda *_: None, where="here")  # type: ignore[arg-type]


def test_training_finds_the_line() -> None:
    parameters = line()

    done = fitted(parameters)

    assert done.ended == "schedule" and done.steps == 200
    assert done.best < 1e-3 < done.start
    assert parameters["slope"].item() == pytest.approx(3, abs=0.05)
    assert parameters["offset"].item() == pytest.approx(1, abs=0.05)
    assert parameters["slope"].grad is None


def test_same_seed_gives_the_same_bits_and_leaves_the_process_its_random_numbers() -> None:
    first, second = line(), line()
    torch.manual_seed(5)
    expected = torch.rand(3)

    torch.manual_seed(5)
    fitted(first)
    after = torch.rand(3)
    fitted(second)

    assert torch.equal(first["slope"], second["slope"])
    assert torch.equal(after, expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_never_got_better_on_dev_stays_as_it_was() -> None:
    """Dev lies the other way: training must be stopped and undone."""
    parameters = line()

    done = fitted(parameters, dev=Points(4, slope=-3.0), patience=2)

    assert done.ended == "patience" and done.steps < 200
    assert done.best_step == 0 and done.best == done.start
    assert parameters["slope"].item() == 0


def test_time_limit_ends_training_with_the_best_so_far() -> None:
    parameters = line()

    done = fitted(parameters, minutes=1e-9)

    assert done.ended == "minutes" and done.steps == 1
    assert done.best <= done.start


def test_loss_that_is_no_number_is_an_error_with_its_place() -> None:
    parameters = line()
    with torch.no_grad():
        parameters["slope"].fill_(3e38)

    with pytest.raises(PassError, match="diverged") as caught:
        fitted(parameters)

    assert caught.value.where == "here" and "learning rate" in str(caught.value.fix)


@given(st.integers(1, 500), st.floats(0, 1))
def test_rate_rises_then_falls_and_is_never_nothing(steps: int, warm_up: float) -> None:
    rates = [rate(step, steps, warm_up) for step in range(1, steps + 1)]
    top = rates.index(max(rates))

    assert all(0 < value <= 1 for value in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
