"""The parent's side of the worker: starts it when first needed, and survives whatever happens to it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Any

from edgepipe.errors import EdgepipeError, Interrupted, PassError, ResourceError
from edgepipe.worker import Done, MeasureUnits, TimeForward, receive
from edgepipe.worker_context import Job, send

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from edgepipe.progress import Progress

# Nothing a library does in the worker may reach for the network, or start threads and bars of its own.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
# Threads that spin while they wait for each other cost a training step ten times its time when something else is running too
# (torch 2.13, two cores); on a quiet machine they gain nothing that could be measured.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class WorkerProcess:
    """One worker for a run's torch passes and one for the rest, so that ONNX passes do not carry torch's memory.

    A new one is started after a crash.
    """

    def __init__(self, log: Path, progress: Progress) -> None:
        self._log_path, self._progress = log, progress
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._holds_torch = False

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def ask(self, request: Any, what: str) -> Done:
        """Send one request and wait for its result; raises what the worker raised, or what became of the worker."""
        job = request.job if isinstance(request, MeasureUnits | TimeForward) else request
        wants_torch = isinstance(job, Job) and job.artifact.model.format == "torch"
        if self._holds_torch and not wants_torch:
            self.close()
        process = self._started()
        self._holds_torch = wants_torch
        assert process.stdin is not None and process.stdout is not None
        try:
            send(process.stdin, request)
            while True:
                kind, *rest = receive(process.stdout)
                if kind == "progress":
                    self._progress.update(what, *rest)
                    continue
                result = rest[0]
                if isinstance(result, EdgepipeError):
                    raise result
                assert isinstance(result, Done)
                return result
        except (EOFError, BrokenPipeError):
            raise self._death(request, process) from None
        except KeyboardInterrupt:
            self.close(kill=True)
            raise Interrupted("interrupted; what was finished is kept, the next run goes on from there") from None

    def close(self, *, kill: bool = False) -> None:
        process, self._process = self._process, None
        if process is not None:
            if kill:
                process.kill()
            if process.stdin is not None:
                try:
                    process.stdin.close()
                except OSError:
                    pass
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._log = self._log_path.open("ab")
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from edgepipe.worker import main; main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**PATIENT, **os.environ, **QUIET},
            )
        return self._process

    def _death(self, request: Any, process: subprocess.Popen[bytes]) -> EdgepipeError:
        code = process.wait()
        self.close()
        where = f"pass {request.name}" if isinstance(request, Job) else "worker"
        if code == -9:
            return ResourceError(
                "its process was killed, as the system does when memory runs out",
                where=where,
                fix="use a machine with more memory, or a smaller model",
            )
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return PassError(
            f"its process crashed in native code ({how}); last lines of its log: {self._last_words()}",
            where=where,
            fix="run again; if it repeats, leave the pass out and report it",
        )

    def _last_words(self) -> str:
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-400:] or "none"
