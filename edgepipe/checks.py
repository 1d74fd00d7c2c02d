"""Checks that the pipeline runs after a pass: the pass declares them, none judges itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.errors import PassError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context, Runnable
    from edgepipe.passes import PassSpec


@dataclass(frozen=True, slots=True)
class CheckResult:
    name: str
    held: bool
    value: float | None
    limit: float | None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "held": self.held, "value": self.value, "limit": self.limit, "detail": self.detail}


def run_checks(spec: PassSpec, before: Artifact, after: Artifact, options: Any, ctx: Context) -> list[CheckResult]:
    """Run the checks a pass declares; `PassError` naming the first that does not hold."""
    results = []
    for check in spec.checks:
        if check.name not in CHECKS:
            raise PassError(
                f'it asks for a check "{check.name}", which does not exist', where=f"pass {spec.name}", fix=nearest(check.name, CHECKS)
            )
        ctx.progress(f"checking {check.name}")
        value, held, detail = CHECKS[check.name](before, after, options, ctx, check.limit)
        results.append(CheckResult(check.name, held, value, check.limit, detail))
        if not held:
            shown = f" ({value:.3g}, limit {check.limit:.3g})" if value is not None and check.limit is not None else ""
            raise PassError(f"its check {check.name} failed{shown}: {detail}", where=f"pass {spec.name}", fix=FIXES.get(check.name))
    return results


Outcome = tuple[float | None, bool, str]
COARSE = 0.05  # limits from here on are those of quantized graphs
MOST_APART = 0.25  # of the outputs' length, between an optimised and a plain session: beyond, no rounding explains it
ROUNDING, MOST_ROUNDING = 2.0, 1e-2  # times a model's own rounding; over that it is no rounding any more


def equal_outputs(before: Artifact, after: Artifact, options: Any, ctx: Context, limit: float | None) -> Outcome:
    """Largest absolute difference of all outputs over the probe inputs."""
    weights = getattr(options, "weights", ())
    old, new = ctx.run(before, adapter_weights=weights), ctx.run(after)
    worst, where = largest_difference(old, new, ctx, before)
    return worst, limit is None or worst <= limit, where


def close_outputs(before: Artifact, after: Artifact, options: Any, ctx: Context, limit: float | None) -> Outcome:
    """As equal-outputs, relative to the outputs' size where that is over 1."""
    worst, where = largest_difference(ctx.run(before), ctx.run(after), ctx, before, relative=True)
    return _but_for_rounding(worst, where, limit, before, ctx)


def same_as_unoptimised(before: Artifact, after: Artifact, options: Any, ctx: Context, limit: float | None) -> Outcome:
    """The session as it will run against a plain one: the runtime's own rewrites have been wrong."""
    plain, optimised = ctx.run(after, optimise=False), ctx.run(after)
    worst, where = largest_difference(plain, optimised, ctx, after, relative=True)
    if limit is not None and COARSE <= limit < worst < float("inf"):
        # A quantized value that lies between two steps goes either way, and a score near a tie with it: what a wrong rewrite
        # does shows in all of the output.
        distance = relative_distance(plain, optimised, ctx, after)
        told = f"{where}; outputs are {distance:.2g} of their length apart"
        if distance <= limit / 2 or before.model.format != "onnx":
            return worst, distance <= limit / 2, told
        moved = relative_distance(ctx.run(before), ctx.run(after), ctx, after)
        # A recogniser whose scores are near a tie makes as much of a rounding as of the quantization itself.
        held = distance <= min(moved, MOST_APART)
        return worst, held, f"{told}, by the quantization {moved:.2g}"
    return _but_for_rounding(worst, where, limit, before, ctx)


def relative_distance(old: Runnable, new: Runnable, ctx: Context, artifact: Artifact) -> float:
    """|a − b| / |a| over all probes, of the output that is farthest apart."""
    import numpy as np

    apart: dict[str, float] = {}
    length: dict[str, float] = {}
    for feeds in ctx.probes(artifact):
        expected, got = old(feeds), new(feeds)
        for (name, a), b in zip(expected.items(), got.values(), strict=False):
            apart[name] = apart.get(name, 0.0) + float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum())
            length[name] = length.get(name, 0.0) + float((a.astype(np.float64) ** 2).sum())
    return float(max(np.sqrt(apart[name] / max(length[name], 1e-12)) for name in apart))


def _but_for_rounding(worst: float, where: str, limit: float | None, before: Artifact, ctx: Context) -> Outcome:
    """Over the limit is held where the model as it came in moves as much by itself: another order of the same sums, as the
    runtime's optimiser gives it, is rounding, and a model whose scores are near a tie makes much of it (3e-4 in the
    RapidOCR recogniser's probabilities, where most inputs show 1e-6)."""
    if limit is None or worst <= limit or before.model.format != "onnx":
        return worst, limit is None or worst <= limit, where
    own, _ = largest_difference(ctx.run(before, optimise=False), ctx.run(before), ctx, before, relative=True)
    held = worst <= ROUNDING * own and own <= MOST_ROUNDING
    return worst, held, f"{where}; the model as it came in moves by {own:.2g} itself when the runtime optimises it"


def largest_difference(old: Runnable, new: Runnable, ctx: Context, artifact: Artifact, *, relative: bool = False) -> tuple[float, str]:
    import numpy as np

    worst, where = 0.0, "no output differs"
    for feeds in ctx.probes(artifact):
        shape = " × ".join(str(n) for n in next(iter(feeds.values())).shape)
        expected, got = old(feeds), new(feeds)
        for (name, a), b in zip(expected.items(), got.values(), strict=False):
            if a.shape != b.shape:
                return float("inf"), f'output "{name}" has shape {b.shape}, not {a.shape}, for an input of {shape}'
            gap = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) if a.size else 0.0
            if relative and a.size:
                gap /= max(1.0, float(np.abs(a).max()))
            if not np.isfinite(gap):
                return float("inf"), f'output "{name}" is not finite for an input of {shape}'
            if gap > worst:
                worst, where = gap, f'output "{name}", input of {shape}'
    return worst, where


