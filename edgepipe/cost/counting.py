"""Instructions that a model executes on an ARM CPU, by class and by node, counted under user-mode emulation.

A plugin of the emulator (`devices/emulation/count.c`) counts; the runtime's profiler, whose clock reads are system
calls there, sets the borders between nodes. Counts repeat within 1 %; they say nothing of time, see `latency`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import sha256_file
from edgepipe.cost.borders import Border, match, read_borders
from edgepipe.errors import DeviceError
from edgepipe.resources import resource
from edgepipe.store import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIME_LIMIT_S = 3600
_COMPILER_FIX = "install a C compiler (Debian, Ubuntu: apt install gcc) or name one in CC"


@dataclass(frozen=True, slots=True)
class CacheShape:
    """A data cache whose misses are counted: least recently used, 64-byte lines, without prefetching."""

    kib: int
    ways: int


@dataclass(frozen=True, slots=True)
class NodeCounts:
    """What one node executed: {quantity: amount}, quantities as in `devices/emulation/a64.h`, and misses per cache."""

    name: str
    op_type: str
    inputs: tuple[tuple[str, tuple[int, ...]], ...]  # (dtype, shape) as the runtime's profile gives them
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    amounts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Counts:
    """One inference on one thread. `rest` is what runs between nodes: the runtime's dispatch and its Python binding."""

    nodes: tuple[NodeCounts, ...]
    rest: dict[str, int]
    caches: tuple[CacheShape, ...]

    @property
    def total(self) -> dict[str, int]:
        result = dict(self.rest)
        for node in self.nodes:
            for quantity, amount in node.amounts.items():
                result[quantity] = result.get(quantity, 0) + amount
        return result

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": [
                {"name": n.name, "op_type": n.op_type, "inputs": n.inputs, "outputs": n.outputs, "amounts": n.amounts} for n in self.nodes
            ],
            "rest": self.rest,
            "caches": [[c.kib, c.ways] for c in self.caches],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Counts:
        def typed(entries: list[Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
            return tuple((dtype, tuple(shape)) for dtype, shape in entries)

        return Counts(
            tuple(NodeCounts(n["name"], n["op_type"], typed(n["inputs"]), typed(n["outputs"]), n["amounts"]) for n in data["nodes"]),
            data["rest"],
            tuple(CacheShape(*c) for c in data["caches"]),
        )


def count(
    emulator: Sequence[str],
    python: str,
    env: Mapping[str, str],
    model: Path,
    feeds: Mapping[str, Any],
    *,
    caches: Sequence[CacheShape] = (),
    disabled_optimizers: Sequence[str] = (),
    plugin_folder: Path | None = None,
    optimised: Path | None = None,
) -> Counts:
    """Counts of one inference of an ONNX file, after a warm-up run, on one thread.

    `emulator` is the command up to, and without, the program: ["qemu-aarch64", "-L", ROOT, "-cpu", "cortex-a72"];
    `python` the emulated interpreter with numpy and onnxruntime; `feeds` maps input names to arrays. The built
    plugin is kept in `plugin_folder`; the graph that the runtime made of the model, whose nodes are counted, is written
    to `optimised`. Raises `DeviceError` without a compiler, and when the emulated run fails.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="edgepipe-count-") as name:
        folder = Path(name)
        if plugin_folder is None or "," in str(plugin_folder):  # a comma would end the path in `-plugin`
            plugin_folder = folder
        plugin = build_plugin(plugin_folder)
        np.savez(folder / "feeds.npz", **{f"_{name}": value for name, value in feeds.items()})  # "file" is savez's own
        borders = folder / "borders.txt"
        script = resource("devices") / "count_nodes.py"
        command = [*emulator, "-plugin", plugin_option(plugin, borders, caches), python, str(script)]
        arguments = [str(model), str(folder / "feeds.npz"), str(folder / "profile")]
        arguments += [*(["--optimised", str(optimised)] if optimised else []), *disabled_optimizers]
        output = run_counted([*command, *arguments], env)
        events = json.loads(Path(output.split("\n")[0]).read_text(encoding="utf-8"))
        profiled, plain = read_borders(borders)
        return _by_node(profiled, plain, events, tuple(caches))


def compiler_command() -> str:
    """The C compiler that builds the plugin: the one `CC` names, whether it is there or not, else the first found; empty
    without one."""
    return os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "")


def build_plugin(folder: Path) -> Path:
    """The plugin, compiled for this machine; its name follows its sources. Raises `DeviceError`."""
    sources = [resource("devices") / "emulation" / name for name in ("count.c", "a64.h")]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    built = folder / f"count-{digest[:12]}.so"
    seal = built.with_suffix(".sha256")  # what is loaded into the emulator must be what was compiled here
    if built.is_file() and seal.is_file() and seal.read_text(encoding="ascii", errors="replace") == sha256_file(built):
        return built
    compiler = compiler_command()
    if not compiler:
        raise DeviceError("no C compiler to build the instruction counter with", where="devices/emulation/count.c", fix=_COMPILER_FIX)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fresh = Path(scratch) / built.name
        try:
            done = subprocess.run(
                [*compiler.split(), "-O2", "-shared", "-fPIC", "-o", str(fresh), str(sources[0])],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise DeviceError(f"{compiler} cannot be run: {error.strerror}", where="CC", fix=_COMPILER_FIX) from None
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DeviceError(f"the instruction counter does not compile: {last}", where=str(sources[0]), fix=_COMPILER_FIX)
        seal_text = sha256_file(fresh)
        fresh.replace(built)
        write_atomic(seal, seal_text.encode())
    return built


def plugin_option(plugin: Path, out: Path, caches: Sequence[CacheShape], slice_accesses: int = 0) -> str:
    """What follows the emulator's `-plugin`. A border every `slice_accesses` memory accesses stands in for node borders."""
    for path in (plugin, out):
        if "," in str(path):
            raise DeviceError(
                "the emulator takes no comma in a path of its plugin", where=str(path), fix="set TMPDIR to a folder without one"
            )
    parts = [str(plugin), f"out={out}"]
    parts += [f"l{level}={cache.kib}:{cache.ways}" for level, cache in enumerate(caches, 1)]
    parts += [f"slice={slice_accesses}"] if slice_accesses else []
    return ",".join(parts)


def run_counted(command: Sequence[str], env: Mapping[str, str]) -> str:
    """Standard output of the emulated program. Raises `DeviceError` with its last line of errors."""
    try:
        done = subprocess.run(list(command), env=dict(env), capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except OSError as error:
        raise DeviceError(f"the emulator cannot be run: {error.strerror}", where=command[0], fix="edgepipe devices setup") from None
    except subprocess.TimeoutExpired:
        raise DeviceError(f"counting took more than {TIME_LIMIT_S} s", where=command[0], fix="count a smaller input") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"counting failed: {last}", where=command[0], fix="run the model emulated first; that names the cause")
    return done.stdout


def sliced(path: Path, caches: Sequence[CacheShape]) -> Counts:
    """Counts of a run whose borders are slices: of runtimes that do not tell their nodes."""
    (borders,) = read_borders(path)
    nodes = tuple(
        NodeCounts(f"slice {index}", "", (), (), _minus(after.sums, before.sums))
        for index, (before, after) in enumerate(itertools.pairwise(borders))
    )
    return Counts(nodes, {}, tuple(caches))


def _by_node(profiled: list[Border], plain: list[Border], events: list[dict[str, Any]], caches: tuple[CacheShape, ...]) -> Counts:
    """Joins borders and the profile's events, and takes the profiler's own work out.

    Inside a node's two borders the profiler does the same work every time: what the least node shows, class by
    class. The run without it says what is left between nodes.
    """
    run = max((e for e in events if e.get("name") == "model_run"), key=lambda e: int(e["ts"]))
    begin, end = _span(run)
    inside = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time") and begin <= int(e["ts"]) <= end]
    points = sorted((point, index, side) for index, e in enumerate(inside) for side, point in enumerate(_span(e)))
    matched = match([b.time_us for b in profiled], [point for point, _, _ in points])
    at = {(index, side): border for (_, index, side), border in zip(points, matched, strict=True)}
    raw = [_minus(profiled[at[index, 1]].sums, profiled[at[index, 0]].sums) for index in range(len(inside))]
    raw = _without_children(inside, raw)
    least = {q: min((r[q] for r in raw), default=0) for q in profiled[0].sums}
    nodes = tuple(
        NodeCounts(
            event["name"].removesuffix("_kernel_time"),
            event["args"].get("op_name", ""),
            _types(event["args"].get("input_type_shape", [])),
            _types(event["args"].get("output_type_shape", [])),
            _minus(amounts, least),
        )
        for event, amounts in zip(inside, raw, strict=True)
    )
    whole = _minus(plain[-1].sums, plain[0].sums)
    rest = {q: max(0, amount - sum(node.amounts[q] for node in nodes)) for q, amount in whole.items()}
    return Counts(nodes, rest, caches)


def _span(event: dict[str, Any]) -> tuple[int, int]:
    return int(event["ts"]), int(event["ts"]) + int(event["dur"])


def _without_children(events: list[dict[str, Any]], raw: list[dict[str, int]]) -> list[dict[str, int]]:
    """A node that runs a subgraph (If, Loop, Scan) keeps what its inner nodes did not execute."""
    spans = [_span(e) for e in events]
    result = [dict(amounts) for amounts in raw]
    for inner, (start, stop) in enumerate(spans):
        around = [i for i, (a, b) in enumerate(spans) if i != inner and a <= start and stop <= b and (b - a) > (stop - start)]
        if around:
            parent = min(around, key=lambda i: spans[i][1] - spans[i][0])
            result[parent] = _minus(result[parent], raw[inner])
    return result


def _minus(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {name: max(0, amount - right.get(name, 0)) for name, amount in left.items()}


def _types(entries: list[dict[str, list[int]]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((dtype, tuple(shape)) for entry in entries for dtype, shape in entry.items())
