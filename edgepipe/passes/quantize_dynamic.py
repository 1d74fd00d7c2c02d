"""quantize-dynamic: int8 weights, activations quantized as they come.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877, section 2.1, with scales of activations taken at run time; ONNX Runtime's quantizer does the work.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgepipe.errors import PassError
from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context

OPERATORS = ("MatMul", "Gemm", "Attention", "Gather", "LSTM")
QUANTIZED = (
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QAttention",
    "DynamicQuantizeLSTM",
    "ConvInteger",
    "DynamicQuantizeLinear",
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearMatMul",
    "QLinearConv",
    "QGemm",
    "MatMulNBits",
    "GatherBlockQuantized",
)


class QuantizeDynamic(PassOptions):
    per_channel: bool = Field(default=True, description="a scale per output channel instead of one per tensor")
    reduce_range: bool | None = Field(
        default=None,
        description="7-bit weights, for CPUs whose u8 × s8 kernels sum in 16 bits: x86 without VNNI (default: as the profile's cpu.isa says)",
    )
    operators: tuple[str, ...] = Field(default=OPERATORS, description="operator types whose weights become int8")
    exclude: tuple[str, ...] = Field(default=(), description="names of nodes that stay as they are")


@register_pass(
    "quantize-dynamic",
    takes={"model": "onnx"},
    gives={"model": "onnx"},
    options=QuantizeDynamic,
    after=("export-onnx", "optimize-graph"),
    facts=("cpu.arch", "cpu.isa"),
    checks=(Check("same-signature"), Check("loads"), Check("same-as-unoptimised", 0.1), Check("batch-invariant")),
)
def quantize_dynamic(artifact: Artifact, options: QuantizeDynamic, ctx: Context) -> Artifact:
    """Make weights and embedding tables int8; activation scales are taken at run time."""
    import logging

    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as runtime_quantizer

    from edgepipe.profile import int8_saturates
    from edgepipe.weights import ONE_FILE_LIMIT_BYTES, all_nodes, load_onnx, onnx_component

    source = artifact.model.main_file
    model = load_onnx(source)
    nodes = list(all_nodes(model.graph))
    if any(node.op_type in QUANTIZED for node in nodes):
        raise PassError("the model is already quantized", where="pass quantize-dynamic", fix="start from the float32 model")
    _check_names(options.exclude, {node.name for node in nodes})
    folder = ctx.workdir / "model"
    folder.mkdir()
    ctx.progress("quantizing")
    logging.getLogger().setLevel(logging.ERROR)  # it advises to run its own pre-processing, which optimize-graph has done
    saturates = int8_saturates(ctx.facts["cpu.arch"], ctx.facts["cpu.isa"])
    # The quantizer writes what it infers beside its source, and the store is not its to write to.
    beside = ctx.workdir / "source"
    for ref in artifact.model.files:
        (beside / ref.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ref.location, beside / ref.path)
    runtime_quantizer(
        str(beside / artifact.model.files[0].path),
        str(folder / "model.onnx"),
        op_types_to_quantize=list(options.operators),
        nodes_to_exclude=list(options.exclude),
        per_channel=options.per_channel,
        reduce_range=saturates if options.reduce_range is None else options.reduce_range,
        weight_type=QuantType.QInt8,
        use_external_data_format=artifact.model.size_bytes > ONE_FILE_LIMIT_BYTES,
        # Shape inference knows no fused operator, so the quantizer would not find the type of what they give.
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT, "EnableSubgraph": False},
    )
    if not _eight_bit(load_onnx(folder / "model.onnx")):
        raise PassError(
            f"the model has no {', '.join(options.operators)} whose weights could become int8",
            where="pass quantize-dynamic",
            fix="leave the pass out of the recipe",
        )
    return artifact.with_component("model", onnx_component(folder))


def _eight_bit(model: Any) -> bool:
    """Whether any weight is int8, or an embedding table uint8; zero points have one dimension at most."""
    import onnx

    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return any(tensor.data_type in kinds and len(tensor.dims) > 1 for tensor in model.graph.initializer)


def _check_names(names: tuple[str, ...], known: set[str]) -> None:
    from edgepipe.errors import UsageError, nearest

    for name in names:
        if name not in known:
            raise UsageError(f'the model has no node "{name}"', where="quantize-dynamic.exclude", fix=nearest(name, known)[:300])
