"""quantize-dynamic: int8 weights, activations quantized as they come.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877, section 2.1, with scales of activations taken at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context

OPERATORS = ("MatMul", "Gemm", "Attention", "Gather", "LSTM")


class QuantizeDynamic(PassOptions):
    per_channel: bool = Field(default=True, description="a scale per output channel instead of one per tensor")
    symmetric: bool = Field(default=True, description="weights around zero; else each channel has a zero point of its own")
    reduce_range: bool | None = Field(
        default=None,
        description="7-bit weights, for CPUs whose u8 × s8 kernels sum in 16 bits: x86 without VNNI (default: for the nodes that saturate there on real inputs)",
    )
    method: Literal["nearest", "mse", "gptq"] = Field(default="nearest", description="how weights are rounded; gptq uses calibration data")
    samples: int = Field(default=128, ge=1, description="calibration samples that are run, where they are used")
    selection: Literal["random", "stratified", "length", "importance"] = Field(
        default="random", description="which samples: random, stratified, by length, or by importance"
    )
    seed: int = Field(default=0, description="of the selection")
    stored_bits: Literal[4, 8] = Field(
        default=8, description="bits a weight takes in the file; 4 are expanded to 8 when the model is loaded"
    )
    group_size: int = Field(default=32, ge=2, description="of weights stored in 4 bits: how many share a factor")
    operators: tuple[str, ...] = Field(default=OPERATORS, description="operator types whose weights become int8")
    include: tuple[str, ...] | None = Field(default=None, description="names of the only nodes to quantize")
    exclude: tuple[str, ...] = Field(default=(), description="names of nodes that stay as they are")


@register_pass(
    "quantize-dynamic",
    takes={"model": "onnx"},
    gives={"model": "onnx"},
    options=QuantizeDynamic,
    after=("export-onnx", "optimize-graph"),
    facts=("cpu.arch", "cpu.isa"),
    optional_data=("calibration",),
    checks=(Check("same-signature"), Check("loads"), Check("same-as-unoptimised", 0.1), Check("batch-invariant")),
)
def quantize_dynamic(artifact: Artifact, options: QuantizeDynamic, ctx: Context) -> Artifact:
    """Make weights and embedding tables int8; activation scales are taken at run time."""
    from edgepipe.quantization import dynamic
    from edgepipe.quantization.session import Rewrite
    from edgepipe.quantization.statistics import hessians
    from edgepipe.quantization.tables import to_table8
    from edgepipe.quantization.weights8 import Rounding

    rewrite = Rewrite(artifact, ctx, "quantize-dynamic")
    sites = rewrite.chosen(options.include, options.exclude, options.operators)
    rewrite.graph.require("", max(dynamic.OPSET, 13 if any(site.kind == "table" for site in sites.values()) else 0))
    sites = rewrite.again(sites)
    moments = hessians(rewrite, sites, options)
    sites, graph = rewrite.again(sites), rewrite.graph
    activations = dynamic.DynamicActivations(graph)
    rounding = Rounding(
        options.method,
        options.per_channel,
        options.symmetric,
        rewrite.reduced(options, sites),
        options.stored_bits,
        options.group_size,
        moments,
    )
    for number, (node, site) in enumerate(rewrite.nodes(sites)):
        ctx.progress("quantizing", number, len(sites))
        if site.kind == "table":
            to_table8(graph, node, site)
        elif dynamic.takes(site, node):
            dynamic.to_dynamic(graph, node, site, rounding, activations)
        else:
            rewrite.left[site.node] = dynamic.NO_KERNEL
    return rewrite.finished()
