"""The model in ONNX Runtime's own format (.ort) and the operators it needs, for runtimes built to hold no others.

Written by the runtime itself, as onnxruntime.tools.convert_onnx_models_to_ort does it (style Fixed, platform arm), with
three differences. The level is `extended`, not `all`: what `all` adds are memory layouts (NCHWc, NHWC) that suit the
machine that converts, and a session never optimises an .ort file again, so extended is the highest level that gives
the same graph for every CPU. The optimisers that the artifact's session leaves out are left out. And the table of
kernel types, which the runtime writes in another order every time, is written again in order, so that the same model
gives the same bytes. Style Runtime (optimisations replayed on the device, for CoreML and NNAPI) is not used: replaying
is off by default and for trusted files only (ONNX Runtime 1.32).
"""

from __future__ import annotations

import importlib
import struct
from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError
from edgepipe.weights import ONE_FILE_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from edgepipe.artifact import Artifact

FOLDER = "ort"
OPERATORS = "required_operators.config"
ALIGNMENT = 64
AS_ONNX = "hand the model over as ONNX"
ARM_INT8 = "session.qdqisint8allowed"  # int8 activations of QDQ graphs stay int8, which ARM has kernels for


def ort_files(artifact: Artifact, workdir: Path) -> dict[str, Path]:
    """`ort/<role>.ort` per ONNX component and `ort/required_operators.config` over all of them, written in `workdir`.

    Same bytes for the same artifact and runtime. Raises `ModelError` for a model that the runtime cannot convert.
    """
    from edgepipe.store import disk_errors

    written = {}
    for role, component in sorted(artifact.components.items()):
        if component.format != "onnx":
            continue
        if component.size_bytes > ONE_FILE_LIMIT_BYTES:
            raise ModelError(
                f"a model of {component.size_bytes / 1e9:.1f} GB does not fit in an .ort file, which holds 2 GB",
                where=str(component.main_file),
                fix="compress it further, or hand it over as ONNX",
            )
        target = workdir / f"{role}.ort"
        with disk_errors(workdir):
            _convert(component.main_file, target, artifact.program.get("session", {}).get("disabled_optimizers", ()))
            _order_kernel_types(target)
        written[f"{FOLDER}/{role}.ort"] = target
    if not written:
        return {}
    config = workdir / OPERATORS
    with disk_errors(workdir):
        config.write_text(_configuration(written.values()), encoding="utf-8")
    return {**written, f"{FOLDER}/{OPERATORS}": config}


def required_operators(models: Iterable[Path]) -> dict[str, dict[int, set[str]]]:
    """domain → opset → operators that the .ort files hold."""
    from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor

    found: dict[str, dict[int, set[str]]] = {}
    for model in models:
        OrtFormatModelProcessor(str(model), found, None).process()
    return found


def _configuration(models: Iterable[Path]) -> str:
    """What --include_ops_by_config of ONNX Runtime's build takes: a line per domain and opset."""
    models = list(models)
    lines = [f"# the operators of {', '.join(model.name for model in models)}"]
    for domain, opsets in sorted(required_operators(models).items()):
        lines += [f"{domain};{opset};{','.join(sorted(names))}" for opset, names in sorted(opsets.items()) if names]
    return "\n".join(lines) + "\n"


def _convert(source: Path, target: Path, disabled_optimizers: Iterable[str]) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # nothing runs
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry(ARM_INT8, "1")
    try:
        onnxruntime.InferenceSession(
            str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer", *disabled_optimizers]
        )
    except Exception as error:  # the runtime's errors have no base of their own
        raise ModelError(
            f"ONNX Runtime cannot write it in its own format: {str(error).splitlines()[0]}",
            where=str(source),
            fix="hand the model over as ONNX, or export it again",
        ) from None


