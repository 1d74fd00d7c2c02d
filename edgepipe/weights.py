"""Reads weight files without executing anything they contain: safetensors headers and ONNX initializers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import safe_relative
from edgepipe.errors import ModelError
from edgepipe.onnx_file import load_structure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
ONE_FILE_LIMIT_BYTES = 2_000_000_000  # protobuf's limit is 2 GiB; the graph itself needs room
_MEND = "copy or download the file again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def safetensors_header(path: Path) -> list[TensorInfo]:
    """What tensors a safetensors file holds; `ModelError` when it is empty, truncated or corrupt."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            what = "the weights file is empty" if size == 0 else "the weights file is truncated or no safetensors file"
            raise ModelError(what, where=str(path), fix=_MEND)
        try:
            header = json.loads(handle.read(length))
            infos = [_tensor_info(name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ModelError("the weights file's header is corrupt", where=str(path), fix=_MEND) from None
    for info in infos:
        width = _WIDTHS.get(info.dtype)
        if not info.start <= info.end <= size or (width and info.end - info.start != width * info.parameters):
            raise ModelError(
                f'the weights file is truncated or corrupt: tensor "{info.name}" does not fit in it', where=str(path), fix=_MEND
            )
    return infos


def _tensor_info(name: str, entry: Any, data_start: int) -> TensorInfo:
    """One entry of the header; raises one of several errors for what is none."""
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not isinstance(dtype, str) or not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(name)
    return TensorInfo(name, dtype, shape, data_start + start, data_start + end)


def check_finite(path: Path, infos: list[TensorInfo]) -> None:
    """`ModelError` naming the first tensor that holds NaN or infinite values. One tensor is mapped at a time."""
    import numpy as np

    for info in infos:
        if info.dtype not in _FLOATS or info.parameters == 0:
            continue
        values = np.memmap(path, dtype=_FLOATS[info.dtype], mode="r", offset=info.start, shape=(info.parameters,))
        if info.dtype == "BF16":  # all exponent bits set: infinite or NaN
            finite = not bool(((values & 0x7F80) == 0x7F80).any())
        else:
            finite = bool(np.isfinite(values).all())
        if not finite:
            raise _not_finite(info.name, path)


def _not_finite(tensor: str, path: Path) -> ModelError:
    return ModelError(
        f'tensor "{tensor}" holds NaN or infinite values', where=str(path), fix="take a checkpoint from before training diverged"
    )


def load_onnx(path: Path, *, data: bool = False, structure: bool = False) -> Any:
    """An ONNX model, weights in external files only with `data`. With `structure`, large weights inside the file stay there
    too: such a tensor is external, in the ONNX file itself.

    Raises `ModelError` for a corrupt file, a future opset, or external data outside the model's folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = load_structure(path) if structure else onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError):
        raise ModelError("not a readable ONNX file (empty, truncated or corrupt)", where=str(path), fix=_MEND) from None
    if not model.graph.node:
        raise ModelError("the ONNX file holds no graph", where=str(path), fix=_MEND)
    for opset in model.opset_import:
        newest = onnx.defs.onnx_opset_version()
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise ModelError(
                f"the model's opset {opset.version} is newer than opset {newest}, which is the newest known here",
                where=str(path),
                fix="export it with an older opset, or update onnx and onnxruntime",
            )
    for name in external_files(model):
        safe_relative(name)
        if not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
            raise ModelError(f'the path "{name}" leaves the model folder', where=str(path), fix="files of a model lie inside its folder")
        if not (path.parent / name).is_file():
            raise ModelError(f'its external data file "{name}" is missing', where=str(path), fix="put it beside the ONNX file")
    if data:
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def all_tensors(model: Any) -> Iterator[Any]:
    """Every initializer and constant, in subgraphs (If, Loop, Scan) too."""
    yield from _tensors_of(model.graph)


def _tensors_of(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors_of(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors_of(inner)


def all_nodes(graph: Any) -> Iterator[Any]:
    """Every node, in subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)
            for inner in attribute.graphs:
                yield from all_nodes(inner)


def external_files(model: Any) -> list[str]:
    """Names of the external data files the model refers to, sorted."""
    import onnx

    names = set()
    for tensor in all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    return sorted(names)


def onnx_parameters(model: Any) -> int:
    """Elements of all weight tensors: those of one dimension or more; scales and zero points are no parameters."""
    skip = ("_scale", "_zero_point", "_quantized_zero_point")
    return sum(math.prod(t.dims) for t in all_tensors(model) if t.dims and not t.name.endswith(skip))


def check_onnx_finite(model: Any, path: Path) -> None:
    import numpy as np
    import onnx

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    for tensor in model.graph.initializer:
        if tensor.data_type in floats and math.prod(tensor.dims) > 1:
            try:
                values = onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))
            except (ValueError, OSError, onnx.checker.ValidationError):
                raise ModelError(
                    f'the weights are truncated or corrupt: tensor "{tensor.name}" cannot be read', where=str(path), fix=_MEND
                ) from None
            # -inf is how attention masks are written, so only large tensors (weights) may not hold it
            if np.isnan(values).any() or (values.ndim > 1 and values.size > 4096 and not np.isfinite(values).all()):
                raise _not_finite(tensor.name, path)


def onnx_signature(model: Any) -> dict[str, Any]:
    """Inputs and outputs as {name, dtype, shape}; dimensions without a number keep their name or become "?"."""
    import onnx

    initializers = {tensor.name for tensor in model.graph.initializer}

    def entry(value: Any) -> dict[str, Any]:
        kind = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or "?") for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "unknown"
        return {"name": value.name, "dtype": dtype, "shape": dims}

    return {
        "inputs": [entry(v) for v in model.graph.input if v.name not in initializers],
        "outputs": [entry(v) for v in model.graph.output],
    }


def onnx_component(folder: Path, name: str = "model.onnx") -> Any:
    """The component that the ONNX file of that name in `folder` and its external data make."""
    from edgepipe.artifact import Component, FileRef

    model = load_onnx(folder / name, structure=True)
    files = [FileRef.of(folder, name), *(FileRef.of(folder, external) for external in external_files(model) if external != name)]
    return Component("onnx", tuple(files), onnx_signature(model), onnx_parameters(model))


def torch_component(folder: Path, signature: Any) -> Any:
    """The component that a folder written by `save_pretrained` makes: config first, then everything else."""
    from edgepipe.artifact import Component, files_in

    files = sorted(files_in(folder), key=lambda ref: (ref.path != "config.json", ref.path))
    parameters = sum(info.parameters for ref in files if ref.path.endswith(".safetensors") for info in safetensors_header(ref.location))
    return Component("torch", tuple(files), signature, parameters)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder; `ModelError` for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"not readable as JSON: {error}", where=str(path), fix="copy or download the file again") from None
    if not isinstance(data, dict):
        raise ModelError("not a JSON object", where=str(path), fix="copy or download the file again")
    return data
