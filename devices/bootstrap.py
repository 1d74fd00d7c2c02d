"""What edgepipe runs on a device it reaches over a wire: keeps files there, tells what the device is, starts agents.

Comes in over stdin, after a loader on the command line; standard library only, any Python from 3.8. It first prints its
marker, so that whatever a shell's start-up file prints is told apart. Then one request a line as JSON, some with bytes
behind it, and one answer a line. When its stdin ends or falls silent, it ends the agents and leaves nothing behind; only
a push that was cut off keeps what came, so that the next goes on there.

BASE/lock                  held while a build uses the device; tells who
BASE/files/<sha256>        what was pushed (.part: not yet whole)
BASE/run/<digest>/         an artifact laid out; run/agent/ the agent and driver; run/site/ Python packages pushed along
BASE/pids/<pid>            agents that run
"""

import errno
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import stat
import sys
from contextlib import suppress

from board import facts, listed, read, slowed, state

IDLE_S = 180  # the other side says something every minute; so it, or the way to it, is gone
SAMPLE_S = 5
FULL = (errno.ENOSPC, errno.EDQUOT)


class Refused(Exception):
    """An answer for a person; `kind` tells the other side what to advise."""

    def __init__(self, kind, what):
        Exception.__init__(self, what)
        self.kind = kind


class Requests:
    """Lines and bytes from stdin, with nothing read ahead of what the agent is to read."""

    def __init__(self):
        self.rest = bytearray()

    def fill(self, wait_s):
        """Whether something came within that time. Raises EOFError when the other side is gone."""
        if not select.select([0], [], [], wait_s)[0]:
            return False
        part = os.read(0, 1 << 20)
        if not part:
            raise EOFError
        self.rest += part
        return True

    def next(self, meanwhile):
        """The next request; `meanwhile` runs every few seconds of waiting."""
        silent = 0
        while b"\n" not in self.rest:
            if self.fill(SAMPLE_S):
                silent = 0
                continue
            silent += SAMPLE_S
            if silent > IDLE_S:
                raise EOFError
            meanwhile()
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line.decode("utf-8"))

    def exact(self, size):
        while len(self.rest) < size:
            if not self.fill(IDLE_S):
                raise EOFError
        data = bytes(self.rest[:size])
        del self.rest[:size]
        return data


