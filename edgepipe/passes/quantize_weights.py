"""quantize-weights: weights and lookup tables in few bits, activations as they are.

Frantar et al., "GPTQ", arXiv 2210.17323, and the other methods of `edgepipe.quantization.rounding` choose the values. What
is stored small runs by one of two ways: kernels that compute on few bits (ONNX Runtime's MatMulNBits and
GatherBlockQuantized), or float32 kernels on weights that are expanded once, when the model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from typing import Self

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context

OPERATORS = ("MatMul", "Gemm", "Attention", "Conv", "ConvTranspose", "Gather")


class QuantizeWeights(PassOptions):
    bits: Literal[2, 4, 8] = Field(default=4, description="of a weight")
    group_size: int = Field(default=32, ge=0, description="weights along the input that share a scale; 0: a whole channel")
    symmetric: bool = Field(default=True, description="zero in the middle, or a zero point for each group")
    method: Literal["nearest", "mse", "hqq", "k-quant", "gptq", "adaround"] = Field(
        default="mse", description="how weights are rounded; the last two use calibration data"
    )
    kernel: Literal["few-bits", "float32"] = Field(
        default="few-bits", description="few-bits: computed as stored; float32: expanded once, when the model is loaded"
    )
    accuracy_level: Literal[0, 1, 4] = Field(default=4, description="few-bits products: 4 computes in int8, 0 and 1 in float32")
    scale_activations: bool = Field(
        default=False, description="AWQ: factors that spare the channels with large activations; uses calibration data"
    )
    samples: int = Field(default=128, ge=1, description="calibration samples that are run, where they are used")
    selection: Literal["random", "stratified", "length", "importance"] = Field(
        default="random", description="which samples: random, stratified, by length, or by importance"
    )
    seed: int = Field(default=0, description="of the selection")
    operators: tuple[str, ...] = Field(default=OPERATORS, description="operator types whose weights are quantized")
    include: tuple[str, ...] | None = Field(default=None, description="names of the only nodes to quantize")
    exclude: tuple[str, ...] = Field(default=(), description="names of nodes that stay as they are")

    @property
    def uses_data(self) -> bool:
        from edgepipe.quantization.rounding import NEEDS_HESSIAN

        return self.scale_activations or self.method in NEEDS_HESSIAN

    @model_validator(mode="after")
    def _blocks(self) -> Self:
        from edgepipe.quantization.weight_only import takes_block

        if self.kernel == "few-bits" and not takes_block(self.group_size):
            raise ValueError(f"the runtime has kernels for groups of a power of two from 16, not of {self.group_size}")
        return self


@register_pass(
    "quantize-weights",
    takes={"model": "onnx"},
    gives={"model": "onnx"},
    options=QuantizeWeights,
    after=("export-onnx", "optimize-graph"),
    optional_data=("calibration",),
    checks=(Check("same-signature"), Check("loads"), Check("same-as-unoptimised", 0.1), Check("batch-invariant")),
)
def quantize_weights(artifact: Artifact, options: QuantizeWeights, ctx: Context) -> Artifact:
    """Store weights and tables in 8, 4 or 2 bits; activations stay float32."""
    from edgepipe.errors import DataError
    from edgepipe.quantization.awq import scale_by_activations
    from edgepipe.quantization.rounding import Grid
    from edgepipe.quantization.session import Rewrite
    from edgepipe.quantization.statistics import moments_of, statistics
    from edgepipe.quantization.weight_only import SMALLEST_BLOCK

    rewrite = Rewrite(artifact, ctx, "quantize-weights")
    sites = rewrite.chosen(options.include, options.exclude, options.operators)
    grid = Grid(options.bits, options.symmetric, options.group_size)
    found: dict[str, Any] = {}
    if options.uses_data:
        if not ctx.has("calibration"):
            raise DataError("this way of rounding needs calibration data", where="pass quantize-weights", fix="give --calibration FILE")
        found = statistics(rewrite, sites, options, moments=True, ranges=False)
    if options.scale_activations:
        magnitudes = {name: mean for name, each in found.items() if (mean := each.channel_mean_magnitude) is not None}
        hessians = {name: each.hessian for name, each in found.items() if each.hessian is not None}
        scale_by_activations(rewrite.graph, magnitudes, grid, hessians, nodes=sites.keys())
        found = statistics(rewrite, rewrite.again(sites), options, moments=True, ranges=False)
    if options.kernel == "float32" or any(site.kind == "table" for site in sites.values()):
        rewrite.graph.require("", 11)
    sites = rewrite.again(sites)
    moments = moments_of(found, sites)
    for number, (node, site) in enumerate(rewrite.nodes(sites)):
        ctx.progress("quantizing", number, len(sites))
        if site.kind == "table" and site.shape[1] < SMALLEST_BLOCK:
            rewrite.left[site.node] = f"rows of fewer than {SMALLEST_BLOCK} values have no kernel"
            continue
        _quantize(rewrite.graph, node, site, grid, options, moments(site))
    return rewrite.finished()


def _quantize(graph: Any, node: Any, site: Any, grid: Any, options: QuantizeWeights, hessian: Any) -> None:
    from edgepipe.quantization.rounding import NEEDS_HESSIAN, quantize
    from edgepipe.quantization.sites import is_transposed, matrix_of
    from edgepipe.quantization.stored import expanded
    from edgepipe.quantization.weight_only import decomposes, grid_of_rows, to_block_table, to_nbits

    method = "mse" if options.method in NEEDS_HESSIAN and hessian is None else options.method
    if site.kind == "table":
        method = "mse" if method in NEEDS_HESSIAN else method
        rows = quantize(method, graph.array(site.weight).T, grid_of_rows(grid, site.shape[1]), name=site.weight)
        to_block_table(graph, node, site, rows, options.bits)
        return
    weight = matrix_of(graph, node, site)
    if options.kernel == "few-bits" and site.kind in ("product", "attention") and decomposes(site, node):
        to_nbits(graph, node, site, quantize(method, weight, grid, hessian, name=site.weight), options.bits, options.accuracy_level)
        return
    found = quantize(method, weight, grid, hessian, name=site.weight)
    name, nodes = expanded(graph, site.weight, found, options.bits, transposed=is_transposed(node), shape=site.shape)
    new = type(node).FromString(node.SerializeToString())
    new.input[1] = name
    graph.replace(node, *nodes, new)
