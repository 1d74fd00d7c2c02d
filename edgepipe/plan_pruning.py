"""The planner's part on pruning: what must go, and be trained back, where a budget asks for more than quantization gives.

How many layers and tokens stay is planned from sizes and the table of kernel costs; how wide the layers may be is left open, and
found when the model is built (`tune_pruning`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.plan_quantization import TOKENS, step, weights_of
from edgepipe.structure import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgepipe.artifact import Artifact
    from edgepipe.config import Budget
    from edgepipe.cost.table import CostTable
    from edgepipe.data import Split
    from edgepipe.profile import Profile

FOUR_BITS = 0.56  # bytes of a value with the scale of its group
EIGHT_BITS = 1.0
TABLE_BYTES = 0.52
INT8_SPEED = 1.8  # × float32's, where there is no table of kernel costs
FITS = 0.95  # of a budget: what graph, names and scales take besides
FEWEST_TOKENS = 2000
SMALLEST_LAYERS = 0.2  # of one layer, that are left when all but a few of its heads and neurons are gone
WIDTHS_SHARE = 0.8  # of a layer's weights: what widths leave of it when tokens are counted, so that not all is taken from the tokens
LAYERS_SHARE = 1.5  # of the time that may stay: whole layers go down to it, widths, found by running candidates, the rest of the way
CHANNELS = (0.25, 0.5, 0.75)  # shares of a network's channels that may go
SPARSITY = "sparsify: no CPU kernel gains from zeros; they shrink only what is compressed, an archive or a download: ask for it in a recipe"
LEFT_OUT = "pruning, recover: cutting weights costs accuracy that only re-training earns back; "


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Parameters of an encoder: one layer, its tables, all else."""

    layers: int
    layer: int
    table_rows: int
    table_width: int
    rest: int

    def bytes_with(self, layers: float, rows: int, each: float = EIGHT_BITS) -> float:
        return (layers * self.layer + self.rest) * each + rows * self.table_width * TABLE_BYTES


def pruning(
    artifact: Artifact, profile: Profile, costs: CostTable | None, budget: Budget, splits: Collection[Split]
) -> tuple[list[dict[str, Any]], list[str]]:
    """(steps, what was left out and why), for a torch model; no steps where quantization alone holds the budgets."""
    whole = 4 * artifact.model.parameters
    max_bytes = min(budget.max_size_ratio * whole, budget.max_size_bytes or math.inf)
    speed = _int8_speed(artifact, costs)
    too_large = max_bytes * FITS < FOUR_BITS * artifact.model.parameters
    too_slow = budget.max_latency_ratio < 1 / speed
    if not too_large and not too_slow and budget.max_latency_ms is None:
        return [], [LEFT_OUT + "the budgets hold without"]
    why = _why(too_large, too_slow, max_bytes, whole, budget, speed, profile)
    if missing := [split for split in ("train", "dev") if split not in splits]:
        return [], [f"{LEFT_OUT}{why}, but there is no {' and no '.join(missing)} data to train on: name it with --{missing[0]}"]
    if artifact.program["preprocess"]["kind"] in ("image", "pixels") and weights_of(artifact).get("convolution"):
        return _channels(artifact, max_bytes, budget, speed, why), []
    sizes = _sizes(artifact)
    if sizes is None:
        return [], [f"{LEFT_OUT}{why}, but layers of this architecture are not known; write a recipe with passes that fit it"]
    if (least := sizes.bytes_with(SMALLEST_LAYERS, min(sizes.table_rows, FEWEST_TOKENS))) > max_bytes:
        return [], [f"{LEFT_OUT}{why}, which is less than the {least / 1e6:.1f} MB that could be left: nothing is trained in vain"]
    return _encoder(sizes, max_bytes, budget, speed, why, splits), []