class Board:
    """What one connection does on the device."""

    def __init__(self):
        self.base, self.lock, self.made, self.pushing, self.watching, self.seen = "", None, [], False, False, set()

    def path(self, *parts):
        """A place below the base; the other side names no other."""
        place = os.path.join(self.base, *parts)
        if not self.base or ".." in place.split("/") or not place.startswith(self.base + "/"):
            raise Refused("other", "a path outside the agent's folder: " + place)
        return place

    def hello(self, request, _):
        self.settle(request.get("base"))
        self.hold(request["owner"])
        self.kill()
        shutil.rmtree(self.path("run"), ignore_errors=True)
        for folder in ("files", "run", "pids"):
            os.makedirs(self.path(folder), exist_ok=True)
        return {**facts(), "free_bytes": shutil.disk_usage(self.base).free}

    def settle(self, wanted):
        """A folder of our own that can be written to."""
        home = os.path.expanduser("~")
        spare = os.path.join(os.environ.get("TMPDIR") or "/tmp", "edgepipe-agent-" + str(os.getuid()))
        for place in [wanted] if wanted else [os.path.join(home, ".cache", "edgepipe-agent"), spare]:
            try:
                folder, missing = place, []
                while not os.path.isdir(folder):
                    missing.append(folder)
                    folder = os.path.dirname(folder)
                os.makedirs(place, 0o700, exist_ok=True)
                if stat.S_ISDIR(os.lstat(place).st_mode) and os.lstat(place).st_uid == os.getuid():
                    os.close(os.open(os.path.join(place, "lock"), os.O_RDWR | os.O_CREAT, 0o600))
                    self.base, self.made = place, missing
                    return
            except OSError as error:
                if error.errno in FULL:
                    raise
        raise Refused("base", wanted or home + " or " + spare)

    def hold(self, owner):
        """The lock. It goes with the process that holds it, so none outlives its build."""
        for _ in range(100):
            os.makedirs(self.base, 0o700, exist_ok=True)
            lock = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                told = os.read(lock, 1000).decode("utf-8", "replace")
                os.close(lock)
                self.base = ""
                raise Refused("locked", told or "somebody") from None
            try:
                if os.stat(self.path("lock")).st_ino == os.fstat(lock).st_ino:
                    os.ftruncate(lock, 0)
                    os.write(lock, owner.encode())
                    self.lock = lock
                    return
            except FileNotFoundError:
                pass
            os.close(lock)  # its last holder took it away in between
        raise Refused("other", "the lock keeps changing hands")

    def missing(self, request, _):
        """How much there is of each file that is not here whole."""
        self.pushing = True
        have = {}
        for sha256 in request["files"]:
            whole = self.path("files", sha256)
            if not os.path.exists(whole) or digest(whole) != sha256:
                part = whole + ".part"
                have[sha256] = os.path.getsize(part) if os.path.exists(part) else 0
        return {"have": have, "free_bytes": shutil.disk_usage(self.base).free}

    def put(self, request, data):
        """Some more of a file; the last of it makes it whole, when its digest is right."""
        whole = self.path("files", request["sha256"])
        with open(whole + ".part", "r+b" if request["offset"] else "wb") as handle:
            handle.seek(request["offset"])
            handle.truncate()
            handle.write(data)
        if request["last"]:
            if digest(whole + ".part") != request["sha256"]:
                os.remove(whole + ".part")
                raise Refused("changed", "what arrived is not what was sent")
            os.replace(whole + ".part", whole)
        return {}

    def tree(self, request, _):
        """A folder with files under their own names. They share their bytes with `files/` where the disk can do that."""
        folder = self.path("run", request["name"])
        for place, sha256 in request["files"].items():
            target = self.path("run", request["name"], place)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.lexists(target):
                os.remove(target)
            try:
                os.link(self.path("files", sha256), target)
            except OSError:
                shutil.copyfile(self.path("files", sha256), target)
        self.pushing = False
        return {"folder": folder}

    def unpack(self, request, _):
        """Python packages from wheels, which are archives."""
        import zipfile

        for sha256 in request["files"]:
            with zipfile.ZipFile(self.path("files", sha256)) as archive:
                archive.extractall(self.path("run", "site"))
        self.pushing = False
        return {"folder": self.path("run", "site")}

    def watch(self, request, _):
        self.watching, self.seen = True, set()
        return state()

    def watched(self, request, _):
        self.watching = False
        found = state()
        return {**found, "slowed": sorted(self.seen.union(found["slowed"]))}

    def state(self, request, _):
        return state()

    def sample(self):
        if self.watching:
            self.seen |= slowed(False)

    def kill(self):
        """End agents that still run; a number may have gone to another process meanwhile."""
        for pid in listed(os.path.join(self.base, "pids")):
            if pid.isdigit() and "edgepipe-agent" in read("/proc/" + pid + "/cmdline"):
                with suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)

    def leave(self, keep):
        if self.lock is None:
            return
        self.kill()
        for name in ("run", "pids"):
            shutil.rmtree(os.path.join(self.base, name), ignore_errors=True)
        if not keep:
            shutil.rmtree(self.base, ignore_errors=True)
            with suppress(OSError):
                for folder in self.made[1:]:
                    os.rmdir(folder)
        os.close(self.lock)


def digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def run_agent(request, answers):
    """Become the parent of an agent, which has stdin and stdout to itself; end as it ends, 128 + the number of a signal."""
    agent = request["agent"]
    pid = os.fork()
    mark = os.path.join(request["base"], "pids", str(pid or os.getpid()))
    if pid:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGKILL))
        status = os.waitpid(pid, 0)[1]
        with suppress(OSError):
            os.remove(mark)
        os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    import runpy

    with open(mark, "w"):
        os.dup2(answers, 1)
    os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = os.path.join(request["base"], "run")  # ONNX Runtime 1.32 writes a device id there
    if request["cpus"]:
        os.sched_setaffinity(0, request["cpus"])
    sys.path[:0] = [os.path.dirname(agent)] + ([request["site"]] if request["site"] else [])
    sys.argv = [agent]
    os.write(1, b"{}\n")
    runpy.run_path(agent, run_name="__main__")


def main(marker):
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever prints must not come between the answers
    os.write(answers, marker.encode() + b"\n")
    requests, board, keep = Requests(), Board(), False
    try:
        while True:
            request = requests.next(board.sample)
            do = request["do"]
            if do == "agent":
                run_agent(request, answers)
                return
            if do == "ping":
                continue
            data = requests.exact(request.get("bytes", 0))
            if do == "bye":
                keep = request["keep"]
                break
            try:
                answer = getattr(board, do)(request, data)
            except Refused as error:
                answer = {"error": error.kind + ": " + str(error)}
            except OSError as error:
                kind = "disk" if error.errno in FULL else "other"
                answer = {"error": kind + ": " + str(error)}
            except Exception as error:  # the far side decides what to do about it
                answer = {"error": "other: " + type(error).__name__ + ": " + str(error)}
            os.write(answers, json.dumps(answer).encode() + b"\n")
    except (EOFError, BrokenPipeError):
        keep = board.pushing
    finally:
        board.leave(keep)


if __name__ == "__main__":
    main(sys.argv[-1])
