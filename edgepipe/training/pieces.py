"""A batch in pieces, for less memory or for several processes, and on another device."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from edgepipe.training.batches import Batch

T = TypeVar("T")


def pieces(batch: Batch, count: int) -> list[Batch]:
    """The rows of a batch in up to `count` even parts, in order. What is drawn at random for each is its own."""
    rows, count = batch.rows, min(count, batch.rows)
    ends = [rows * number // count for number in range(count + 1)]
    return [
        replace(_changed(batch, _rows(start, end)), seed=f"{batch.seed}/{start}") if count > 1 else batch for start, end in pairwise(ends)
    ]


def _rows(start: int, end: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value[start:end]


def on_device(batch: Batch, device: str) -> Batch:
    """The batch there, but for the numbers of its samples, which are kept where samples are drawn."""
    if device == "cpu":
        return batch
    return replace(_changed(batch, lambda value: value.to(device)), samples=batch.samples)


def _changed(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """A dataclass with all its tensors changed, those in its tables and in dataclasses of its own too."""
    import torch

    def new(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return change(part)
        if isinstance(part, dict):
            return {name: new(each) for name, each in part.items()}
        return _changed(part, change) if is_dataclass(part) else part

    return replace(value, **{field.name: new(getattr(value, field.name)) for field in fields(value)})  # type: ignore[type-var, arg-type]