def _order_kernel_types(path: Path) -> None:
    """Take the table of kernel types (KernelTypeStrResolver in ort.fbs) out and write it again at the end, in order.

    Flatbuffers are written from their end, so the table lies between the root and the model, and nothing but the root
    refers to it. The runtime takes its entries from a hash map: their places, and so the length, differ from run to
    run (1.32.0). Raises `ModelError` for a file that is laid out otherwise.
    """
    data = bytearray(path.read_bytes())
    session = _schema("InferenceSession").InferenceSession.GetRootAs(data, 0)
    root, model, resolver = session._tab.Pos, session.Model()._tab.Pos, session.KernelTypeStrResolver()
    vtable, model_vtable = (place - struct.unpack_from("<i", data, place)[0] for place in (root, model))
    vtable_bytes, root_bytes = struct.unpack_from("<HH", data, vtable)
    start, end = root + root_bytes, min(model, model_vtable) if model_vtable > root else model
    if not vtable < root < start <= resolver._tab.Pos < end:
        raise ModelError("its file in ONNX Runtime's own format is laid out in an unknown way", where=str(path), fix=AS_ONNX)
    block = _resolver_in_order(resolver)
    gap = -(start + len(data) - end) % ALIGNMENT  # values in a flatbuffer are aligned as seen from its end
    body = data[:start] + bytes(gap) + data[end:]
    for offset in filter(None, struct.unpack_from(f"<{vtable_bytes // 2 - 2}H", data, vtable + 4)):  # all three fields are references
        field = root + offset
        target = field + struct.unpack_from("<I", data, field)[0]
        moved = len(body) + struct.unpack_from("<I", block, 0)[0] if target == resolver._tab.Pos else target - (end - start) + gap
        struct.pack_into("<I", body, field, moved - field)
    path.write_bytes(body + block)


def _resolver_in_order(resolver: Any) -> bytes:
    """A flatbuffer of its own with what the table holds, sorted by key, as its readers search it."""
    names = ("ArgTypeAndIndex", "KernelTypeStrArgsEntry", "OpIdKernelTypeStrArgsEntry", "KernelTypeStrResolver")
    arg_schema, type_schema, operator_schema, resolver_schema = map(_schema, names)
    builder = importlib.import_module("flatbuffers").Builder(4096)

    def vector(start: Any, items: list[int]) -> int:
        start(builder, len(items))
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return int(builder.EndVector())

    operators = []
    for operator in sorted((resolver.OpKernelTypeStrArgs(i) for i in range(resolver.OpKernelTypeStrArgsLength())), key=lambda e: e.OpId()):
        types = []
        for entry in sorted(
            (operator.KernelTypeStrArgs(i) for i in range(operator.KernelTypeStrArgsLength())), key=lambda e: e.KernelTypeStr()
        ):
            args = []
            for arg in (entry.Args(i) for i in range(entry.ArgsLength())):
                arg_schema.Start(builder)
                arg_schema.AddArgType(builder, arg.ArgType())
                arg_schema.AddIndex(builder, arg.Index())
                args.append(arg_schema.End(builder))
            name, members = builder.CreateString(entry.KernelTypeStr()), vector(type_schema.StartArgsVector, args)
            type_schema.Start(builder)
            type_schema.AddKernelTypeStr(builder, name)
            type_schema.AddArgs(builder, members)
            types.append(type_schema.End(builder))
        name, members = builder.CreateString(operator.OpId()), vector(operator_schema.StartKernelTypeStrArgsVector, types)
        operator_schema.Start(builder)
        operator_schema.AddOpId(builder, name)
        operator_schema.AddKernelTypeStrArgs(builder, members)
        operators.append(operator_schema.End(builder))
    entries = vector(resolver_schema.StartOpKernelTypeStrArgsVector, operators)
    resolver_schema.Start(builder)
    resolver_schema.AddOpKernelTypeStrArgs(builder, entries)
    builder.Finish(resolver_schema.End(builder))
    return bytes(builder.Output())


def _schema(name: str) -> Any:
    """One module of the wheel's reader of its own format, which lies outside the package until this import."""
    importlib.import_module("onnxruntime.tools.ort_format_model")
    return importlib.import_module(f"ort_flatbuffers_py.fbs.{name}")
