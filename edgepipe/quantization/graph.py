"""A view of an ONNX model for rewriting it: who makes a value, who reads it, what is constant; weights one at a time.

Constants in external files are read when asked for and dropped again. What a rewrite adds goes straight to a file when
it is large, so that a model of many gigabytes is quantized in the memory of its largest tensor.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from edgepipe.onnx_file import copy_part, write_with_values
from edgepipe.quantization.names import name_node, tell_constants_apart
from edgepipe.weights import load_onnx

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np

MICROSOFT = "com.microsoft"
DATA = "model.onnx.data"
INLINE_BYTES = 256_000_000  # models under this are written as one file
STREAMED_BYTES = 1024  # smaller constants stay in the graph
PAGE_BYTES = 4096


class Graph:
    """One model being rewritten. Nodes of If, Loop and Scan bodies belong to it; a constant of the main graph is seen in them."""

    def __init__(self, path: Path, workdir: Path) -> None:
        """`workdir` takes large new constants; it must be on the disk that `write` writes to."""
        self.model = load_onnx(path, structure=True)
        self.folder = path.parent
        self._fresh_path = workdir / "fresh.bin"
        self._added: dict[tuple[str, str], str] = {}  # (name that was asked for, digest) → name
        tell_constants_apart(self.model.graph)
        self.index()

    def index(self) -> None:
        """Look at the nodes anew, after some were replaced."""
        self.nodes: list[Any] = []  # every node, those of bodies too
        self._scopes: list[Any] = []  # graphs: the main one, and those in its nodes
        self._replaced: dict[int, tuple[Any, ...]] = {}
        self._before: dict[int, list[Any]] = defaultdict(list)
        self._scope: dict[int, int] = {}
        self._holder: dict[int, Any] = {}
        self.producer: dict[str, Any] = {}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        self.constants: dict[str, Any] = {}
        self.names: set[str] = set()
        self._numbers: dict[str, int] = defaultdict(int)
        self._node_names: set[str] = set()
        self._walk(self.model.graph)

    def _walk(self, graph: Any, holder: Any = None) -> None:
        scope = len(self._scopes)
        self._scopes.append(graph)
        self.constants |= {tensor.name: tensor for tensor in graph.initializer}
        self.names |= {value.name for value in (*graph.input, *graph.output)} | set(self.constants)
        for node in graph.node:
            self.nodes.append(node)  # also keeps alive what `id` tells apart
            name_node(node, self._node_names)
            self._scope[id(node)] = scope
            if holder is not None:
                self._holder[id(node)] = holder
            for name in node.output:
                self.producer[name] = node
                self.names.add(name)
            for name in node.input:
                self.consumers[name].append(node)
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.constants[node.output[0]] = attribute.t
                for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                    self._walk(inner, holder or node)
        for value in graph.output:  # read by whoever holds the graph
            self.consumers[value.name].append(None)

    def scope(self, node: Any) -> int:
        """A number that nodes of the same graph share."""
        return self._scope[id(node)]

    def first(self, node: Any) -> Any:
        """`node`, or the node of the main graph whose body it is in."""
        return self._holder.get(id(node), node)

    def float_values(self, path: Path) -> set[str]:
        """Names of the main graph's float32 values, by shape inference over the file that was written of it."""
        import onnx

        model = onnx.load(str(path), load_external_data=False)
        try:
            model = onnx.shape_inference.infer_shapes(model)
        except Exception:  # errors of several kinds; the types that are known must do
            pass
        values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        typed = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        return typed - set(self.constants)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a constant."""
        return tuple(self.constants[name].dims)

    def is_float(self, name: str) -> bool:
        """Whether `name` is a constant of float32 values."""
        tensor = self.constants.get(name)
        return tensor is not None and tensor.data_type == 1

    def array(self, name: str) -> np.ndarray:
        """The values of a constant, read from its file where it has one."""
        import numpy as np
        import onnx

        tensor = self.constants[name]
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            values: np.ndarray = onnx.numpy_helper.to_array(tensor)
            return values
        path, offset, length = self._place(tensor)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        with path.open("rb") as handle:
            handle.seek(offset)
            return np.frombuffer(handle.read(length), dtype).reshape(tuple(tensor.dims))

    def _place(self, tensor: Any) -> tuple[Path, int, int]:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = self._fresh_path if entries["location"] == "" else self.folder / entries["location"]
        offset = int(entries.get("offset", 0))
        return path, offset, int(entries.get("length") or path.stat().st_size - offset)

    def fresh(self, base: str) -> str:
        """A name that nothing has, `base` where it is free."""
        name, number = base, self._numbers[base]
        while name in self.names:
            number += 1
            name = f"{base}_{number}"
        self._numbers[base] = number
        self.names.add(name)
        return name

    def constant(self, base: str, values: np.ndarray, *, like: str = "") -> str:
        """Add a constant and give its name; `like` names a type that numpy has not (int4, uint4: two values a byte).

        What was added under the same name before is not added again: layers that share a weight share what it becomes.
        """
        import numpy as np
        import onnx

        values = np.asarray(values, order="C")
        key = (base, hashlib.sha256(values.data if values.size else b"").hexdigest() + f"{values.dtype}{values.shape}{like}")
        if key in self._added:
            return self._added[key]
        tensor = onnx.numpy_helper.from_array(values, self.fresh(base))
        self._added[key] = tensor.name
        if like:
            tensor.data_type = onnx.TensorProto.DataType.Value(like)
            tensor.dims[-1] *= 2
        self._keep_in_file(tensor)
        added = self.model.graph.initializer.add()
        added.CopyFrom(tensor)
        self.constants[added.name] = added
        return str(added.name)

    def set_constant(self, name: str, values: np.ndarray) -> None:
        """Give a constant other values of the same shape or another; whoever reads it reads these."""
        import numpy as np
        import onnx

        tensor = onnx.numpy_helper.from_array(np.asarray(values, order="C"), name)
        self._keep_in_file(tensor)
        self.constants[name].CopyFrom(tensor)

    def _keep_in_file(self, tensor: Any) -> None:
        import onnx

        if len(tensor.raw_data) < STREAMED_BYTES:
            return
        length = len(tensor.raw_data)
        with self._fresh_path.open("ab") as handle:
            start = handle.tell()  # another graph may have written there
            handle.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", ""), ("offset", start), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))

    def replace(self, node: Any, *new: Any) -> None:
        """Put nodes (or none) where `node` stands, in its own graph. Takes effect with `apply`."""
        self._replaced[id(node)] = new

    def before(self, node: Any, *new: Any) -> None:
        """Put nodes in front of `node`. Takes effect with `apply`."""
        self._before[id(node)] += new

    def apply(self) -> None:
        """Carry out what `replace` and `before` asked for; nodes that were looked up earlier are no longer the model's."""
        for graph in reversed(self._scopes):  # bodies first: the nodes that hold them are copied with them
            kept = []
            for node in list(graph.node):
                kept += [*self._before.get(id(node), ()), *self._replaced.get(id(node), (node,))]
            copies = [type(node).FromString(node.SerializeToString()) for node in kept]
            del graph.node[:]
            graph.node.extend(copies)
        self.index()

    def require(self, domain: str, version: int) -> None:
        """Have at least that version of an operator set. For ONNX's own below `version`, the model is converted.

        Raises `PassError` when it cannot be.
        """

        own = next((entry for entry in self.model.opset_import if (entry.domain or "ai.onnx") == (domain or "ai.onnx")), None)
        if own is None:
            self.model.opset_import.add(domain=domain, version=version)
        elif own.version < version and domain:
            own.version = version
        elif own.version < version:
            self._convert(own, version)
        if not domain and version >= 21:
            self.model.ir_version = max(self.model.ir_version, 10)  # the first with 4-bit integers

    def _convert(self, own: Any, version: int) -> None:
        import onnx

        from edgepipe.errors import PassError

        def since(node: Any, opset: int) -> int:
            return int(onnx.defs.get_schema(node.op_type, max_inclusive_version=opset).since_version)

        operators = {node.op_type: node for node in self.nodes if node.domain in ("", "ai.onnx")}
        try:
            if all(since(node, own.version) == since(node, version) for node in operators.values()):
                own.version = version  # every definition is the same in both
                return
            self.model = onnx.version_converter.convert_version(self.model, version)
        except Exception as error:  # the converter raises RuntimeError and errors of its own
            raise PassError(
                f"opset {own.version} is too old for this scheme, which needs {version}, and cannot be converted: {str(error).splitlines()[0]}",
                where="the model",
                fix=f"export it with opset {version} or newer",
            ) from None
        self.index()

    def write(self, folder: Path, *, inline_bytes: int | None = None) -> None:
        """Write `model.onnx`, models of `inline_bytes` and more with their weights in `model.onnx.data`. Constants that nothing
        reads are left out."""
        from edgepipe.store import disk_errors

        unread = [node for node in self.nodes if node.op_type == "Constant" and not self.consumers.get(node.output[0])]
        for node in unread:
            self.replace(node)
        if unread:
            self.apply()
        self._added.clear()
        for graph in self._scopes:
            kept = [tensor for tensor in graph.initializer if self.consumers.get(tensor.name)]
            if len(kept) < len(graph.initializer):
                copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
                del graph.initializer[:]
                graph.initializer.extend(copies)
        main = [tensor for tensor in self.model.graph.initializer if tensor.data_location == 1]
        inner = [tensor for graph in self._scopes[1:] for tensor in graph.initializer if tensor.data_location == 1]
        inner += [a.t for node in self.nodes if node.op_type == "Constant" for a in node.attribute if a.t.data_location == 1]
        total = sum(self._place(tensor)[2] for tensor in main + inner) + self.model.ByteSize()
        del self.model.graph.value_info[:]  # of the graph as it was; the runtime infers its own
        with disk_errors(folder):
            if total <= (INLINE_BYTES if inline_bytes is None else inline_bytes):
                self._write_one_file(main, inner, folder / "model.onnx")
            else:
                self._gather(main + inner, folder / DATA)
                (folder / "model.onnx").write_bytes(self.model.SerializeToString(deterministic=True))

    def _write_one_file(self, main: Iterable[Any], inner: Iterable[Any], target: Path) -> None:
        """Values of the main graph's constants are copied from file to file, those of bodies and Constant nodes are read."""
        for tensor in inner:
            path, offset, length = self._place(tensor)
            with path.open("rb") as handle:
                handle.seek(offset)
                tensor.raw_data = handle.read(length)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        values = [(tensor, *self._place(tensor)) for tensor in main]
        written = type(self.model).FromString(self.model.SerializeToString())
        del written.graph.initializer[:]
        written.graph.initializer.extend(tensor for tensor in self.model.graph.initializer if tensor.data_location != 1)
        with target.open("wb") as out:
            write_with_values(written, values, out)

    def _gather(self, tensors: Iterable[Any], target: Path) -> None:
        """All large constants into one file, each at the start of a page, so that the runtime can map them."""
        with target.open("wb") as out:
            for tensor in tensors:
                path, offset, length = self._place(tensor)
                out.write(bytes(-out.tell() % PAGE_BYTES))
                start = out.tell()
                copy_part(path, offset, length, out)
                tensor.ClearField("external_data")
                for key, value in (("location", DATA), ("offset", start), ("length", length)):
                    tensor.external_data.add(key=key, value=str(value))