def smaller(before: Artifact, after: Artifact, options: Any, ctx: Context, limit: float | None) -> Outcome:
    """Weights were physically removed."""
    removed = before.model.parameters - after.model.parameters
    return float(removed), removed > 0, f"{removed:,} parameters removed"


def sparsity(before: Artifact, after: Artifact, options: Any, ctx: Context, limit: float | None) -> Outcome:
    """The share of weights that are zero; their files are as large as before, and smaller only when they are compressed."""
    from edgepipe.sparsity.compressed import compressed_bytes, zero_share

    share, packed, unpacked = zero_share(after.model), compressed_bytes(after.model), compressed_bytes(before.model)
    told = f"{share:.1%} of all weights are zero; {after.model.size_bytes / 1e6:.2f} MB, compressed by zlib {packed / 1e6:.2f} MB (was {unpacked / 1e6:.2f})"
    return share, packed < unpacked, told


def equal_on_kept_text(before: Artifact, after: Artifact, options: Any, ctx: Context, limit: float | None) -> Outcome:
    """Of a vocabulary that was cut: texts of kept tokens are split as before, and the model computes the same for them."""
    from edgepipe.vocabulary.comparison import READ, on_kept_tokens, split_otherwise

    split = next((split for split in READ if ctx.has(split)), None)
    kept, other = split_otherwise(before, after, ctx.data(split)) if split else (0, None)
    if other is not None:
        return None, False, f"all tokens of this {split} sample were kept, yet it is split otherwise: {str(other)[:80]}"
    worst, where = largest_difference(on_kept_tokens(before, after, ctx.run(before)), ctx.run(after), ctx, after)
    return worst, limit is None or worst <= limit, f"{where}; {kept} samples of kept tokens only are split as before"


def fallback_share(before: Artifact, after: Artifact, options: Any, ctx: Context, limit: float | None) -> Outcome:
    """The share of tokens for which others stand since the vocabulary was cut."""
    from edgepipe.vocabulary.comparison import fallback

    value, told = fallback(before, after, ctx.has, ctx.data)
    return value, limit is None or value is None or value <= limit, told


def same_signature(before: Artifact, after: Artifact, options: Any, ctx: Context, limit: float | None) -> Outcome:
    """Inputs keep their names, outputs their number."""

    def shape(artifact: Artifact) -> tuple[list[str], int]:
        signature = artifact.model.signature
        return sorted(i["name"] for i in signature["inputs"]), len(signature["outputs"])

    old, new = shape(before), shape(after)
    return None, old == new, "inputs and outputs are the same" if old == new else f"was {old}, is {new}"


def loads(before: Artifact, after: Artifact, options: Any, ctx: Context, limit: float | None) -> Outcome:
    """The model opens and gives finite numbers."""
    import numpy as np

    run = ctx.run(after)
    for feeds in ctx.probes(after)[:1]:
        for name, value in run(feeds).items():
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                return None, False, f'output "{name}" is not finite'
    return None, True, "opens and runs"


def batch_invariant(before: Artifact, after: Artifact, options: Any, ctx: Context, limit: float | None) -> Outcome:
    """How far a sample's outputs move when it is batched with others and padded. Dynamic activation scales move
    them; float32 does not."""
    worst = batch_difference(after, ctx)
    return worst, limit is None or worst <= limit, "largest difference between a sample alone and in a padded batch"


def batch_difference(artifact: Artifact, ctx: Context) -> float:
    import numpy as np

    run = ctx.run(artifact)
    probes = ctx.probes(artifact)
    singles = [feeds for feeds in probes if _rows(feeds) == 1]
    batches = [feeds for feeds in probes if _rows(feeds) > 1]
    if not batches or len(singles) < _rows(batches[0]):
        return 0.0
    together = run(batches[0])
    worst = 0.0
    for index in range(_rows(batches[0])):
        for name, value in run(singles[index]).items():
            row = together[name][index : index + 1]
            row = row[tuple(slice(0, n) for n in value.shape)]  # outputs per position: without the padding
            worst = max(worst, float(np.abs(row - value).max()))
    return worst


def _rows(feeds: Mapping[str, np.ndarray]) -> int:
    shape = next(iter(feeds.values())).shape
    return shape[0] if shape else 1


CHECKS: dict[str, Callable[..., Any]] = {
    "equal-outputs": equal_outputs,
    "close-outputs": close_outputs,
    "same-as-unoptimised": same_as_unoptimised,
    "smaller": smaller,
    "sparsity": sparsity,
    "same-signature": same_signature,
    "equal-on-kept-text": equal_on_kept_text,
    "fallback-share": fallback_share,
    "loads": loads,
    "batch-invariant": batch_invariant,
}
FIXES = {
    "equal-outputs": "the rewritten model does not compute the same; leave the pass out of the recipe and report it",
    "close-outputs": "the rewritten model does not compute the same; leave the pass out of the recipe and report it",
    "equal-on-kept-text": "the model does not compute the same; leave the pass out of the recipe and report it",
    "same-as-unoptimised": "the runtime's own optimiser changes the results; try other fusions, or leave the pass out",
    "smaller": "raise the ratio, or leave the pass out of the recipe",
    "sparsity": "raise the ratio, or leave the pass out of the recipe",
}
