"""Milliseconds of small graphs on a target: timed there, counted under emulation, or timed here where neither can be.

What the runtime makes of a graph is what costs, so graphs are whole: operators with what quantizes and dequantizes
around them. Costs are kept by content, for one kind of machine, CPU or device and one version of the runtime.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.artifact import Artifact, digest, sha256_file
from edgepipe.cost.counting import count
from edgepipe.cost.joined import apportioned, batches, joined, owners
from edgepipe.cost.latency import cache_shapes, predict
from edgepipe.cost.likeness import likeness
from edgepipe.emulation import emulated, emulator_env
from edgepipe.errors import DeviceError
from edgepipe.machine import machine_facts
from edgepipe.resources import resource
from edgepipe.runners import runner_for
from edgepipe.store import cache_root
from edgepipe.weights import onnx_component

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepipe.cost.joined import Graphs
    from edgepipe.profile import Profile
    from edgepipe.progress import Progress
    from edgepipe.runners import Runner
    from edgepipe.store import Store

STAGE = "costs"
WARM, RUNS = 5, 20
SECONDS = 0.05  # that each graph runs at least here, if that is more than so many runs
TIME_LIMIT_S = 3600.0
EMPTY = "empty"
RESOLUTION_NS = 100.0  # no graph takes less
Source = Literal["measured", "counted", "host"]


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds of one run of each graph. `source`: measured on the device, or here where this machine is of its kind;
    counted under emulation; or `host`, where this machine stands in, which `reason` explains."""

    ms: dict[str, float]
    source: Source
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Asking:
    """How costs are asked for."""

    profile: Profile
    workdir: Path
    progress: Progress
    stage: str
    threads: int
    disabled_optimizers: tuple[str, ...]


def graph_costs(
    graphs: Graphs,
    profile: Profile,
    store: Store,
    progress: Progress,
    *,
    threads: int = 1,
    disabled_optimizers: Sequence[str] = (),
    fresh: bool = False,
    stage: str = STAGE,
) -> Costs:
    """What each graph costs on the profile's device with `threads`; graphs that are alike are asked for once.

    Variants of one thing are named `<thing>/<variant>`: they are timed in turns. Models have their weights loaded.
    `fresh` asks again for what is known; `stage` is what progress is told under. Raises `DeviceError` for a graph that the
    target's runtime does not take.
    """
    with closing(runner_for(profile)) as runner:
        source, reason = _source(runner, profile)
        context = _context(runner, source, profile, threads, disabled_optimizers)
        keys = {name: digest({"graph": likeness(*graph), **context}) for name, graph in graphs.items()}
        kept = {} if fresh else {key: stored["ms"] for key in set(keys.values()) if (stored := store.get_result(key)) and "ms" in stored}
        missing = {key: name for name, key in reversed(keys.items()) if key not in kept}
        if missing:
            wanted = {name: graphs[name] for name in reversed(missing.values())}
            with store.workdir() as workdir:
                asking = _Asking(profile, workdir, progress, stage, threads, tuple(disabled_optimizers))
                if source == "counted":
                    found = _counted(wanted, asking)
                elif runner.name == "local" or source == "host":
                    found = _timed_here(wanted, asking, min(threads, runner.threads))
                else:
                    found = _timed_there(wanted, asking, runner, store)
            for key, name in missing.items():
                kept[key] = found[name]
                store.put_result(key, {"ms": found[name]})
    return Costs({name: kept[key] for name, key in keys.items()}, source, reason)


def _source(runner: Runner, profile: Profile) -> tuple[Source, str]:
    proof = runner.proof("latency")
    if runner.emulates and profile.cpu.arch != "aarch64":
        return "host", f"instructions are counted for ARM cores only; this machine stood in for {profile.title}"
    if proof.provenance == "host" or (proof.doubt and not runner.emulates):
        return "host", proof.doubt
    return ("counted" if runner.emulates else "measured"), proof.doubt


def _context(runner: Runner, source: Source, profile: Profile, threads: int, disabled_optimizers: Sequence[str]) -> dict[str, Any]:
    """What decides a cost beside the graph."""
    here = {key: value for key, value in machine_facts().items() if key != "ram_bytes"}
    on_device = runner.device != "host"
    ours = resource("devices")
    sources = [ours / "time_graphs.py", ours / "driver.py"]
    if source == "counted":
        sources = [ours / "count_nodes.py", *sorted((ours / "emulation").glob("*.[ch]"))]
        sources += [*sorted((resource("profiles") / "cores").glob("*.toml"))]
    return {
        "source": source,
        "device": runner.device if source == "counted" or (source == "measured" and on_device) else here,
        "facts": profile.facts() if source != "host" else {},
        "runtime": version("onnxruntime"),
        "threads": threads,
        "disabled_optimizers": sorted(disabled_optimizers),
        "sources": [sha256_file(path) for path in sources],
    }


