"""prune-channels: cut the channels of a convolutional network that matter least, with all that belongs to them.

Fang et al., "DepGraph: Towards Any Structural Pruning", arXiv 2301.12088; Molchanov et al., "Importance Estimation for Neural
Network Pruning", arXiv 1906.10771.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from edgepipe.errors import ModelError, UsageError, nearest
from edgepipe.passes import Check, register_pass
from edgepipe.passes.ranked_units import Importance, RankedUnits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.channels import Channels, Traced
    from edgepipe.context import Context


class PruneChannels(RankedUnits):
    ratio: float | None = Field(default=None, gt=0, lt=1, description="share of all channels to cut (default: 0.5)")
    keep: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="how many channels stay, by the name of the first layer that writes them, instead of a ratio; other layers stay whole",
    )
    importance: Importance = Field(default="magnitude", description=RankedUnits.model_fields["importance"].description)
    multiple_of: int = Field(default=8, gt=0, description="widths that a ratio gives land on multiples of this, which kernels like")
    exclude: tuple[str, ...] = Field(
        default=(), description="names of layers whose outputs stay as they are, as patterns: encoder.stages.0.*"
    )


@register_pass(
    "prune-channels",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=PruneChannels,
    after=("merge-lora",),
    before=("export-onnx",),
    optional_data=("calibration",),
    checks=(Check("smaller"), Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers", "torch_pruning"),
)
def prune_channels(artifact: Artifact, options: PruneChannels, ctx: Context) -> Artifact:
    """Cut the channels of a convolutional network that matter least; the weights are physically removed."""
    import torch

    from edgepipe.channels import Traced, cut_channels
    from edgepipe.importance.channel_widths import kept_units
    from edgepipe.importance.channels import channel_importance, kept_channels
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.training.outputs import called

    module = load_torch(artifact)
    probe = {name: torch.from_numpy(value) for name, value in ctx.probes(artifact)[0].items()}

    def outputs(model: Any) -> list[Any]:
        return list(called(model, probe).values())

    ctx.progress("tracing channels")
    traced = Traced(module, outputs, options.exclude)
    _check_found(traced, options)
    scores = channel_importance(options.importance, traced, artifact, ctx)
    if options.keep:
        units = _asked(traced.channels, options.keep)
    else:
        ratio = 0.5 if options.ratio is None else options.ratio
        units = kept_units(traced.channels, scores, ratio, per_layer=options.scope == "layer", multiple_of=options.multiple_of)
    kept = {
        each.name: kept_channels(each, own, count)
        for each, own, count in zip(traced.channels, scores, units, strict=True)
        if count < each.units
    }
    ctx.progress("cutting channels")
    cut_channels(module, outputs, kept, options.exclude)
    ctx.record("channels kept", {each.name: [len(kept.get(each.name, range(each.width))), each.width] for each in traced.channels})
    return artifact.with_component("model", save_torch(module, artifact, ctx.workdir))


def _check_found(traced: Traced, options: PruneChannels) -> None:
    names = [each.name for each in traced.channels]
    if not names:
        raise ModelError(
            "no channels can go: all of them are outputs of the model, or excluded", where="pass prune-channels", fix="exclude fewer layers"
        )
    for name in options.keep:
        if name not in names:
            raise UsageError(f'no set of channels is named "{name}"', where="prune-channels.keep", fix=nearest(name, names)[:300])


def _asked(channels: Sequence[Channels], keep: dict[str, int]) -> list[int]:
    """Units by the number of channels that is to stay."""
    for each in channels:
        count = keep.get(each.name, each.width)
        if count > each.width or count % each.rows:
            groups = f", in {each.rows} groups" if each.rows > 1 else ""
            raise UsageError(
                f"{each.name} cannot keep {count} of its {each.width} channels{groups}",
                where="prune-channels.keep",
                fix=f"give a multiple of {each.rows}, up to {each.width}" if each.rows > 1 else f"give 1 to {each.width}",
            )
    if all(keep.get(each.name, each.width) == each.width for each in channels):
        raise UsageError(
            "every layer keeps all of its channels", where="prune-channels.keep", fix="give smaller numbers, or leave the pass out"
        )
    return [keep.get(each.name, each.width) // each.rows for each in channels]