def _why(too_large: bool, too_slow: bool, max_bytes: float, whole: int, budget: Budget, speed: float, profile: Profile) -> str:
    told = []
    if too_large:
        told.append(f"{max_bytes / 1e6:.1f} MB are {whole / max_bytes:.1f} × smaller than float32, and 4 bits give {4 / FOUR_BITS:.1f} ×")
    if too_slow:
        told.append(f"latency ≤ {budget.max_latency_ratio:g} × float32's asks for more than the {speed:.1f} × of int8 on {profile.name}")
    return "; ".join(told) or f"latency ≤ {budget.max_latency_ms:g} ms may ask for more than int8 gives"


def _int8_speed(artifact: Artifact, costs: CostTable | None) -> float:
    products = weights_of(artifact).get("product", ())
    if not costs or not products:
        return INT8_SPEED
    largest = max(products, key=lambda shape: shape[0] * shape[1])
    found = costs.speedup("matmul", "int8-dynamic", (TOKENS, *largest))
    return found[1] if found else INT8_SPEED


def _sizes(artifact: Artifact) -> _Sizes | None:
    """From config.json alone; None for a family whose layers are not known."""
    try:
        config = json.loads((artifact.model.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if config.get("model_type") not in LAYOUTS:
        return None
    width = config.get("hidden_size") or config.get("dim")
    layers = config.get("num_hidden_layers") or config.get("n_layers")
    ffn = config.get("intermediate_size") or config.get("hidden_dim")
    rows = config.get("vocab_size") or 0
    if not (width and layers and ffn):
        return None
    layer = 4 * width * width + 2 * width * ffn
    return _Sizes(layers, layer, rows, width, max(0, artifact.model.parameters - layers * layer - rows * width))


def _encoder(sizes: _Sizes, max_bytes: float, budget: Budget, speed: float, why: str, splits: Collection[Split]) -> list[dict[str, Any]]:
    """Layers first, since they save most of both; then tokens; then widths, as far as the build finds it must."""
    steps = []
    stay = min(1.0, LAYERS_SHARE * budget.max_latency_ratio * speed)  # of the layers' time
    keep = max(1, min(sizes.layers, math.ceil(sizes.layers * stay - 0.25)))
    while keep > 1 and sizes.bytes_with(keep, min(sizes.table_rows, FEWEST_TOKENS)) > max_bytes * FITS:
        keep -= 1
    if keep < sizes.layers:
        spread = {} if "calibration" in splits else {"importance": "spread"}
        steps.append(step("prune-layers", f"{why}: {keep} of {sizes.layers} layers stay", keep=keep, **spread))
    width = WIDTHS_SHARE if "calibration" in splits else 1.0
    room = (max_bytes * FITS - sizes.bytes_with(keep * width, 0)) / (sizes.table_width * TABLE_BYTES)
    if room < sizes.table_rows:
        size = max(FEWEST_TOKENS, int(room) // 100 * 100)
        steps.append(step("prune-vocab", f"{size:,} of {sizes.table_rows:,} tokens fit the size; those that the data use most", size=size))
    if "calibration" in splits:
        steps += [step(name, "as many as must go for the budgets, found when the model is built") for name in ("prune-heads", "prune-ffn")]
    return [*steps, step("recover", "the uncompressed model teaches what is left", epochs=4)]


def _channels(artifact: Artifact, max_bytes: float, budget: Budget, speed: float, why: str) -> list[dict[str, Any]]:
    """Weights and arithmetic of a convolution go with the square of the channels that stay."""
    size = max_bytes * FITS / (EIGHT_BITS * artifact.model.parameters)
    stay = math.sqrt(max(min(size, budget.max_latency_ratio * speed, 1.0), 0.01))
    ratio = next((share for share in CHANNELS if 1 - share <= stay), CHANNELS[-1])
    return [
        step("prune-channels", f"{why}: {ratio:.0%} of the channels go", ratio=ratio),
        step("recover", "the uncompressed model teaches what is left", epochs=8),
    ]
