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
from edgepipe.segments import open_in_segments
from edgepipe.weights import ONE_FILE_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from edgepipe.config import Data
    from edgepipe.data import Split
    from edgepipe.passes import PassSpec
    from edgepipe.readers import Sample

    Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Job:
    """One pass to run on one artifact."""

    name: str
    options: dict[str, Any]
    artifact: Artifact
    workdir: Path
    data: Data
    columns: tuple[str, ...]
    facts: dict[str, Any]
    costs: dict[str, float]
    threads: int
    plugins: tuple[str, ...] = ()
    teacher: Artifact | None = None
    checkpoints: Path | None = None
    deadline: float | None = None


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


TIMED_SAMPLES, TIMED_BATCHES = 256, 4


def send(stream: IO[bytes], message: object) -> None:
    payload = pickle.dumps(message)
    stream.write(struct.pack("<Q", len(payload)) + payload)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """The next message; EOFError when the other side is gone. The pipe is private to parent and child."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0]))


class WorkerContext:
    """What a pass gets: see `edgepipe.context.Context`."""

    def __init__(self, job: Job, spec: PassSpec, answers: IO[bytes]) -> None:
        from edgepipe.data import Splits

        self.workdir = job.workdir
        self.facts: Mapping[str, Any] = job.facts
        self.deadline = job.deadline
        self.figures: dict[str, Any] = {}
        self.why_incomplete = ""
        self._job, self._spec, self._answers = job, spec, answers
        self._splits = Splits(job.data, job.columns)
        self._probes: dict[str, list[Feeds]] = {}
        self._opened: dict[tuple[str, bool, tuple[float, ...]], Any] = {}

    @property
    def teacher(self) -> Artifact:
        if self._job.teacher is None:
            raise PassError(
                "it has no uncompressed model to learn from", where=f"pass {self._spec.name}", fix="register it with teacher=True"
            )
        return self._job.teacher

    @property
    def checkpoints(self) -> Path:
        folder = self._job.checkpoints or self.workdir / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def record(self, name: str, value: Any) -> None:
        self.figures[name] = value

    def incomplete(self, why: str) -> None:
        self.why_incomplete = why

    def data(self, split: Split) -> list[Sample]:
        if split not in (*self._spec.data, *self._spec.optional_data):
            raise PassError(
                f"the pass asked for {split} data without declaring it",
                where=f"pass {self._spec.name}",
                fix=f'register it with data=("{split}",)',
            )
        return self._splits(split)

    def has(self, split: Split) -> bool:
        return self._splits.has(split)

    def cost(self, operator: str) -> float | None:
        return self._job.costs.get(operator)

    def run(self, artifact: Artifact, *, optimise: bool = True, adapter_weights: Sequence[float] = ()) -> Any:
        key = (artifact.digest, optimise, tuple(adapter_weights))
        if key not in self._opened:
            if len(self._opened) >= 2:  # a check compares two models; more would only hold memory
                self._opened.pop(next(iter(self._opened)))
            large = max(artifact.model.size_bytes, self._job.artifact.model.size_bytes) > ONE_FILE_LIMIT_BYTES
            whole = (artifact, optimise, adapter_weights, self._job.threads)
            self._opened[key] = (large and open_in_segments(artifact, optimise, self._job.threads)) or open_model(*whole)
        return self._opened[key]

    def feeds(self, artifact: Artifact, samples: Sequence[Sample]) -> Feeds:
        from edgepipe.probes import feeds_of

        return feeds_of(artifact, samples)

    def runs(self, artifact: Artifact, samples: Sequence[Sample]) -> Iterator[Feeds]:
        from edgepipe.probes import single_runs

        return single_runs(artifact, samples)

    def probes(self, artifact: Artifact) -> list[Feeds]:
        from edgepipe.probes import probe_feeds

        key = artifact.digest
        if key not in self._probes:
            split = self._splits.to_look_at
            self._probes[key] = probe_feeds(artifact, self._splits(split) if split else [])
        return self._probes[key]

    def progress(self, what: str, done: int = 0, total: int = 0) -> None:
        send(self._answers, ("progress", what, done, total))


def open_model(artifact: Artifact, optimise: bool, adapter_weights: Sequence[float], threads: int) -> Any:
    """A callable feeds → outputs, torch and ONNX alike."""
    if artifact.model.format == "onnx":
        from edgepipe.driver import driver_module

        disabled = artifact.program.get("session", {}).get("disabled_optimizers", ())
        session = driver_module().open_session(str(artifact.model.main_file), threads, disabled, optimise)
        names = [output.name for output in session.get_outputs()]
        taken = {entry.name for entry in session.get_inputs()}  # what fix-inputs made a constant is no input any more

        def run_onnx(feeds: Feeds) -> dict[str, np.ndarray]:
            given = {name: value for name, value in feeds.items() if name in taken}
            return dict(zip(names, session.run(names, given), strict=True))

        return run_onnx
    from edgepipe.loader import load_torch

    module = load_torch(artifact, adapter_weights=adapter_weights)

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        import torch

        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
            plain = not hasattr(module, "config")
            output = module(*tensors.values()) if plain else module(**tensors)
        values = output if isinstance(output, dict) else {"output": output[0] if isinstance(output, tuple) else output}
        return {name: value.numpy() for name, value in values.items() if isinstance(value, torch.Tensor)}

    return run


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


def _units(job: Job, answers: IO[bytes]) -> list[dict[str, Any]]:
    """Of each layer: `heads` and `ffn`, what the loss would move by without each, its `head_size` and the `hidden` width."""
    from edgepipe.importance.taylor import loss_changes
    from edgepipe.loader import load_torch
    from edgepipe.passes import get_pass
    from edgepipe.structure import encoder_layers, hidden_width

    module = load_torch(job.artifact)
    with told_of(job, "measuring what matters raised"):
        changes = loss_changes(module, job.artifact, WorkerContext(job, get_pass(job.name), answers))
    shapes = [{"head_size": layer.head_size, "hidden": hidden_width(module)} for layer in encoder_layers(module)]
    return [change | shape for change, shape in zip(changes, shapes, strict=True)]


def _seconds_forward(job: Job) -> float:
    import torch

    from edgepipe.data import Splits
    from edgepipe.loader import load_torch
    from edgepipe.training.batches import Batches
    from edgepipe.training.outputs import called

    module = load_torch(job.artifact)
    samples = Splits(job.data, job.columns)("train")
    batches = Batches(job.artifact, samples[:: max(1, len(samples) // TIMED_SAMPLES)], job.options.get("batch_size", 32))
    inputs = [batch.inputs for batch, _ in zip(batches.epoch(0), range(TIMED_BATCHES + 1), strict=False)]
    with torch.no_grad():
        called(module, inputs[0])  # the first run makes what later ones find
        started = time.perf_counter()
        for one in inputs[1:] or inputs:
            called(module, one)
    return (time.perf_counter() - started) / max(1, len(inputs) - 1)


def answer(request: Any, answers: IO[bytes]) -> Any:
    if isinstance(request, MeasureFusions):
        from edgepipe.cost.fusions import measure_fusions

        return Done(measure_fusions(request.threads))
    if isinstance(request, MeasureUnits):
        return Done(_units(request.job, answers))
    if isinstance(request, TimeForward):
        return Done(_seconds_forward(request.job))
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
