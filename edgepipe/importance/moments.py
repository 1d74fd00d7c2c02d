"""Second moments of what linear layers read on calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.importance.calibration import watch_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


def second_moments(
    module: nn.Module, layers: Mapping[str, nn.Module], artifact: Artifact, ctx: Context, method: str, *, diagonal: bool = False
) -> dict[str, Tensor]:
    """Name → E[x xᵀ], [in, in], or only its diagonal E[x²], [in], over all rows x of a layer's input that are no padding.

    A layer that no sample reaches has none.
    """
    sums: dict[str, Any] = {}
    rows: dict[str, int] = {}

    def see(name: str, x: Tensor) -> None:
        sums[name] = sums.get(name, 0) + (x.pow(2).sum(0) if diagonal else x.T @ x)
        rows[name] = rows.get(name, 0) + len(x)

    watch_inputs(module, layers, artifact, ctx, method, see)
    return {name: total / rows[name] for name, total in sums.items()}