def _counted(graphs: Graphs, asking: _Asking) -> dict[str, float]:
    """Predicted from counts: one emulated run for all graphs of the same operator sets."""
    import onnx

    emulation = emulated(asking.profile)
    times: dict[str, float] = {}
    for batch in batches(graphs):
        asking.progress.update(asking.stage, f"counting instructions for {asking.profile.cpu.model}", len(times), len(graphs))
        model, feeds = joined(batch)
        path, optimised = asking.workdir / "joined.onnx", asking.workdir / "optimised.onnx"
        onnx.save_model(model, path)
        counts = count(
            emulation.command,
            emulation.python,
            emulator_env(emulation),
            path,
            feeds,
            caches=cache_shapes(asking.profile),
            disabled_optimizers=asking.disabled_optimizers,
            plugin_folder=cache_root() / "devices" / "counter",
            optimised=optimised,
        )
        times |= apportioned(predict(counts, asking.profile, asking.threads), batch, owners(onnx.load(optimised)))
    return times


def _timed_here(graphs: Graphs, asking: _Asking, threads: int) -> dict[str, float]:
    """The fastest of many runs, less what a run of nothing takes: what else the machine does can only slow a run down.

    On one thread its CPU time is taken: on a machine twice overbooked it repeats within 5 % where the clock was 2 × off.
    """
    import numpy as np
    import onnx

    groups: dict[str, list[int]] = {}
    for number, (name, (model, feeds)) in enumerate([*graphs.items(), (EMPTY, _empty())]):
        groups.setdefault(name.rpartition("/")[0] or name, []).append(number)
        onnx.save_model(model, asking.workdir / f"{number}.onnx")
        arrays: dict[str, Any] = {f"_{name}": value for name, value in feeds.items()}  # "file" is savez's own
        np.savez(asking.workdir / f"{number}.npz", **arrays)
    plan = {"groups": list(groups.values()), "disabled_optimizers": list(asking.disabled_optimizers)}
    (asking.workdir / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    asking.progress.update(asking.stage, f"timing {len(graphs)} small graphs on this machine")
    command = [sys.executable, str(resource("devices") / "time_graphs.py"), str(asking.workdir), str(threads), str(RUNS), str(SECONDS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"timing took more than {TIME_LIMIT_S:.0f} s", where="devices/time_graphs.py", fix="time smaller inputs"
        ) from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it died without a message"])[-1]
        place, _, said = last.removeprefix("graph ").partition(": ")
        where = list(graphs)[int(place)] if place.isdigit() else "devices/time_graphs.py"
        raise DeviceError(f"a graph cannot be timed here: {said or last}", where=where, fix="leave what it is of in float32")
    taken = json.loads(done.stdout)
    nothing = min(taken[str(len(graphs))])
    return {name: max(min(taken[str(number)]) - nothing, RESOLUTION_NS) / 1e6 for number, name in enumerate(graphs)}


def _empty() -> tuple[Any, dict[str, Any]]:
    import numpy as np
    from onnx import TensorProto, helper

    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", *ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), {"x": np.zeros(1, np.float32)}


def _timed_there(graphs: Graphs, asking: _Asking, runner: Runner, store: Store) -> dict[str, float]:
    """On the device, each graph in a process of its own."""
    times = {}
    for number, (name, (model, feeds)) in enumerate(graphs.items()):
        asking.progress.update(asking.stage, name, number, len(graphs))
        artifact = _artifact(model, asking.workdir / f"graph-{number}", asking.disabled_optimizers)
        opened = runner.open(runner.push(store.put(artifact)), threads=asking.threads)
        try:
            opened.repeat(feeds, WARM)
            times[name] = min(opened.repeat(feeds, RUNS)) / 1e6
        finally:
            opened.close()
    return times


def _artifact(model: Any, folder: Path, disabled_optimizers: Sequence[str]) -> Artifact:
    import onnx

    folder.mkdir()
    onnx.save_model(model, folder / "model.onnx")
    program: dict[str, Any] = {"kind": "single", "component": "model", "task": "fidelity", "preprocess": {"kind": "tensors"}}
    if disabled_optimizers:
        program["session"] = {"disabled_optimizers": list(disabled_optimizers)}
    return Artifact({"model": onnx_component(folder)}, (), program)
