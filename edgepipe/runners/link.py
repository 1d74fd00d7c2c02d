"""The way to a device's bootstrap (`devices/bootstrap.py`): a command leads to its shell, everything else goes over
stdin and stdout."""

from __future__ import annotations

import base64
import json
import os
import secrets
import selectors
import shlex
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgepipe.errors import DeviceError, EdgepipeError, ResourceError
from edgepipe.resources import resource
from edgepipe.runners.agent import AgentModel, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgepipe.readers import Sample

    # What the command's end code and last words mean, as an error for a person; None where it does not know.
    Explain = Callable[[int, str], EdgepipeError | None]

START_S, ANSWER_S, PING_S = 60.0, 600.0, 60.0
NOISE_BYTES = 1 << 20  # that start-up files may print before the bootstrap speaks
CHANGED = "a file changed on its way to the device"
IN_USE = "another build uses the device"
OLD_PYTHON = "edgepipe needs Python 3.8, and this is "
# One line without characters that any login shell takes for its own.
LOADER = f'import sys;sys.version_info<(3,8) and sys.exit("{OLD_PYTHON}"+sys.version[:6]);exec(sys.stdin.buffer.read(int(sys.argv[1])))'


def bootstrap_source() -> bytes:
    """The bootstrap with the module it imports, as one text."""
    folder = resource("devices")
    board, main = ((folder / name).read_text(encoding="utf-8") for name in ("board.py", "bootstrap.py"))
    head = "import sys,types\nsys.path[:]=filter(None,sys.path)\nsys.dont_write_bytecode=True\nsys.modules['board']=types.ModuleType('board')\n"
    return f"{head}exec({board!r},sys.modules['board'].__dict__)\n{main}".encode()


def start(reach: Callable[[str], Sequence[str]], python: str, *, where: str, explain: Explain) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """A bootstrap that listens on the device, and its log. `reach` gives the command that runs a line in the device's
    shell; `python` is a line of that shell already."""
    source, marker = bootstrap_source(), f"edgepipe-agent-{secrets.token_hex(8)}"
    command = reach(f"exec {python} -c {shlex.quote(LOADER)} {len(source)} {marker}")
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the model
    try:
        # In a session of its own: an interrupt at the keyboard is for this process, which then tidies up over there.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        log.close()
        raise DeviceError(
            f"{command[0]} is not on this machine", where=where, fix=f"install {command[0]} (Debian: openssh-client, adb)"
        ) from None
    try:
        said = _until(process, source, f"{marker}\n".encode())
        if said is not None:
            code = _code(process)
            raise _told(code, _words(log), said.decode("utf-8", "replace"), where, explain)
    except BaseException:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, log):
            if stream is not None:
                stream.close()
        raise
    return process, log


