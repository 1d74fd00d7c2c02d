"""export-onnx: write the torch model as an ONNX graph with dynamic batch and sequence.

First route: optimum's exporter, which knows the inputs of each architecture. Second: `torch.onnx.export` for what
it cannot take (sentence encoders with their pooling, a user's own architecture, an environment without optimum).
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgepipe.errors import PassError
from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


class ExportOnnx(PassOptions):
    opset: int = Field(default=17, ge=14, le=23, description="17 is the first with LayerNormalization as one operator")
    route: Literal["auto", "optimum", "torch"] = Field(default="auto", description="which exporter; auto tries optimum first")


@register_pass(
    "export-onnx",
    takes={"model": "torch"},
    gives={"model": "onnx"},
    options=ExportOnnx,
    after=("merge-lora", "prune-heads", "prune-ffn"),
    before=("optimize-graph", "quantize-dynamic"),
    checks=(Check("close-outputs", 1e-4),),
    libraries=("torch", "transformers", "optimum", "optimum-onnx", "onnx"),
    baseline=True,
)
def export_onnx(artifact: Artifact, options: ExportOnnx, ctx: Context) -> Artifact:
    """Export to ONNX with dynamic batch and sequence; outputs must equal PyTorch's at several shapes."""
    from edgepipe.loader import load_torch
    from edgepipe.weights import onnx_component

    module = load_torch(artifact)
    folder = ctx.workdir / "model"
    folder.mkdir()
    target = folder / "model.onnx"
    config = _optimum_config(module, artifact) if options.route != "torch" else None
    if config is None and options.route == "optimum":
        raise PassError("optimum's exporter cannot take this model", where="export-onnx.route", fix='use route = "torch"')
    logging.getLogger("optimum").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every Python value it turns into a constant
        if config is not None:
            ctx.progress("exporting through optimum")
            from optimum.exporters.onnx import export

            export(module, config, target, opset=options.opset)
        else:
            ctx.progress("exporting through torch")
            _torch_export(module, artifact, ctx, target, options.opset)
    ctx.progress("tidying")
    _consolidate(target)
    program = {key: value for key, value in artifact.program.items() if key != "factory"}
    return replace(artifact, components={**artifact.components, "model": onnx_component(folder)}, program=program)


def _optimum_config(module: Any, artifact: Artifact) -> Any:
    """Optimum's export configuration for the model, or None where it has none."""
    task = {"sentence-similarity": None, "fidelity": _head(module)}.get(artifact.program["task"], artifact.program["task"])
    if task is None or not hasattr(module, "config") or type(module).__name__ == "SentenceEncoder":
        return None
    try:
        import optimum.exporters.onnx.model_configs  # noqa: F401  it registers what TasksManager finds
        from optimum.exporters.tasks import TasksManager

        constructor = TasksManager.get_exporter_config_constructor("onnx", model=module, task=task, library_name="transformers")
    except (ImportError, KeyError, ValueError):
        return None
    config = constructor(module.config)
    # It would leave out an input the artifact has: the token types of a RoBERTa that knows two of them.
    return config if set(config.inputs) == {entry["name"] for entry in artifact.model.signature["inputs"]} else None


def _head(module: Any) -> str | None:
    """The task of a transformers class by its name, for models judged by fidelity."""
    if getattr(module, "base_model", None) is module:
        return "feature-extraction"
    heads = {
        "ForSequenceClassification": "text-classification",
        "ForTokenClassification": "token-classification",
        "ForImageClassification": "image-classification",
    }
    return next((task for suffix, task in heads.items() if type(module).__name__.endswith(suffix)), None)


def _torch_export(module: Any, artifact: Artifact, ctx: Context, target: Path, opset: int) -> None:
    import torch

    feeds = ctx.probes(artifact)[-1]
    names = list(feeds)
    by_name = hasattr(module, "config")  # a user's own module may call its inputs what it likes

    class Positional(torch.nn.Module):  # type: ignore[misc]  # as in sentence_encoder.py
        """Tensors in and out, in the signature's order, as the tracer wants them."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *inputs: Any) -> Any:
            output = self.inner(**dict(zip(names, inputs, strict=True))) if by_name else self.inner(*inputs)
            values = list(output.values()) if isinstance(output, dict) else list(output) if isinstance(output, tuple) else [output]
            return tuple(v for v in values if isinstance(v, torch.Tensor))

    args = tuple(torch.from_numpy(value) for value in feeds.values())
    with torch.no_grad():
        outputs = Positional()(*args)
    known = [entry["name"] for entry in artifact.model.signature["outputs"]]
    output_names = [known[i] if i < len(known) else f"output_{i}" for i in range(len(outputs))]
    axes: dict[str, dict[int, str]] = {}
    for name, value in feeds.items():
        axes[name] = {0: "batch", **({1: "sequence"} if value.ndim == 2 and value.dtype.kind == "i" else {})}
    for name, value in zip(output_names, outputs, strict=True):
        sequence = value.ndim == 3 and any(1 in dims for dims in axes.values())
        axes[name] = {0: "batch", **({1: "sequence"} if sequence else {})}
    try:
        torch.onnx.export(
            Positional(),
            args,
            str(target),
            input_names=names,
            output_names=output_names,
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    except Exception as error:  # the tracer raises whatever the model's own code does
        raise PassError(
            f"PyTorch cannot export the model: {str(error).splitlines()[0]}",
            where="pass export-onnx",
            fix="the model's forward must be traceable: tensors in, tensors out, no data-dependent Python branches",
        ) from error
    _state_shapes(target, {name: (value.shape, axes[name]) for name, value in zip(output_names, outputs, strict=True)})


def _state_shapes(target: Path, shapes: Mapping[str, tuple[Sequence[int], Mapping[int, str]]]) -> None:
    """Write every output's shape: the tracer makes up names for widths it cannot infer."""
    import onnx

    model = onnx.load(str(target), load_external_data=False)
    for value in model.graph.output:
        sizes, free = shapes[value.name]
        dims = [free.get(axis, size) for axis, size in enumerate(sizes)]
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, dims))
    onnx.save_model(model, str(target))


def _consolidate(target: Path) -> None:
    """One file; over 2 GB, one file and one external data file beside it."""
    import onnx

    from edgepipe.weights import ONE_FILE_LIMIT_BYTES, external_files

    model = onnx.load(str(target), load_external_data=False)
    external = external_files(model)
    if not external and target.stat().st_size < ONE_FILE_LIMIT_BYTES:
        return
    onnx.load_external_data_for_model(model, str(target.parent))
    for name in external:
        (target.parent / name).unlink()
    onnx.save_model(
        model, str(target), save_as_external_data=True, all_tensors_to_one_file=True, location="model.onnx.data", size_threshold=1024
    )
