"""A torch model that computes with quantized weights while its own stay in float32, until they are put on the grid.

The module itself is not rebuilt: each call is given the rounded weights in place of its own
(`torch.func.functional_call`), and nothing is left to take out when training is over.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgepipe.errors import PassError, UsageError, nearest
from edgepipe.quantization.fake_quantize import bounded, fake_quantize, fake_quantize_activation, gentle, learnable_steps
from edgepipe.quantization.rounding import Grid, quantize
from edgepipe.quantization.weight_only import grid_of_rows
from edgepipe.training.outputs import by_name, named

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

ROUNDS = 8  # of a projection, until rounding again changes nothing


@dataclass(frozen=True, slots=True)
class Site:
    """A weight to quantize. `transposed`: kept as [input, output], as GPT-2's are."""

    layer: str
    parameter: str
    grid: Grid
    table: bool = False
    transposed: bool = False

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [output, input]; of a convolution, input channels and kernel in one axis."""
        return weight.t() if self.transposed else weight.flatten(1)

    def shaped(self, matrix: Tensor, weight: Tensor) -> Tensor:
        return matrix.t() if self.transposed else matrix.reshape(weight.shape)


def sites_of(module: nn.Module, grid: Grid, tables: Grid | None, exclude: Sequence[str] = ()) -> list[Site]:
    """The weights of linear layers and convolutions, and of embedding tables where `tables` has a grid for them.

    A weight that several layers share is one site. Raises `PassError` where there are none, `UsageError` for a pattern without a layer.
    """
    from transformers.pytorch_utils import Conv1D

    sites: dict[int, Site] = {}
    for name, layer in module.named_modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, nn.Parameter) or id(weight) in sites or any(fnmatchcase(name, pattern) for pattern in exclude):
            continue
        parameter = f"{name}.weight" if name else "weight"
        if isinstance(layer, nn.Embedding) and tables is not None:
            sites[id(weight)] = Site(name, parameter, grid_of_rows(tables, weight.shape[1]), table=True)
        elif isinstance(layer, nn.Linear | Conv1D):
            sites[id(weight)] = Site(name, parameter, grid, transposed=isinstance(layer, Conv1D))
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            sites[id(weight)] = Site(name, parameter, grid)
    names = [name for name, _ in module.named_modules()]
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f'no layer is named "{pattern}"', where="quantization-aware-training.exclude", fix=nearest(pattern, names)[:300]
            )
    if not sites:
        raise PassError(
            "the model has no linear layer, convolution or table whose weights could be quantized",
            where="pass quantization-aware-training",
            fix="leave the pass out of the recipe, or exclude fewer layers",
        )
    return list(sites.values())


class FakeQuantizedModel:
    """Inputs by name → outputs by name, computed with the weights of `sites` on their grids.

    `learned_step`: scales of symmetric grids (tables aside) are parameters too; `activations`: the inputs of quantized
    layers are rounded to 8 bits.
    """

    def __init__(self, module: nn.Module, sites: Sequence[Site], *, learned_step: bool = False, activations: bool = False) -> None:
        self._module, self._sites, self._activations = module, sites, activations
        self._weights = {site.parameter: module.get_parameter(site.parameter) for site in sites}
        self._steps: dict[str, nn.Parameter] = {}
        if learned_step:
            for site in sites:
                if not site.table:
                    self._steps[site.parameter] = nn.Parameter(learnable_steps(site.matrix(self._weights[site.parameter]), site.grid))

    def parameters(self) -> dict[str, nn.Parameter]:
        """What trains: everything but tables that are not quantized, and the learned steps."""
        tables = {id(layer.weight) for layer in self._module.modules() if isinstance(layer, nn.Embedding)}
        frozen = tables - {id(weight) for weight in self._weights.values()}
        trained = {name: parameter for name, parameter in self._module.named_parameters() if id(parameter) not in frozen}
        return trained | {f"{name}.step": steps for name, steps in self._steps.items()}

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {site.parameter: self._rounded(site) for site in self._sites if not site.table}
        args, kwargs = ((), dict(inputs)) if by_name(self._module) else (tuple(inputs.values()), {})
        return named(torch.func.functional_call(self._module, weights, args, kwargs))

    @contextmanager
    def hooked(self) -> Iterator[FakeQuantizedModel]:
        """Tables and activations are rounded while this lasts, by hooks on their layers."""
        handles = []
        for site in self._sites:
            layer = self._module.get_submodule(site.layer)
            if site.table:
                handles.append(layer.register_forward_hook(_rounded_rows(site.grid)))
            elif self._activations:
                handles.append(layer.register_forward_pre_hook(_rounded_input))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def project(self) -> None:
        """Put the weights on their grids for good: rounding them to nearest again changes nothing."""
        with torch.no_grad():
            for site in self._sites:
                weight = self._weights[site.parameter]
                matrix = site.matrix(self._rounded(site)) if site.parameter in self._steps else site.matrix(weight)
                weight.copy_(site.shaped(torch.from_numpy(projected(matrix.numpy().T, site.grid, name=site.parameter).T), weight))

    def _rounded(self, site: Site) -> Tensor:
        weight, steps = self._weights[site.parameter], self._steps.get(site.parameter)
        matrix = site.matrix(weight)
        if steps is None:
            return site.shaped(fake_quantize(matrix, site.grid), weight)
        with torch.no_grad():  # projected gradient descent: steps that left their bounds are put back before they are used
            steps.copy_(bounded(steps, matrix, site.grid))
        return site.shaped(fake_quantize(matrix, site.grid, gentle(steps, site.grid, site.grid.size_of_group(matrix.shape[1]))), weight)


def _rounded_rows(grid: Grid) -> Any:
    """A table's groups lie within its rows, so that rounding the rows that were looked up is rounding the table."""

    def hook(layer: Any, inputs: Any, output: Tensor) -> Tensor:
        return fake_quantize(output.flatten(0, -2), grid).reshape(output.shape)

    return hook


def _rounded_input(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (fake_quantize_activation(inputs[0]), *inputs[1:])


def projected(weight: np.ndarray, grid: Grid, *, name: str) -> np.ndarray:
    """The nearest values [k, n] on the grid that stay where they are when they are rounded again.

    A second rounding may still move values by the last bit of a scale, or where an asymmetric range ends on halves of
    a step, so it is done until nothing moves.
    """
    values = quantize("nearest", weight, grid, name=name).dequantized()
    for _ in range(ROUNDS):
        again = quantize("nearest", values, grid, name=name).dequantized()
        if np.array_equal(again, values):
            break
        values = again
    return values