def _until(process: subprocess.Popen[bytes], data: bytes, marker: bytes) -> bytes | None:
    """Send what loads the bootstrap and read up to its marker; else what came instead."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None
    os.set_blocking(stdin.fileno(), False)
    found, deadline = b"", time.monotonic() + START_S
    with selectors.DefaultSelector() as ready:
        ready.register(stdout, selectors.EVENT_READ)
        ready.register(stdin, selectors.EVENT_WRITE)
        while not found.endswith(marker):
            events = ready.select(max(0.0, deadline - time.monotonic()))
            if not events or len(found) > NOISE_BYTES:
                return found
            for key, _ in events:
                if key.fileobj is stdout:
                    part = os.read(stdout.fileno(), 1 << 16)
                    if not part:
                        return found
                    found += part
                else:
                    try:
                        data = data[os.write(stdin.fileno(), data) :]
                    except (BrokenPipeError, ConnectionResetError):
                        data = b""
                    if not data:
                        ready.unregister(stdin)
    return None


def _code(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        return None


def _words(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode("utf-8", "replace").strip()


def _told(code: int | None, words: str, printed: str, where: str, explain: Explain) -> EdgepipeError:
    """Why there is no bootstrap."""
    last = (words or printed.strip() or "nothing").splitlines()[-1][:300]
    if code is None:
        return ResourceError(
            f"the device did not answer within {START_S:.0f} s; it last said: {last}",
            where=where,
            fix="log in by hand and see what its shell waits for (a start-up file that starts or asks something?)",
        )
    if (known := explain(code, words)) is not None:
        return known
    if OLD_PYTHON in words:
        version = words.rpartition(OLD_PYTHON)[2].split()[0]
        return DeviceError(
            f"the device's python3 is {version}, and the agent needs 3.8",
            where=where,
            fix="install a newer one there and name it in EDGEPIPE_DEVICE_PYTHON",
        )
    if code in (126, 127):
        return DeviceError(
            f"the device has no python3: {last}",
            where=where,
            fix="install it there (Debian: apt-get install python3), or name one in EDGEPIPE_DEVICE_PYTHON",
        )
    return DeviceError(
        f"the device's shell ended ({code}) before the agent began; it last said: {last}",
        where=where,
        fix="log in by hand and run python3 there",
    )


class RemoteModel(AgentModel):
    """An agent at the far end, whose death may be the way's."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], *, where: str, limit_s: float, explain: Explain) -> None:
        super().__init__(process, log, where=where, limit_s=limit_s)
        self._explain = explain

    def _wire(self, sample: Sample) -> Sample:
        """The file of an image or a sound is not over there, so its bytes go along."""
        kept = wire(sample)
        for kind in ("image", "audio"):
            if kind in kept:
                kept[f"{kind}_data"] = base64.b64encode(Path(kept[kind]).read_bytes()).decode("ascii")
        return kept

    def _death(self, doing: str) -> EdgepipeError:
        code = _code(self._process)
        words = _words(self._log)
        known = None if code is None else self._explain(code, words)
        if "`GLIBC_" in words or "`GLIBCXX_" in words:
            fix = "a newer system there, or packages built for the one it has"
            known = DeviceError(
                f"the device's C library is too old for its packages: {words.splitlines()[-1][:300]}", where=self._where, fix=fix
            )
        return known or super()._death(doing)


class Control(RemoteModel):
    """The bootstrap that holds the device: files, facts, state."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], *, where: str, explain: Explain) -> None:
        super().__init__(process, log, where=where, limit_s=ANSWER_S, explain=explain)
        self._turn, self._over = threading.Lock(), threading.Event()
        threading.Thread(target=self._stay, daemon=True).start()

    def send(self, do: str, data: bytes = b"", **more: Any) -> dict[str, Any]:
        """One request, with bytes behind it."""
        self._data = data
        return self.ask({"do": do, **more, "bytes": len(data)})

    def _exchange(self, data: bytes, doing: str) -> bytes:
        with self._turn:
            return super()._exchange(data + self._data, doing)

    def _stay(self) -> None:
        """Say now and then that we are here; the device tidies up when nobody does."""
        stdin = self._process.stdin
        while not self._over.wait(PING_S):
            with self._turn:
                try:
                    os.write(stdin.fileno(), b'{"do": "ping"}\n') if stdin is not None else None
                except (OSError, ValueError):
                    return

    def leave(self, *, keep: bool) -> None:
        """Have the device tidied up, and wait until it is."""
        self._over.set()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            with self._turn:
                os.write(stdin.fileno(), json.dumps({"do": "bye", "keep": keep}).encode() + b"\n")
            stdin.close()
            self._process.wait(timeout=30)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            pass
        self.close()

    def _refusal(self, doing: str, error: str) -> EdgepipeError:
        kind, _, what = error.partition(": ")
        return refusal(kind, what, doing, self._where)


def refusal(kind: str, what: str, doing: str, where: str) -> EdgepipeError:
    """What the bootstrap refused, as an error for a person."""
    if kind == "disk":
        return ResourceError(f"the device's disk is full (asked to {doing}: {what})", where=where, fix="free some space there")
    if kind == "locked":
        told: Mapping[str, Any] = {}
        try:
            told = json.loads(what)
        except ValueError:
            pass
        who = f"{told['user']} on {told['machine']}, process {told['process']}, since {told['since']}" if "user" in told else what
        fix = "wait for that build; if it was killed, the device frees itself within three minutes"
        return DeviceError(f"{IN_USE} ({who})", where=where, fix=fix)
    if kind == "base":
        return DeviceError(f"the device has no folder that can be written to ({what})", where=where, fix="set TMPDIR there to one that can")
    if kind == "changed":
        return DeviceError(f"{CHANGED}: {what}", where=where, fix="run again; if it repeats, check the device's disk")
    return DeviceError(f"the device could not {doing}: {what}", where=where, fix="run again; if it repeats, log in by hand and look there")
