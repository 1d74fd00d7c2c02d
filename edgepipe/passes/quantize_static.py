"""quantize-static: int8 weights and activations, with activation scales found on calibration data.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877. Products give float32 (so that what lies between needs no kernel of its own); convolutions and what lies
between them stay in 8 bits from one to the next. Scales are the same for every sample: outputs depend neither on
neighbours in a batch nor on padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context

OPERATORS = ("MatMul", "Gemm", "Attention", "Conv")


class QuantizeStatic(PassOptions):
    calibrator: Literal["auto", "min-max", "percentile", "entropy", "mse"] = Field(
        default="auto", description="how activation ranges are found; auto: min-max for what products read, percentile for the rest"
    )
    percentile: float = Field(default=99.99, gt=50, le=100, description="of activations inside the range, for `percentile`")
    samples: int = Field(default=200, ge=1, description="calibration samples that are run")
    selection: Literal["random", "stratified", "length", "importance"] = Field(
        default="random", description="which samples: random, stratified, by length, or by importance"
    )
    seed: int = Field(default=0, description="of the selection")
    per_channel: bool = Field(default=True, description="a scale per output channel instead of one per tensor")
    symmetric_activations: bool = Field(default=False, description="activation ranges around zero")
    reduce_range: bool | None = Field(
        default=None,
        description="7-bit weights, for CPUs whose u8 × s8 kernels sum in 16 bits: x86 without VNNI (default: for the nodes that saturate there on real inputs)",
    )
    method: Literal["nearest", "mse", "gptq", "adaround"] = Field(default="nearest", description="how weights are rounded")
    smooth: float | None = Field(default=None, ge=0, le=1, description="SmoothQuant's α: outlier channels of activations move into weights")
    equalize: bool = Field(default=False, description="cross-layer equalization: channels of neighbouring convolutions share their range")
    correct_bias: bool = Field(default=False, description="take the shift that rounding gives a layer's mean out of its bias")
    stored_bits: Literal[4, 8] = Field(
        default=8, description="bits a weight takes in the file; 4 are expanded to 8 when the model is loaded"
    )
    group_size: int = Field(default=32, ge=2, description="of weights stored in 4 bits: how many share a factor")
    operators: tuple[str, ...] = Field(default=OPERATORS, description="operator types whose weights become int8")
    include: tuple[str, ...] | None = Field(default=None, description="names of the only nodes to quantize")
    exclude: tuple[str, ...] = Field(default=(), description="names of nodes that stay as they are")


@register_pass(
    "quantize-static",
    takes={"model": "onnx"},
    gives={"model": "onnx"},
    options=QuantizeStatic,
    after=("export-onnx", "optimize-graph"),
    before=("quantize-dynamic", "quantize-weights"),
    facts=("cpu.arch", "cpu.isa"),
    data=("calibration",),
    checks=(Check("same-signature"), Check("loads"), Check("same-as-unoptimised", 0.1), Check("batch-invariant")),
)
def quantize_static(artifact: Artifact, options: QuantizeStatic, ctx: Context) -> Artifact:
    """Make weights and activations int8 with scales from calibration data: the same for every sample."""
    from edgepipe.quantization import dynamic, qdq, static
    from edgepipe.quantization.equalization import equalize
    from edgepipe.quantization.rounding import NEEDS_HESSIAN
    from edgepipe.quantization.session import Rewrite
    from edgepipe.quantization.smooth import smooth
    from edgepipe.quantization.statistics import activation_scales, corrected, moments_of, statistics
    from edgepipe.quantization.weights8 import Rounding

    rewrite = Rewrite(artifact, ctx, "quantize-static")
    sites = rewrite.chosen(options.include, options.exclude, options.operators)
    rewrite.graph.require("", qdq.OPSET)
    sites = rewrite.again(sites)
    if options.equalize:
        equalize(rewrite.graph)
    moments = options.method in NEEDS_HESSIAN
    found = statistics(rewrite, sites, options, moments=moments)
    if options.smooth is not None:
        peaks = {name: each.channel_max for name, each in found.items() if each.channel_max is not None}
        if smooth(rewrite.graph, peaks, alpha=options.smooth, nodes=sites.keys()):
            sites = rewrite.again(sites)
            found = statistics(rewrite, sites, options, moments=moments)
    scales, left = activation_scales(found, options)
    sites = rewrite.leave(sites, left)
    rounding = Rounding(
        options.method,
        options.per_channel,
        True,
        rewrite.reduced(options, sites, scales),
        options.stored_bits,
        options.group_size,
        moments_of(found, sites),
    )
    if options.correct_bias:
        sites = corrected(rewrite, sites, rounding, found)
    activations = static.StaticActivations(rewrite.graph, scales)
    numbers = {name: number for number, name in enumerate(sites)}

    def other(node: Any) -> None:
        site = sites.get(node.name)
        if site is None:
            return
        if site.kind in ("product", "attention") and static.takes(rewrite.graph, site, node):
            ctx.progress("quantizing", numbers[site.node], len(sites))
            static.to_static(rewrite.graph, node, site, rounding, activations)
        else:
            rewrite.left[site.node] = "what it gives was not seen in calibration" if site.kind == "convolution" else dynamic.NO_KERNEL

    qdq.to_qdq(rewrite.graph, sites, rounding, activations, other)
    return rewrite.finished()
