"""fix-inputs: inputs that a program always gives the same value become constants, and shapes that never change are fixed.

What depends on them alone is decided then, once: the branches of an If that are never taken leave the file (the runtime's
constant folding does that).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgepipe.errors import PassError, nearest
from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


class FixInputs(PassOptions):
    values: dict[str, int | float | bool] = Field(default_factory=dict, description="input → its value, the same for every element")
    shapes: dict[str, tuple[int, ...]] = Field(default_factory=dict, description="input → the one shape it has: { input = [1, 576] }")


@register_pass(
    "fix-inputs",
    takes={"model": "onnx"},
    gives={"model": "onnx"},
    options=FixInputs,
    before=("optimize-graph",),
    checks=(Check("equal-outputs", 1e-6),),
)
def fix_inputs(artifact: Artifact, options: FixInputs, ctx: Context) -> Artifact:
    """Put values in the place of inputs, fix the shapes of others, and fold what that decides."""
    from edgepipe.weights import onnx_component

    if not options.values and not options.shapes:
        raise PassError("nothing is named that never changes", where="pass fix-inputs", fix="give it values or shapes of inputs")
    folder = ctx.workdir / "model"
    folder.mkdir()
    source = artifact.model.main_file
    # One after the other: folding an If inside an If that a value and a shape decide at once fails in the runtime (1.32).
    for number, change in enumerate(change for change in (options.values and _with_values, options.shapes and _with_shapes) if change):
        ctx.progress("fixing inputs", number, 2)
        source = _folded(change, source, options, ctx.workdir / f"{number}")
    for path in source.parent.iterdir():
        path.rename(folder / path.name)
    return artifact.with_component("model", onnx_component(folder))


def _folded(change: Callable[[Any, FixInputs], None], source: Path, options: FixInputs, folder: Path) -> Path:
    """The changed model after the runtime's constant folding."""
    import onnx
    import onnxruntime

    from edgepipe.weights import ONE_FILE_LIMIT_BYTES, load_onnx

    model = load_onnx(source, data=True)
    change(model, options)
    given, target = folder / "given", folder / "folded" / "model.onnx"
    given.mkdir(parents=True)
    target.parent.mkdir()
    large = model.ByteSize() > ONE_FILE_LIMIT_BYTES
    onnx.save_model(model, given / "model.onnx", save_as_external_data=large, location="weights.bin")
    session = onnxruntime.SessionOptions()
    session.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session.optimized_model_filepath = str(target)
    session.log_severity_level = 3
    if large:
        session.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.onnx.data")
    onnxruntime.InferenceSession(str(given / "model.onnx"), session, providers=["CPUExecutionProvider"])
    return target


def _inputs(model: Any, names: Iterable[str]) -> dict[str, Any]:
    inputs = {value.name: value for value in model.graph.input}
    for name in names:
        if name not in inputs:
            raise PassError(f'the model has no input "{name}"', where="pass fix-inputs", fix=nearest(name, inputs))
    return inputs


def _with_values(model: Any, options: FixInputs) -> None:
    inputs = _inputs(model, options.values)
    for name, value in options.values.items():
        model.graph.initializer.append(_tensor(inputs[name], value))
        model.graph.input.remove(inputs[name])


def _with_shapes(model: Any, options: FixInputs) -> None:
    inputs = _inputs(model, options.shapes)
    for name, shape in options.shapes.items():
        dims = inputs[name].type.tensor_type.shape.dim
        if len(dims) != len(shape) or any(have.dim_value not in (0, want) for have, want in zip(dims, shape, strict=True)):
            raise PassError(f'"{name}" cannot have the shape {list(shape)}', where="pass fix-inputs", fix="as many sizes as the input has")
        for dim, size in zip(dims, shape, strict=True):
            dim.dim_value = size


def _tensor(declared: Any, value: float) -> Any:
    import numpy as np
    import onnx

    kind = declared.type.tensor_type
    dims = [dim.dim_value if dim.dim_value > 0 else 1 for dim in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return onnx.numpy_helper.from_array(np.full(dims, value, dtype), declared.name)
