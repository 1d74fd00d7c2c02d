"""Latency of a candidate and its baseline on an ARM board that is not here: instructions counted, then `cost.latency`.

Text is counted at a short and a long input; other lengths lie between the two, instructions growing with the tokens.
Counts are kept by content: they depend on the files, the emulated CPU and the counter alone.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from edgepipe.artifact import digest
from edgepipe.cost.cores import core_of
from edgepipe.cost.counting import Counts, count
from edgepipe.cost.latency import LINE_BYTES, cache_shapes, predict, ratio
from edgepipe.emulation import emulator_env
from edgepipe.machine import usable_cores
from edgepipe.measure import STAGE
from edgepipe.pipeline import sources_digest
from edgepipe.probes import encoder_for, feeds_of, fixed_feeds
from edgepipe.resources import resource
from edgepipe.runners.agent import wire
from edgepipe.store import cache_root

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.cost.latency import Prediction
    from edgepipe.emulation import Emulated
    from edgepipe.probes import Feeds
    from edgepipe.profile import Profile
    from edgepipe.progress import Progress
    from edgepipe.readers import Sample
    from edgepipe.store import Store

Key = TypeVar("Key")
SHORT, LONG = 16, 128  # tokens
KINDS = ("baseline", "candidate")
COSTLIEST = 10
OPERATIONS = {"fma_q": 8, "fma_d": 4, "imul": 16, "dot": 32, "mmla": 64}  # multiplications and additions an instruction does


@dataclass(frozen=True, slots=True)
class Predicted:
    """Latencies as `measure.Measurement` keeps them."""

    entries: list[dict[str, Any]]
    scaling: list[dict[str, float]]
    costliest: dict[str, list[dict[str, Any]]]
    roofline: dict[str, Any]


def predict_latencies(
    candidate: Artifact,
    baseline: Artifact,
    profile: Profile,
    emulation: Emulated,
    samples: Sequence[Sample],
    store: Store,
    progress: Progress,
) -> Predicted:
    """Both models at fixed shapes and at the task's median length. Raises `DeviceError` without a C compiler."""
    shapes, task_length = _shapes(candidate, samples)
    jobs = [(name, artifact, shape) for name, artifact in (("baseline", baseline), ("candidate", candidate)) for shape in shapes]
    jobs.sort(key=lambda job: (-job[2][1], job[0]))  # the longest runs first
    found = counted_together(
        {(name, shape): partial(_counts, artifact, shape, samples, profile, emulation, store) for name, artifact, shape in jobs},
        profile,
        progress,
    )
    threads = profile.runtime.threads
    runs = 2 if candidate.program["preprocess"].get("twin") else 1  # a sample of two texts runs the model on each

    def at(shape: tuple[int, int], label: str) -> dict[str, Any]:
        before, after = (predict(found[name, shape], profile, threads) for name in KINDS)
        return _entry(before, after, shape[0], label, threads, runs if label == "task" else 1)

    entries = [at(shape, str(shape[1]) if task_length else "task") for shape in shapes]
    at_task = {name: found[name, shapes[0]] for name in KINDS}
    if task_length:
        at_task = {name: _between(found[name, shapes[0]], found[name, shapes[-1]], shapes, task_length) for name in KINDS}
        before, after = (predict(at_task[name], profile, threads) for name in KINDS)
        entries.insert(0, {**_entry(before, after, 1, "task", threads, runs), "median_length": task_length})
    scaling = [
        {"threads": n, **{name: runs * predict(at_task[name], profile, n).ms for name in KINDS}} for n in range(1, threads + 1)
    ]  # fmt: skip
    return _told(entries, scaling, {name: found[name, shapes[-1]] for name in KINDS}, profile)


def predicted_at_task(found: Mapping[str, Counts], profile: Profile) -> Predicted:
    """The latencies of one inference each of baseline and candidate, counted as the task has them."""
    threads = profile.runtime.threads
    before, after = (predict(found[name], profile, threads) for name in KINDS)
    scaling = [{"threads": n, **{name: predict(found[name], profile, n).ms for name in KINDS}} for n in range(1, threads + 1)]
    return _told([_entry(before, after, 1, "task", threads, 1)], scaling, found, profile)


def _told(entries: list[dict[str, Any]], scaling: list[dict[str, float]], longest: Mapping[str, Counts], profile: Profile) -> Predicted:
    threads = profile.runtime.threads
    costliest = {name: _costliest(predict(counts, profile, threads)) for name, counts in longest.items()}
    return Predicted(entries, scaling, costliest, _roofline(longest, profile, threads))


