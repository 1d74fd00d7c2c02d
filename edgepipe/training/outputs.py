"""A torch model called as the driver calls it: named inputs in, named tensors out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    Model = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def called(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs that are real numbers. A user's own module, which may call its inputs what it likes, takes them in order."""
    return named(module(**inputs) if by_name(module) else module(*inputs.values()))


def by_name(module: nn.Module) -> bool:
    return hasattr(module, "config")


def named(output: Any) -> dict[str, Tensor]:
    import torch

    if isinstance(output, dict):
        values = dict(output)
    else:
        several = output if isinstance(output, tuple | list) else (output,)
        values = {f"output_{index}" if index else "output": value for index, value in enumerate(several)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor) and value.is_floating_point()}
