"""Talks with one device agent (`devices/agent.py`), wherever it runs: lines of JSON over its stdin and stdout.

Every answer has a time limit; an agent that dies, hangs, is killed for memory or prints rubbish is an error for a person.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from edgepipe.errors import DeviceError, EdgepipeError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.readers import Sample

CHUNK = 1 << 16
CLOSING_S = 0.5  # that an agent has to finish what it was asked, once nobody wants the answer
# What the far side's shell gives for a process that a signal ended is 128 + its number.
KILLED = {-signal.SIGKILL, 128 + signal.SIGKILL}
ILLEGAL = {-signal.SIGILL, 128 + signal.SIGILL}


@dataclass(frozen=True, slots=True)
class AgentPrediction:
    outputs: list[dict[str, np.ndarray]]
    model_ns: int
    total_ns: int
    word_starts: list[int] = field(default_factory=list)
    step_seconds: float = 0.0  # that a step of a sound lasts


class AgentModel:
    """One artifact opened by an agent process that `process` runs or leads to. `limit_s` bounds every answer."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], *, where: str, limit_s: float) -> None:
        self._process, self._log, self._where, self._limit_s = process, log, where, limit_s
        self._rest = b""
        self._asking = threading.Lock()
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)

    def opened(self, folder: str, threads: int, optimise: bool, exact: bool = False) -> Self:
        """This agent with the artifact of `folder` opened; it is closed when that fails."""
        try:
            self.ask({"do": "open", "folder": folder, "threads": threads, "optimise": optimise, "exact": exact})
        except BaseException:
            self.close()
            raise
        return self

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._asking:
            return self._ask(request)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            line = self._exchange(json.dumps(request).encode() + b"\n", str(request["do"]))
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        if not line:
            raise self._death(str(request["do"]))
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            fix = "something prints between the agent's answers (a shell's start-up file on the device?); make it silent"
            raise DeviceError(f"the agent answered rubbish: {line[:80].decode('utf-8', 'replace').strip()!r}", where=self._where, fix=fix)
        if "error" in answer:
            raise self._refusal(str(request["do"]), answer["error"])
        return answer

    def _exchange(self, data: bytes, doing: str) -> bytes:
        """Send one line and read one; both at once, since either pipe may be full."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        deadline = time.monotonic() + self._limit_s
        with selectors.DefaultSelector() as ready:
            ready.register(stdout, selectors.EVENT_READ)
            ready.register(stdin, selectors.EVENT_WRITE)
            parts = [self._rest]
            while b"\n" not in parts[-1]:
                left = deadline - time.monotonic()
                if left <= 0:
                    self._process.kill()
                    raise ResourceError(
                        f"the agent did not answer within {self._limit_s:.0f} s (asked to {doing})",
                        where=self._where,
                        fix="a smaller model or shorter inputs; if the device hangs, restart it",
                    )
                for key, _ in ready.select(left):
                    if key.fileobj is stdin:
                        data = data[os.write(stdin.fileno(), data[:CHUNK]) :]
                        if not data:
                            ready.unregister(stdin)
                    else:
                        part = os.read(stdout.fileno(), CHUNK)
                        if not part:
                            return b""
                        parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line

    def _death(self, doing: str) -> EdgepipeError:
        """Why the agent is gone, from how it ended and what it said last."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.seek(0)
        said = [line for line in self._log.read().decode("utf-8", "replace").strip().splitlines() if line.strip()]
        words = next((line for line in reversed(said) if not line.startswith("qemu-")), said[-1] if said else "no message")
        if code in KILLED or "MemoryError" in words or "bad_alloc" in words:
            what = f"the agent was killed while asked to {doing}, most likely for want of memory"
            return ResourceError(what, where=self._where, fix="a smaller model, or a device with more memory")
        if code in ILLEGAL:
            what = f"the agent used an instruction that this CPU lacks (asked to {doing})"
            return DeviceError(what, where=self._where, fix="an onnxruntime built for this CPU, or a profile whose cpu.isa is the device's")
        fix = "run again; if it repeats, run the bundle's run.py by itself there"
        return DeviceError(f"the agent died ({code}) while asked to {doing}: {words}", where=self._where, fix=fix)

    def _refusal(self, doing: str, error: str) -> EdgepipeError:
        first = error.splitlines()[0]
        if "MemoryError" in first or "bad_alloc" in first or "Failed to allocate memory" in first:
            return ResourceError(f"memory ran out while asked to {doing}: {first}", where=self._where, fix="a smaller model")
        return DeviceError(
            f"the agent could not {doing}: {first}",
            where=self._where,
            fix="see that the model's operators and inputs suit this runtime",
        )

    def _wire(self, sample: Sample) -> Sample:
        return wire(sample)

    def predict(self, samples: Sequence[Sample]) -> list[AgentPrediction]:
        results = self.ask({"do": "predict", "samples": [self._wire(sample) for sample in samples]})["results"]
        return [
            AgentPrediction(
                [arrays(one) for one in r["outputs"]], r["model_ns"], r["total_ns"], r.get("word_starts", []), r.get("step_seconds", 0.0)
            )
            for r in results
        ]

    def batch(self, samples: Sequence[Sample], length: int | None = None) -> dict[str, np.ndarray]:
        return arrays(self.ask({"do": "batch", "samples": [self._wire(sample) for sample in samples], "length": length})["outputs"])

    def repeat(self, feeds: Mapping[str, np.ndarray], times: int) -> list[int]:
        packed = {name: pack(value) for name, value in feeds.items()}
        return list(self.ask({"do": "repeat", "feeds": packed, "times": times})["times_ns"])

    def usage(self) -> tuple[int, float]:
        answer = self.ask({"do": "memory"})
        return int(answer["peak_bytes"]), float(answer["cpu_s"])

    def close(self) -> None:
        """Also while another thread waits for an answer, which then gets none."""
        if not self._asking.acquire(timeout=CLOSING_S):
            self._process.kill()
            self._asking.acquire()
        self._asking.release()
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


def wire(sample: Sample) -> Sample:
    """A sample as JSON; labels stay here, the device has no use for them."""
    kept = {key: value for key, value in sample.items() if key != "label"}
    if "tensors" in kept:
        kept["tensors"] = {name: pack(value) for name, value in kept["tensors"].items()}
    return kept


def pack(array: np.ndarray) -> dict[str, Any]:
    shape = list(array.shape)  # before ascontiguousarray, which makes scalars one-dimensional
    return {"dtype": array.dtype.name, "shape": shape, "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")}


def arrays(entries: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.frombuffer(base64.b64decode(e["data"]), dtype=e["dtype"]).reshape(e["shape"]) for name, e in entries.items()}
