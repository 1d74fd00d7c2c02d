"""Rounding weights to a grid of few values: one file for each method, all behind `quantize`.

`nearest` and `hqq` look at the weights alone. The others know the layer's inputs X by the Hessian of its output error,
2 XᵀX / samples: `mse` and `k-quant` weigh by its diagonal where it is given, `gptq` and `adaround` need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.errors import ModelError, UsageError
from edgepipe.errors import nearest as nearest_name
from edgepipe.quantization.rounding.adaround import adaround
from edgepipe.quantization.rounding.gptq import gptq
from edgepipe.quantization.rounding.grid import Grid, Quantized
from edgepipe.quantization.rounding.hqq import hqq
from edgepipe.quantization.rounding.k_quant import k_quant
from edgepipe.quantization.rounding.mse import mse
from edgepipe.quantization.rounding.nearest import nearest
from edgepipe.quantization.rounding.objective import output_error
from edgepipe.quantization.rounding.slabs import column_slabs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["METHODS", "NEEDS_HESSIAN", "Grid", "Quantized", "output_error", "quantize"]

METHODS: dict[str, Callable[..., Quantized]] = {
    "nearest": nearest,
    "mse": mse,
    "hqq": hqq,
    "k-quant": k_quant,
    "gptq": gptq,
    "adaround": adaround,
}
NEEDS_HESSIAN = ("gptq", "adaround")


def quantize(
    method: str, weight: np.ndarray, grid: Grid, hessian: np.ndarray | None = None, *, name: str = "weight", **options: Any
) -> Quantized:
    """A weight [k, n] (input × output) on its grid. Columns are worked on some at a time, so that memory beside the weight
    and its codes does not grow with the tensor (except with one scale for the whole of it).

    `hessian` is [k, k], 2 XᵀX / samples; `name` is the weight's, for errors; `options` are the method's own.
    """
    if method not in METHODS:
        raise UsageError(f'there is no rounding method "{method}"', where="method", fix=nearest_name(method, METHODS))
    if weight.ndim != 2:
        raise ModelError(f"a weight of shape {list(weight.shape)} is no matrix", where=name, fix="leave it as it is")
    if method in NEEDS_HESSIAN and hessian is None:
        raise UsageError(
            f"{method} needs calibration inputs", where=name, fix="give calibration data, or take nearest, mse, hqq or k-quant"
        )
    k = len(weight)
    if hessian is not None and hessian.shape != (k, k):
        raise ModelError(f"{k} inputs have second moments of shape {list(hessian.shape)}", where=name)
    if not all(np.isfinite(weight[:, columns]).all() for columns in column_slabs(weight.shape)):
        raise ModelError("the weight holds values that are no numbers", where=name, fix="train or export the model again")
    return METHODS[method](weight, grid, hessian, **options)
