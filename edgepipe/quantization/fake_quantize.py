"""Weights and activations rounded in float32, in torch, so that gradients pass: what quantization-aware training computes with.

Rounding has no gradient of use; it is taken for that of the identity (straight-through estimator; Bengio, Léonard and
Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv 1308.3432). Weights take the values of
`rounding.nearest` bit for bit, so what trains is what will be stored. Activations: Jacob et al., arXiv 1712.05877,
section 3, with the range of each tensor taken as it comes, as ONNX Runtime's DynamicQuantizeLinear does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from edgepipe.quantization.rounding.grid import TINIEST

if TYPE_CHECKING:
    from torch import Tensor

    from edgepipe.quantization.rounding import Grid

ACTIVATION_STEPS = 255  # uint8


class _Round(torch.autograd.Function):  # type: ignore[misc]  # torch is not read by the type checker: it takes minutes
    """To the nearest whole number, halves to the even one; its gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _ScaledGradient(torch.autograd.Function):  # type: ignore[misc]
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def fake_quantize(weight: Tensor, grid: Grid, steps: Tensor | None = None) -> Tensor:
    """A weight [n, k] (output × input, as torch keeps it) on its grid, which is that of the transposed [k, n] in numpy.

    `steps` [n, groups, 1] are learned scales of a symmetric grid; without them a scale just holds its group's largest
    weight.
    """
    groups = grouped(weight, grid)
    if steps is not None:
        codes = _Round.apply((groups / steps).clamp(-grid.highest, grid.highest))
        return _ungrouped(codes * steps, weight)
    scales, zero_points = widest(groups.detach(), grid)
    codes = _Round.apply(groups / scales)
    if zero_points is not None:  # a code that was clipped at an end moves nothing, and has no gradient
        codes = (codes + zero_points).clamp(grid.lowest, grid.highest) - zero_points
    return _ungrouped(codes * scales, weight)


def grouped(weight: Tensor, grid: Grid) -> Tensor:
    """[n, k] as [n, groups, size] (whole tensor: [1, 1, n · k]), the last group filled up with zeros."""
    n, k = weight.shape
    if grid.group_size == -1:
        return weight.reshape(1, 1, -1)
    size, groups = grid.size_of_group(k), grid.groups(k)
    if groups * size != k:
        weight = torch.nn.functional.pad(weight, (0, groups * size - k))
    return weight.reshape(n, groups, size)


def _ungrouped(values: Tensor, weight: Tensor) -> Tensor:
    return values.reshape(len(weight), -1)[:, : weight.shape[1]]


def widest(groups: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points (None: symmetric) that clip nothing, [n, groups, 1], as `rounding.nearest` takes them."""
    low, high = groups.amin(-1, keepdim=True).clamp(max=0).double(), groups.amax(-1, keepdim=True).clamp(min=0).double()
    if grid.symmetric:
        return _usable(torch.maximum(-low, high) / grid.highest), None
    scales = _usable((high - low) / grid.highest)
    return scales, (-low / scales).round().clamp(0, grid.highest).float()


def _usable(scales: Tensor) -> Tensor:
    scales = scales.float()
    return torch.where(scales < TINIEST, torch.ones_like(scales), scales)


def learnable_steps(weight: Tensor, grid: Grid) -> Tensor:
    """First steps for learning, [n, groups, 1]: 2 · mean |w| / √highest (Esser et al., "Learned Step Size Quantization",
    arXiv 1902.08153, section 2.1), at most what `bounded` allows."""
    groups = grouped(weight.detach(), grid)
    return bounded(2 * groups.abs().mean(-1, keepdim=True) / grid.highest**0.5, weight, grid)


def bounded(steps: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """Steps no wider than the largest weight needs, and over zero.

    With a wider one the outermost codes would go unused, and whoever rounds the result again by its own largest weight
    would choose another grid. A step under a hundredth of that clips nearly everything: no training wants it.
    """
    widest_steps = widest(grouped(weight.detach(), grid), grid)[0]
    return torch.maximum(torch.minimum(steps, widest_steps), widest_steps / 100).clamp(min=TINIEST)


def gentle(steps: Tensor, grid: Grid, size: int) -> Tensor:
    """Steps whose gradient is scaled by 1 / √(size · highest), so that they move as fast as weights do (section 2.2)."""
    scaled: Tensor = _ScaledGradient.apply(steps, (size * grid.highest) ** -0.5)
    return scaled


def fake_quantize_activation(values: Tensor) -> Tensor:
    """Any tensor on 256 steps from its least to its greatest value, zero among them exactly."""
    low, high = values.detach().amin().clamp(max=0), values.detach().amax().clamp(min=0)
    scale = (high - low) / ACTIVATION_STEPS
    scale = torch.where(scale < TINIEST, torch.ones_like(scale), scale)
    zero_point = (-low / scale).round().clamp(0, ACTIVATION_STEPS)
    codes = (_Round.apply(values / scale) + zero_point).clamp(0, ACTIVATION_STEPS)
    return (codes - zero_point) * scale