def counted_together(jobs: Mapping[Key, Callable[[], Counts]], profile: Profile, progress: Progress) -> dict[Key, Counts]:
    """The counts of every job, as many at a time as there are cores; an interrupt ends those that run."""
    what = f"counting instructions for {profile.cpu.model}"
    progress.update(STAGE, what, 0, len(jobs))
    found: dict[Key, Counts] = {}
    with ThreadPoolExecutor(usable_cores()) as pool:
        counting = {key: pool.submit(job) for key, job in jobs.items()}
        try:
            for number, (key, future) in enumerate(counting.items(), start=1):
                found[key] = future.result()
                progress.update(STAGE, what, number, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # else those that wait would still run, minutes each
            _stop_counting()
            raise
    return found


def _shapes(artifact: Artifact, samples: Sequence[Sample]) -> tuple[list[tuple[int, int]], int]:
    """(batch, length) to count at, shortest first, and the task's median length in tokens; length 0 where inputs have none."""
    settings = artifact.program["preprocess"]
    if settings["kind"] != "text":
        return [(1, 0)], 0
    if settings.get("length"):
        return [(1, settings["length"])], 0
    encoder = encoder_for(artifact)
    lengths = [part.ids.__len__() for sample in samples[:400] for part in encoder.parts(sample)]
    median = max(1, round(statistics.median(lengths)))
    limit = settings["max_length"]
    return [(1, length) for length in sorted({min(SHORT, limit, median), max(min(LONG, limit), median)})], median


def _counts(
    artifact: Artifact, shape: tuple[int, int], samples: Sequence[Sample], profile: Profile, emulation: Emulated, store: Store
) -> Counts:
    given = artifact.program["preprocess"]["kind"] == "tensors"
    inputs = digest(wire(samples[0])) if given else ""
    feeds = feeds_of(artifact, samples[:1]) if given else fixed_feeds(artifact, *shape)
    return counted(artifact, feeds, {"shape": list(shape), "inputs": inputs}, profile, emulation, store)


def counted(artifact: Artifact, feeds: Feeds, told_by: Mapping[str, Any], profile: Profile, emulation: Emulated, store: Store) -> Counts:
    """Counts of one run of a single model, kept by its content and by `told_by`, which says what the feeds are."""
    caches = cache_shapes(profile)
    key = digest(
        {
            "counts": artifact.digest,
            "cpu": emulation.digest,
            "caches": [[cache.kib, cache.ways] for cache in caches],
            **told_by,
            "sources": sources_digest([*_counter_files(), Path(__file__)]),
        }
    )
    if kept := store.get_result(key):
        try:
            return Counts.from_json(kept)
        except (KeyError, TypeError, ValueError, AttributeError):
            pass  # damaged: counted again
    counts = count(
        emulation.command,
        emulation.python,
        emulator_env(emulation),
        artifact.model.main_file,
        feeds,
        caches=caches,
        disabled_optimizers=tuple(artifact.program.get("session", {}).get("disabled_optimizers", ())),
        plugin_folder=cache_root() / "devices" / "counter",
    )
    store.put_result(key, counts.to_json())
    return counts


def _stop_counting() -> None:
    """End this process's counting emulators: an interrupt need not have reached them."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "-plugin" in child.cmdline():
                child.kill()


def _counter_files() -> list[Path]:
    devices = resource("devices")
    here = Path(__file__).parent
    own = [here / "probes.py", here / "cost" / "counting.py", here / "cost" / "borders.py"]
    return [*sorted((devices / "emulation").glob("*.[ch]")), devices / "count_nodes.py", *own]


def _entry(before: Prediction, after: Prediction, batch: int, length: str, threads: int, runs: int) -> dict[str, Any]:
    together = ratio(after, before)
    return {
        "batch": batch,
        "length": length,
        "threads": threads,
        "baseline": {"ms": runs * before.ms, "low": runs * before.low, "high": runs * before.high},
        "candidate": {"ms": runs * after.ms, "low": runs * after.low, "high": runs * after.high, "bound": after.bound},
        "ratio": {"value": together.value, "low": together.low, "high": together.high},
        "unchecked": list(after.unchecked),
        "reasons": list(after.reasons),
    }


def _between(short: Counts, long: Counts, shapes: Sequence[tuple[int, int]], length: int) -> Counts:
    """Counts at a length between two."""
    low, high = shapes[0][1], shapes[-1][1]
    return between(short, long, (length - low) / (high - low) if high > low else 1.0)


def between(short: Counts, long: Counts, share: float) -> Counts:
    """Counts of an input whose size lies `share` of the way between two: of every node, in a straight line."""
    if share == 1.0 or len(short.nodes) != len(long.nodes):
        return long

    def mixed(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
        return {name: round(a.get(name, 0) * (1 - share) + b.get(name, 0) * share) for name in {*a, *b}}

    nodes = tuple(replace(b, amounts=mixed(a.amounts, b.amounts)) for a, b in zip(short.nodes, long.nodes, strict=True))
    return Counts(nodes, mixed(short.rest, long.rest), long.caches)


def _costliest(prediction: Prediction) -> list[dict[str, Any]]:
    nodes = sorted((node for node in prediction.nodes if node.op_type), key=lambda node: -node.ms)[:COSTLIEST]
    return [
        {"name": node.name, "op_type": node.op_type, "ms": node.ms, "share": node.ms / prediction.ms, "bound": node.bound} for node in nodes
    ]


def _roofline(counts: Mapping[str, Counts], profile: Profile, threads: int) -> dict[str, Any]:
    """Where both models stand under the device's roofs (Williams, Waterman, Patterson, CACM 2009): operations a byte from
    main memory, and operations a second."""
    core, _ = core_of(profile.cpu)
    cores = min(threads, profile.cpu.cores)
    points = {}
    for name, found in counts.items():
        total, ms = found.total, predict(found, profile, threads).ms
        operations = sum(total.get(kind, 0) * each for kind, each in OPERATIONS.items())
        missed = total.get(f"l{len(found.caches)}_misses", 0) * LINE_BYTES
        points[name] = {"operations": operations, "dram_bytes": missed, "gop_s": operations / ms / 1e6}
    per_cycle = {"float32": 8 * core.fma_f32_q_per_cycle, "int8": max(32 * core.dot_q_per_cycle, 16 * core.mul_int_q_per_cycle)}
    return {
        "points": points,
        "peaks_gop_s": {name: rate * cores * profile.cpu.clock_mhz / 1e3 for name, rate in per_cycle.items()},
        "bandwidth_gb_s": profile.memory.bandwidth_gb_s,
    }
