"""One job of the worker, and what a pass gets while it runs."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from edgepipe.errors import PassError
from edgepipe.segments import open_in_segments
from edgepipe.weights import ONE_FILE_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.config import Data
    from edgepipe.data import Split
    from edgepipe.passes import PassSpec
    from edgepipe.readers import Sample

    Feeds = Mapping[str, np.ndarray]

DECIDED = "decided"  # what passes decided about their own options, among the figures of their runs


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
    exact: bool = False  # this machine stands in for a CPU that sums int8 products in 32 bits


def send(stream: IO[bytes], message: object) -> None:
    payload = pickle.dumps(message)
    stream.write(struct.pack("<Q", len(payload)) + payload)
    stream.flush()


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

    def decide(self, option: str, value: Any) -> None:
        self.figures.setdefault(DECIDED, {})[option] = value

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
            whole = (artifact, optimise, adapter_weights, self._job.threads, self._job.exact)
            parts = large and open_in_segments(artifact, optimise, self._job.threads, self._job.exact)
            self._opened[key] = parts or open_model(*whole)
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


def open_model(artifact: Artifact, optimise: bool, adapter_weights: Sequence[float], threads: int, exact: bool = False) -> Any:
    """A callable feeds → outputs, torch and ONNX alike. `exact`: as for `open_session` in devices/driver.py."""
    if artifact.model.format == "onnx":
        from edgepipe.driver import driver_module

        disabled = artifact.program.get("session", {}).get("disabled_optimizers", ())
        session = driver_module().open_session(str(artifact.model.main_file), threads, disabled, optimise, exact)
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
