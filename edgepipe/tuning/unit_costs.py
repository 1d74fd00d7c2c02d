"""What an attention head and a feed-forward neuron cost on a target, from its table of kernel costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.cost.table import load_table

if TYPE_CHECKING:
    from edgepipe.cost.table import CostTable
    from edgepipe.profile import Profile

TOKENS = 128  # that kernel costs are looked up for
PRECISIONS = ("int8-dynamic", "float32")  # the first that is tabled: what is cut is quantized afterwards


@dataclass(frozen=True, slots=True)
class UnitCosts:
    head_us: float
    neuron_us: float
    source: str


def unit_costs(profile: Profile, hidden: int, head_size: int, width: int) -> UnitCosts:
    """Microseconds at 128 tokens, or in proportion to the arithmetic where the target has no table."""
    table = load_table(profile)
    projections, products = 4 * hidden * head_size * TOKENS, 2 * TOKENS * TOKENS * head_size
    square = _us_per_product(table, (TOKENS, hidden, hidden))
    tall, wide = _us_per_product(table, (TOKENS, hidden, width)), _us_per_product(table, (TOKENS, width, hidden))
    source = f"kernel costs of {profile.name}, {table.source}" if table else "arithmetic: there is no table of kernel costs"
    return UnitCosts((projections + products) * square, hidden * TOKENS * (tall + wide), source)


def _us_per_product(table: CostTable | None, shape: tuple[int, int, int]) -> float:
    """Of one multiplication and addition, in the product nearest to that shape."""
    for precision in PRECISIONS if table else ():
        assert table is not None
        if found := table.speedup("matmul", precision, shape) if precision != "float32" else None:
            nearest = found[0]
            ms = table.ms("matmul", precision, nearest)
            if ms:
                return 1000 * ms / (nearest[0] * nearest[1] * nearest[2])
    return 1.0
