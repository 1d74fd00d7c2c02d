"""convert-float16: weights as 16-bit floats, half the size; computed in float32 unless the target has kernels for them.

Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, on what 16 bits hold. Stored small, weights are widened
once when the model is loaded; with `compute`, ONNX Runtime's own converter makes the whole graph float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context

SMALLEST = 64  # values: below that a constant is no weight


class ConvertFloat16(PassOptions):
    compute: bool = Field(
        default=False, description="compute in float16 too, for targets with kernels for it; else weights are widened at load"
    )
    exclude: tuple[str, ...] = Field(default=(), description="names of nodes that stay float32, with `compute`")


@register_pass(
    "convert-float16",
    takes={"model": "onnx"},
    gives={"model": "onnx"},
    options=ConvertFloat16,
    after=("export-onnx", "optimize-graph", "quantize-static", "quantize-dynamic", "quantize-weights"),
    checks=(Check("same-signature"), Check("loads"), Check("close-outputs", 0.1), Check("same-as-unoptimised", 0.1)),
)
def convert_float16(artifact: Artifact, options: ConvertFloat16, ctx: Context) -> Artifact:
    """Store float32 weights as float16; half the size."""
    from edgepipe.errors import PassError
    from edgepipe.quantization.session import Rewrite

    rewrite = Rewrite(artifact, ctx, "convert-float16")
    if options.compute:
        return _computed(artifact, options, ctx)
    if not _stored(rewrite):
        raise PassError("the model has no float32 weights that float16 can hold", where="pass convert-float16", fix="leave the pass out")
    return rewrite.finished()


def _stored(rewrite: object) -> int:
    """Constants as float16 with a Cast in front of the first that reads each. Gives how many."""
    import numpy as np
    from onnx.helper import make_node

    graph = rewrite.graph  # type: ignore[attr-defined]
    largest = float(np.finfo(np.float16).max)
    count, ready = 0, {}
    for node in list(graph.nodes):
        for index, name in enumerate(node.input):
            if name not in graph.constants or not graph.is_float(name) or node.op_type == "Constant":
                continue
            if name not in ready:
                values = graph.array(name)
                if values.size < SMALLEST or not np.isfinite(values).all() or np.abs(values).max() > largest:
                    continue
                ready[name] = graph.fresh(f"{name}_float32")
                half = graph.constant(f"{name}_float16", values.astype(np.float16))
                graph.before(graph.first(node), make_node("Cast", [half], [ready[name]], name=f"{ready[name]}_Cast", to=1))
                count += 1
            node.input[index] = ready[name]
    return count


def _computed(artifact: Artifact, options: ConvertFloat16, ctx: Context) -> Artifact:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    from edgepipe.weights import ONE_FILE_LIMIT_BYTES, load_onnx, onnx_component

    model = convert_float_to_float16(
        load_onnx(artifact.model.main_file, data=True), keep_io_types=True, disable_shape_infer=False, node_block_list=list(options.exclude)
    )
    folder = ctx.workdir / "model"
    folder.mkdir()
    large = artifact.model.size_bytes > ONE_FILE_LIMIT_BYTES
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=large, location="model.onnx.data" if large else None)
    return artifact.with_component("model", onnx_component(folder))
