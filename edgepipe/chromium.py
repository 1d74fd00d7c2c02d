"""Headless Chromium, one page of it, over the DevTools protocol through pipes it inherits: no port, no library.

The browser ends when its pipes do, so it never outlives this process however that ends; the shell it runs under
then removes its folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from edgepipe.errors import DeviceError, EdgepipeError, ResourceError

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
MAC_APPS = ("/Applications/Chromium.app/Contents/MacOS/Chromium", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
INSTALL = "brew install --cask chromium" if sys.platform == "darwin" else "apt-get install chromium"
WHERE = "runner browser"
START_S = 60
# Nothing is looked up, reported or updated; a page that is not on screen runs as fast as one that is.
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-startup-window",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-hang-monitor",
    "--disable-dev-shm-usage",  # small in containers
    "--disable-gpu",
    "--mute-audio",
    "--password-store=basic",
    "--use-mock-keychain",
)
# stdin and stdout are the pipes that the browser wants as 3 and 4. Ctrl-C is the parent's business.
SHELL = 'trap "" INT; folder=$1; shift; "$@" 3<&0 4>&1 </dev/null >&2; code=$?; rm -rf "$folder"; exit $code'


def find_chromium() -> Path | None:
    """The browser that `EDGEPIPE_CHROMIUM` names, or one that is installed."""
    named = os.environ.get("EDGEPIPE_CHROMIUM")
    places = [named] if named else [shutil.which(name) or "" for name in NAMES] + list(MAC_APPS)
    return next((Path(place) for place in places if place and os.access(place, os.X_OK) and Path(place).is_file()), None)


@cache
def chromium_version() -> str:
    """What the browser calls itself: Chromium 156.0.8078.79. Raises `DeviceError` when there is none."""
    try:
        done = subprocess.run([str(_chromium()), "--version"], capture_output=True, text=True, timeout=START_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "Chromium of unknown version"
    return " ".join(done.stdout.split()[:2])


def _chromium() -> Path:
    binary = find_chromium()
    if binary is None:
        named = os.environ.get("EDGEPIPE_CHROMIUM")
        what = f"EDGEPIPE_CHROMIUM names {named}, which is no program" if named else "Chromium is not installed"
        raise DeviceError(what, where=WHERE, fix=f"{INSTALL}, or name it with EDGEPIPE_CHROMIUM")
    return binary


class Page:
    """One page in a browser of its own. Raises `DeviceError` when it cannot start or dies, `ResourceError` when time or memory runs out."""

    def __init__(self) -> None:
        binary = _chromium()
        flags = [*FLAGS, *shlex.split(os.environ.get("EDGEPIPE_CHROMIUM_FLAGS", ""))]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to start as root with it; it opens our own page only
        self.folder = Path(tempfile.mkdtemp(prefix="edgepipe-chromium-"))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the page
        self._received, self._count, self._session = b"", 0, ""
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", SHELL, "sh", str(self.folder), str(binary), f"--user-data-dir={self.folder}", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self.pid = self._process.pid
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        try:
            target = self.send("Target.createTarget", {"url": "about:blank"}, limit_s=START_S)["targetId"]
            self._session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
            for domain in ("Inspector", "Page", "Runtime"):
                self.send(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def go(self, url: str, limit_s: float = START_S) -> None:
        """Open the address, until its scripts and styles are loaded. Raises when nothing is there."""
        if problem := self.send("Page.navigate", {"url": url}, limit_s=limit_s).get("errorText"):
            raise DeviceError(f"the page cannot be opened: {problem}", where=WHERE, fix="run again")
        loaded = "new Promise((go) => document.readyState === 'complete' ? go() : addEventListener('load', () => go()))"
        self.evaluate(loaded, limit_s, doing="load")

    def evaluate(self, expression: str, limit_s: float = START_S, *, doing: str = "answer") -> Any:
        """The JSON value of a JavaScript expression; a promise is waited for. Raises with its message when it throws."""
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.send("Runtime.evaluate", options, limit_s=limit_s, doing=doing)
        if "exceptionDetails" in answer:
            raise _thrown(answer["exceptionDetails"])
        return answer["result"].get("value")

    def send(self, method: str, params: dict[str, Any] | None = None, *, limit_s: float = START_S, doing: str = "answer") -> dict[str, Any]:
        """One command of the DevTools protocol and its answer."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params or {}}
        if self._session:
            message["sessionId"] = self._session
        deadline = time.monotonic() + limit_s
        late = ResourceError(f"the page did not {doing} within {limit_s:.0f} s", where=WHERE, fix="a smaller model or shorter inputs")
        self._write(json.dumps(message).encode() + b"\0", deadline, late)
        while True:
            answer = self._read(deadline, late)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise DeviceError(f"the browser refused {method}: {answer['error'].get('message')}", where=WHERE, fix="update Chromium")
                result: dict[str, Any] = answer["result"]
                return result
            if answer.get("method") == "Inspector.targetCrashed":
                what = f"the page crashed while it should {doing}; most often memory ran out"
                raise ResourceError(what, where=WHERE, fix="a smaller model, or more free memory")
            if answer.get("method") == "Runtime.exceptionThrown":
                raise _thrown(answer["params"]["exceptionDetails"])

    def _write(self, data: bytes, deadline: float, late: EdgepipeError) -> None:
        view = memoryview(data)
        try:
            while view:
                if not select.select([], [self._to], [], max(0.0, deadline - time.monotonic()))[1]:
                    raise late
                view = view[os.write(self._to, view) :]
        except BrokenPipeError:
            raise self._died() from None

    def _read(self, deadline: float, late: EdgepipeError) -> dict[str, Any]:
        """The next message."""
        parts = [self._received]
        while b"\0" not in parts[-1]:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._received = b"".join(parts)
                raise late
            if not (data := os.read(self._from, 1 << 20)):
                raise self._died()
            parts.append(data)
        message, self._received = b"".join(parts).split(b"\0", 1)
        try:
            found: dict[str, Any] = json.loads(message)
        except ValueError:
            raise DeviceError("the browser answered rubbish", where=WHERE, fix="run again") from None
        return found

    def _died(self) -> DeviceError:
        self.close()
        words = [line for line in self._last_words if line and "dbus" not in line.lower()][-1:] or ["no message"]
        fix = "run again; if it repeats, start the browser by hand"
        if any("sandbox" in line.lower() for line in self._last_words):
            fix = 'allow user namespaces, or set EDGEPIPE_CHROMIUM_FLAGS="--no-sandbox"'
        return DeviceError(f"Chromium died ({self._process.returncode}): {words[0][:300]}", where=WHERE, fix=fix)

    def heap_bytes(self) -> int:
        """What scripts of the page hold after a garbage collection: objects, DOM and array buffers, without WebAssembly's memory.

        `performance.measureUserAgentSpecificMemory` counts both, but answers after a minute (Chromium 156).
        """
        self.send("HeapProfiler.collectGarbage")
        usage = self.send("Runtime.getHeapUsage")
        return int(usage["usedSize"] + usage.get("embedderHeapUsedSize", 0) + usage.get("backingStorageSize", 0))

    @property
    def cpu_seconds(self) -> float:
        """What the browser's processes have used, those that live."""
        try:
            family = psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:
            return 0.0
        total = 0.0
        for process in family:
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:2])
        return total

    _last_words: tuple[str, ...] = ()

    def close(self) -> None:
        """End the browser and everything it left; again does nothing."""
        if self._log.closed:
            return
        try:
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=3)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            self._log.seek(0)
            self._last_words = tuple(self._log.read().decode("utf-8", "replace").splitlines()[-20:])
            self._log.close()
            shutil.rmtree(self.folder, ignore_errors=True)


def _thrown(details: dict[str, Any]) -> DeviceError:
    exception = details.get("exception", {})
    text = str(exception.get("description") or exception.get("value") or details.get("text", "no message")).splitlines()[0]
    return DeviceError(f"the page failed: {text}", where=WHERE, fix="run again; if it repeats, report it")
