"""A step is the same in pieces, goes on from its state as if nothing had happened, and float16 gets over gradients that overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.errors import PassError
from edgepipe.training.batches import Batch
from edgepipe.training.loop import Schedule
from edgepipe.training.ranks import Ranks
from edgepipe.training.updates import Updates

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 80  # 6,400 weights: states of fewer than 4,096 stay in float32


def layer(seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(WIDTH, WIDTH)


def batch(rows: int, seed: int) -> Batch:
    values = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Batch({"x": values}, values.roll(1, 1))


def squared(module: torch.nn.Module) -> Callable[[Batch], torch.Tensor]:
    return lambda part: (module(part.inputs["x"]) - part.targets).square().mean(1)


def updates(module: torch.nn.Module, **settings: Any) -> Updates:
    return Updates(list(module.parameters()), Schedule(learning_rate=0.01, **settings), "here", Ranks())


@given(st.integers(1, 12), st.integers(1, 12))
def test_pieces_of_a_batch_give_its_gradient(rows: int, count: int) -> None:
    whole, cut = layer(), layer()
    one, many = updates(whole, max_gradient_norm=1e9), updates(cut, max_gradient_norm=1e9, accumulate=count)

    losses = [each(squared(module), batch(rows, 1), 1.0, "step 1") for each, module in ((one, whole), (many, cut))]

    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(cut.weight.grad, whole.weight.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"optimizer": "adamw-8bit"}, {"precision": "float16"}])
def test_steps_go_on_from_their_state_with_the_same_bits(settings: dict[str, Any]) -> None:
    whole, begun = layer(), layer()
    straight, first = updates(whole, **settings), updates(begun, **settings)
    for number in range(6):
        straight(squared(whole), batch(4, number), 1.0, "a step")
    for number in range(3):
        first(squared(begun), batch(4, number), 1.0, "a step")
    resumed = layer(seed=9)
    resumed.load_state_dict(begun.state_dict())

    second = updates(resumed, **settings)
    second.restore(first.state())
    for number in range(3, 6):
        second(squared(resumed), batch(4, number), 1.0, "a step")

    assert torch.equal(resumed.weight, whole.weight)


def test_states_in_8_bits_are_a_quarter_as_large() -> None:
    def size(name: str) -> int:
        module = layer()
        update = updates(module, optimizer=name)
        update(squared(module), batch(4, 0), 1.0, "a step")
        states = update.state()["optimiser"]["state"].values()
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, torch.Tensor) and value.numel() > 1000)

    assert size("adamw-8bit") * 3.9 < size("adamw")


def test_step_that_overflows_in_float16_is_left_out_and_the_scale_lowered() -> None:
    module = layer()
    update = updates(module, precision="float16")
    before, scale = module.weight.detach().clone(), update.state()["scaler"]["scale"]

    update(lambda part: squared(module)(part) * 1e36, batch(4, 0), 1.0, "step 1")
    skipped = module.weight.detach().clone()
    update(squared(module), batch(4, 1), 1.0, "step 2")

    assert torch.equal(skipped, before) and not torch.equal(module.weight, before)
    assert update.state()["scaler"]["scale"] < scale


def test_float16_that_never_gets_a_number_is_an_error() -> None:
    module = layer()
    update = updates(module, precision="float16")

    with pytest.raises(PassError, match="the gradient of step"):
        for number in range(60):
            update(lambda part: Overflowing.apply(squared(module)(part).detach(), module.weight), batch(4, number), 1.0, f"step {number}")


class Overflowing(torch.autograd.Function):
    """A number whose gradient is none."""

    @staticmethod
    def forward(_: Any, value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return value + 0 * weight.sum()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> tuple[Any, torch.Tensor]:
        return None, torch.full((WIDTH, WIDTH), torch.inf)


def test_gradient_that_is_no_number_is_an_error_in_float32() -> None:
    module = layer()

    with pytest.raises(PassError, match="the gradient of step 1"):
        updates(module)(lambda part: Overflowing.apply(squared(module)(part).detach(), module.weight), batch(4, 0), 1.0, "step 1")
