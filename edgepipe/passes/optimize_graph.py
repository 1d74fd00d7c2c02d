"""optimize-graph: fold constants and fuse transformer blocks, keeping only the fusions that pay.

Fusions are ONNX Runtime's own (`onnxruntime.transformers`), switched one by one: each stays only where its operator
was measured to be no slower than its parts. What the runtime would fuse again at load is switched off in the
session settings, which travel with the artifact.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context

# Operator → (switches of FusionOptions, optimizer that would fuse it again when the session loads)
SWITCHES: dict[str, tuple[tuple[str, ...], str]] = {
    "Attention": (("enable_attention",), "AttentionFusion"),
    "SkipLayerNormalization": (("enable_skip_layer_norm", "enable_bias_skip_layer_norm"), "SkipLayerNormFusion"),
    "BiasGelu": (("enable_bias_gelu",), "BiasGeluFusion"),
}
SLOWER = 1.25  # ties are left fused: a choice that noise could turn would give other bytes the next time
FAMILIES = {"vit": "vit", "gpt2": "gpt2"}  # others fuse as BERT does


class OptimizeGraph(PassOptions):
    fusions: dict[str, bool] = Field(default_factory=dict, description="force a fusion on or off: { SkipLayerNormalization = false }")


@register_pass(
    "optimize-graph",
    takes={"model": "onnx"},
    gives={"model": "onnx"},
    options=OptimizeGraph,
    after=("export-onnx",),
    before=("quantize-dynamic",),
    costs=tuple(SWITCHES),
    checks=(Check("close-outputs", 1e-4), Check("same-as-unoptimised", 1e-4), Check("same-signature")),
)
def optimize_graph(artifact: Artifact, options: OptimizeGraph, ctx: Context) -> Artifact:
    """Fold constants and fuse transformer blocks; each fusion stays only where it is faster than its parts."""
    from edgepipe.errors import UsageError, nearest
    from edgepipe.weights import onnx_component

    for name in options.fusions:
        if name not in SWITCHES:
            raise UsageError(f'unknown fusion "{name}"', where="optimize-graph.fusions", fix=nearest(name, SWITCHES))
    kept = {name: options.fusions.get(name, pays(ctx.cost(name))) for name in SWITCHES}
    ctx.decide("fusions", kept)
    folder = ctx.workdir / "model"
    folder.mkdir()
    target = folder / "model.onnx"
    ctx.progress("folding constants")
    if is_transformer(artifact.model.main_file):
        ctx.progress("fusing")
        fuse(artifact.model.main_file, target, FAMILIES.get(artifact.program.get("family", ""), "bert"), kept)
    else:
        fold(artifact.model.main_file, target)
    ctx.progress("folding what lies around convolutions and behind the last rows read")
    folder = rewritten(folder, ctx.workdir)
    disabled = sorted(SWITCHES[name][1] for name, keep in kept.items() if not keep)
    session = {**artifact.program.get("session", {}), "disabled_optimizers": disabled}
    return artifact.with_component("model", onnx_component(folder)).with_program(session=session)


def rewritten(folder: Path, workdir: Path) -> Path:
    """The folder of the model with the rewrites of `edgepipe.rewrites`; the same one where none of them applies."""
    from edgepipe.quantization.graph import Graph
    from edgepipe.rewrites.affine import fold_affine
    from edgepipe.rewrites.hard_swish import fuse_hard_swish
    from edgepipe.rewrites.row_selection import pick_rows_early

    graph = Graph(folder / "model.onnx", workdir)
    if not sum([fuse_hard_swish(graph), fold_affine(graph), pick_rows_early(graph)]):
        return folder
    target = workdir / "rewritten"
    target.mkdir()
    graph.write(target)
    return target


def pays(cost: float | None) -> bool:
    return cost is None or cost <= SLOWER


def is_transformer(path: Path) -> bool:
    """Whether the graph holds attention as exporters write it: soft-maxed scores, layer normalisation, and at most the
    one convolution that cuts an image into patches."""
    from edgepipe.weights import all_nodes, load_onnx

    kinds = Counter(node.op_type for node in all_nodes(load_onnx(path).graph))
    return kinds["Softmax"] > 0 and kinds["MatMul"] > 0 and kinds["LayerNormalization"] + kinds["ReduceMean"] > 0 and kinds["Conv"] <= 1


def fuse(source: Path, target: Path, family: str, kept: Mapping[str, bool]) -> None:
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    from edgepipe.weights import ONE_FILE_LIMIT_BYTES

    switches: Any = FusionOptions(family)
    switches.enable_embed_layer_norm = False  # it hides the embedding table from quantize-dynamic
    for name, keep in kept.items():
        for switch in SWITCHES[name][0]:
            setattr(switches, switch, keep)
    # Heads and width are read off the graph (0), layer by layer, since pruning makes them differ.
    model = optimize_model(
        str(source), model_type=family, num_heads=0, hidden_size=0, opt_level=0, optimization_options=switches, use_gpu=False
    )
    large = sum(len(t.raw_data) for t in model.model.graph.initializer) > ONE_FILE_LIMIT_BYTES
    model.save_model_to_file(str(target), use_external_data_format=large)


def fold(source: Path, target: Path) -> None:
    """The runtime's basic level: constants folded, dead nodes gone, batch normalisation in the convolutions.

    Where folding makes the file larger (a weight that several branches reshape is written once for each) it is left out.
    """
    _basic_level(source, target, ())
    if _bytes(target) > _bytes(source) * 1.01:
        _basic_level(source, target, ("ConstantFolding",))


def _bytes(model: Path) -> int:
    """Of the graph and the external data beside it."""
    from edgepipe.weights import external_files, load_onnx

    return sum((model.parent / name).stat().st_size for name in (model.name, *external_files(load_onnx(model))))


def _basic_level(source: Path, target: Path, disabled: tuple[str, ...]) -> None:
    import onnxruntime

    from edgepipe.weights import external_files, load_onnx

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    if external_files(load_onnx(source)):  # the runtime would refer to them where they lie now
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.onnx.data")
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled))
