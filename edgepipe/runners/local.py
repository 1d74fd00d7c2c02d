"""The local runner: the device agent in a process of its own on this machine."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from edgepipe.errors import DeviceError
from edgepipe.profile import HOST, runs_here
from edgepipe.resources import resource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.profile import Profile
    from edgepipe.readers import Sample


def make(profile: Profile) -> LocalRunner:
    return LocalRunner(profile.name, runs_here(profile))


@dataclass(frozen=True, slots=True)
class LocalPrediction:
    outputs: list[dict[str, np.ndarray]]
    model_ns: int
    total_ns: int
    word_starts: list[int] = field(default_factory=list)


class LocalRunner:
    """Runs artifacts where they lie in the store: as the device itself, or standing in for one."""

    name = "local"

    def __init__(self, profile: str = HOST, here: bool = True) -> None:
        self.provenance = "measured" if here else "host"
        self.doubt = "" if here else f"no runner reaches {profile} from here yet; this machine stood in"

    def push(self, artifact: Artifact) -> Path:
        return artifact.model.folder.parent

    def open(self, folder: Path, *, threads: int, optimise: bool = True) -> AgentModel:
        log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the model
        process = subprocess.Popen(
            [sys.executable, str(resource("devices") / "agent.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
        )
        model = AgentModel(process, log)
        try:
            model.ask({"do": "open", "folder": str(folder), "threads": threads, "optimise": optimise})
        except BaseException:
            model.close()
            raise
        return model


class AgentModel:
    """Talks with one agent process in lines of JSON."""

    def __init__(self, process: subprocess.Popen[str], log: IO[bytes]) -> None:
        self._process, self._log = process, log

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            words = self._log.read().decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
            raise DeviceError(
                f"the agent died ({self._process.wait()}): {words[0]}",
                where="runner local",
                fix="run again; if it repeats, run the bundle's run.py by itself",
            )
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise DeviceError("the agent answered rubbish", where="runner local", fix="run again") from None
        if "error" in answer:
            raise DeviceError(
                f"the agent could not {request['do']}: {answer['error'].splitlines()[0]}",
                where="runner local",
                fix="see that the model's operators and inputs suit this runtime",
            )
        return answer

    def predict(self, samples: Sequence[Sample]) -> list[LocalPrediction]:
        results = self.ask({"do": "predict", "samples": [_wire(sample) for sample in samples]})["results"]
        return [
            LocalPrediction([_arrays(one) for one in r["outputs"]], r["model_ns"], r["total_ns"], r.get("word_starts", [])) for r in results
        ]

    def batch(self, samples: Sequence[Sample], length: int | None = None) -> dict[str, np.ndarray]:
        return _arrays(self.ask({"do": "batch", "samples": [_wire(sample) for sample in samples], "length": length})["outputs"])

    def repeat(self, feeds: Mapping[str, np.ndarray], times: int) -> list[int]:
        packed = {name: _pack(value) for name, value in feeds.items()}
        return list(self.ask({"do": "repeat", "feeds": packed, "times": times})["times_ns"])

    def usage(self) -> tuple[int, float]:
        answer = self.ask({"do": "memory"})
        return int(answer["peak_bytes"]), float(answer["cpu_s"])

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _wire(sample: Sample) -> Sample:
    """A sample as JSON; labels stay here, the device has no use for them."""
    kept = {key: value for key, value in sample.items() if key != "label"}
    if "tensors" in kept:
        kept["tensors"] = {name: _pack(value) for name, value in kept["tensors"].items()}
    return kept


def _pack(array: np.ndarray) -> dict[str, Any]:
    shape = list(array.shape)  # before ascontiguousarray, which makes scalars one-dimensional
    return {"dtype": array.dtype.name, "shape": shape, "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")}


def _arrays(entries: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.frombuffer(base64.b64decode(e["data"]), dtype=e["dtype"]).reshape(e["shape"]) for name, e in entries.items()}
