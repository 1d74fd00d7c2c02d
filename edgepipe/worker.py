"""The worker process of a run: passes and their checks happen here, so that a crash or a kill spares the parent.

Speaks length-prefixed pickles over stdin and stdout, its log on stderr.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgepipe.artifact import Artifact
from edgepipe.errors import EdgepipeError, PassError, ResourceError
from edgepipe.worker_context import Job, WorkerContext, send

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from edgepipe.passes import PassSpec
    from edgepipe.readers import Sample

    Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class MeasureFusions:
    threads: int


@dataclass(frozen=True, slots=True)
class MeasureUnits:
    """Importance of every head and neuron of a torch encoder. `job` is of a pass that would cut some."""

    job: Job


@dataclass(frozen=True, slots=True)
class TimeForward:
    """Seconds that the job's model takes for one batch of its training data."""

    job: Job


@dataclass(frozen=True, slots=True)
class CountFlops:
    """Count the arithmetic of one inference of an ONNX artifact; `sample` where its inputs are given as tensors."""

    artifact: Artifact
    threads: int
    sample: Sample | None = None


@dataclass(frozen=True, slots=True)
class Done:
    value: Any
    checks: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    incomplete: str = ""


def receive(stream: IO[bytes]) -> Any:
    """The next message; EOFError when the other side is gone. The pipe is private to parent and child."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0]))


def run_job(job: Job, answers: IO[bytes]) -> Done:
    from edgepipe.checks import run_checks
    from edgepipe.passes import get_pass, load_plugin

    for plugin in job.plugins:
        load_plugin(Path(plugin))
    spec = get_pass(job.name)
    options = spec.options.model_validate(job.options)
    ctx = WorkerContext(job, spec, answers)
    reset_peak()
    started = time.perf_counter()
    with told_of(job, "it raised"):
        after = spec.function(job.artifact, options, ctx)
    with told_of(job, "what it returned is not plain data:"):
        check_result(spec, job.artifact, after)
    with told_of(job, "what it gave cannot be run:"):
        checks = [check.to_json() for check in run_checks(spec, job.artifact, after, options, ctx)]
    return Done(after, checks, time.perf_counter() - started, peak_bytes(), ctx.figures, ctx.why_incomplete)


@contextmanager
def told_of(job: Job, what: str) -> Iterator[None]:
    """Whatever a pass raises, as a `PassError` that names it; memory that ran out stays a MemoryError."""
    try:
        yield
    except (EdgepipeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise MemoryError from error
        if "no space left" in str(error).lower():
            raise ResourceError("the disk is full", where=f"pass {job.name}", fix="free some space, or `edgepipe cache prune`") from None
        traceback.print_exc()
        reason = " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
        raise PassError(f"{what} {reason}", where=f"pass {job.name}", fix="the run log has the traceback") from None


def check_result(spec: PassSpec, before: Artifact, after: Any) -> None:
    where = f"pass {spec.name}"
    if not isinstance(after, Artifact):
        raise PassError(f"it returned {type(after).__name__}, not an Artifact", where=where, fix="return artifact.with_component(…)")
    for role, wanted in spec.gives.items():
        got = after.components.get(role)
        if got is None or got.format != wanted:
            raise PassError(f'it gives no component "{role}" of format {wanted}', where=where, fix="return what the pass declares in gives")
    if after.digest == before.digest:
        raise PassError("it changed nothing", where=where, fix="leave it out of the recipe, or change its options")


def out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in ("can't allocate memory", "cannot allocate memory", "bad_alloc", "failed to allocate memory"))


def reset_peak() -> None:
    """Forget earlier peaks, so that each pass shows its own (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _die_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def answer(request: Any, answers: IO[bytes]) -> Any:
    if isinstance(request, MeasureFusions):
        from edgepipe.cost.fusions import measure_fusions

        return Done(measure_fusions(request.threads))
    if isinstance(request, MeasureUnits):
        from edgepipe.worker_measures import unit_changes

        return Done(unit_changes(request.job, answers))
    if isinstance(request, TimeForward):
        from edgepipe.worker_measures import seconds_forward

        return Done(seconds_forward(request.job))
    if isinstance(request, CountFlops):
        from edgepipe.cost.flops import count_flops

        return Done(count_flops(request.artifact, request.threads, request.sample))
    return run_job(request, answers)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            request = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            result: Any = answer(request, answers)
        except EdgepipeError as error:
            result = error
        except MemoryError:
            result = ResourceError(
                "memory ran out", where=f"pass {getattr(request, 'name', '')}", fix="use a machine with more memory, or a smaller model"
            )
        except Exception as error:  # one request must not end the worker
            traceback.print_exc()
            what = f"it raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            result = PassError(what, where=type(request).__name__, fix="the run log has the traceback")
        send(answers, ("result", result))
