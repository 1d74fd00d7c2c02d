"""The sweep finds a rate that trains, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from edgepipe.errors import PassError
from edgepipe.training.learning_rate_finder import chosen_rate, find_learning_rate
from tests.training.test_loop import Points, line, squared


def test_found_rate_lies_below_the_one_with_the_lowest_loss_and_weights_are_put_back() -> None:
    parameters = line()

    found, again = (
        find_learning_rate(parameters, squared(parameters), Points(7), lambda *_: None, where="here")  # type: ignore[arg-type]
        for _ in range(2)
    )

    assert found == again
    assert found.rate == pytest.approx(min(found.curve, key=lambda point: point[1])[0] / 10)
    assert 1e-3 < found.rate < 0.1
    assert parameters["slope"].item() == 0 and parameters["slope"].grad is None


def test_sweep_ends_where_the_loss_explodes() -> None:
    parameters = {"x": torch.nn.Parameter(torch.full((1,), 1e-3))}

    def steep(batch: object) -> torch.Tensor:
        return (parameters["x"] * 1000).square()

    found = find_learning_rate(parameters, steep, Points(7), lambda *_: None, where="here")  # type: ignore[arg-type]

    assert found.curve[-1][0] < 0.3
    assert parameters["x"].item() == pytest.approx(1e-3)


@pytest.mark.parametrize("curve", [[], [(1e-6, 1.0), (1e-5, 1.0)], [(1e-6, 1.0), (1e-5, 2.0)]])
def test_loss_that_no_rate_lowers_is_an_error(curve: list[tuple[float, float]]) -> None:
    with pytest.raises(PassError, match="no learning rate lowers the loss"):
        chosen_rate(curve, "here")
