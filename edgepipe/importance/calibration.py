"""Calibration data run through a torch model, with what its layers read and give on the way; padding is left out."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgepipe.errors import DataError
from edgepipe.training.batches import Batches
from edgepipe.training.outputs import called

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.training.batches import Batch

    Watcher = Callable[[Tensor], None]

BATCH = 16


def calibration_batches(artifact: Artifact, ctx: Context, method: str) -> Iterator[Batch]:
    """Every calibration sample once, padded with others of like length. Raises `DataError` naming the method without any."""
    if not ctx.has("calibration"):
        raise DataError("it needs calibration data", where=method, fix="give --calibration FILE, or choose a method that needs none")
    samples = ctx.data("calibration")
    batches = Batches(artifact, samples, BATCH)
    for number, batch in enumerate(batches.in_order()):
        ctx.progress(f"measuring {method}", number, len(batches))
        yield batch


def real_rows(value: Tensor, batch: Batch) -> Tensor:
    """[…, width] → [rows, width]: the positions of a batch that are no padding."""
    mask = batch.inputs.get("attention_mask")
    if mask is not None and value.ndim > 2 and value.shape[: mask.ndim] == mask.shape:
        return value[mask.bool()].flatten(0, -2)
    return value.flatten(0, -2)


def watch_inputs(module: nn.Module, watched: Mapping[Any, nn.Module], artifact: Artifact, ctx: Context, method: str, see: Any) -> None:
    """Run the calibration data and call `see(key, rows)` with what each of the `watched` layers reads, [rows, width]."""
    import torch

    for batch in calibration_batches(artifact, ctx, method):
        with torch.no_grad(), _hooked(watched, lambda key, value, batch=batch: see(key, real_rows(value, batch))):
            called(module, batch.inputs)


@contextmanager
def _hooked(watched: Mapping[Any, nn.Module], see: Any) -> Iterator[None]:
    def hook(key: Any) -> Any:
        return lambda _, inputs: see(key, inputs[0])

    handles = [layer.register_forward_pre_hook(hook(key)) for key, layer in watched.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
