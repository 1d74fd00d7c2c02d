"""The adb runner: an Android device over `adb`. It has been tried against an emulated ARM machine that speaks adb's protocol,
and has not met a phone.

Android has neither Python nor glibc, so the ARM root of the emulation goes along, to a folder under /data/local/tmp, and its
programs start through the root's own loader. From there on it is a device like any other: the agent runs on the fastest
cores, and Android's thermal status counts as throttling. A device that goes away keeps the root until the next run, which
uses it and takes it away.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.emulation import folder_of, is_set_up, lock_digest
from edgepipe.errors import DeviceError, EdgepipeError, ResourceError, UsageError
from edgepipe.runners.link import IN_USE
from edgepipe.runners.remote import KEEP, RemoteRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.profile import Profile

PLACE = "/data/local/tmp"
CONNECT_S, PUSH_S = 30.0, 900.0
LEFT_OUT = re.compile(
    r"/tests?/|/onnxruntime/transformers/|/__pycache__/|^usr/share/"
)  # a third of the files, and nothing reads them there
LOADER, LIBRARIES = "lib/ld-linux-aarch64.so.1", ("lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu")
DONE = "edgepipe-done"


def make(profile: Profile) -> AdbRunner:
    return AdbRunner(profile)


class AdbRunner(RemoteRunner):
    """Runs artifacts on an Android device, as adb's shell user."""

    name = "adb"
    base = f"{PLACE}/edgepipe-agent"

    def __init__(self, profile: Profile) -> None:
        self._serial, self._ready = profile.reach.address, False
        where = f"device {self._serial}"
        if not re.fullmatch(r"[\w.\[\]][\w.:%\[\]-]*", self._serial):
            raise UsageError(
                f'"{self._serial}" is no device of adb', where="--device", fix="write a serial number (adb devices) or HOST:PORT"
            )
        if not is_set_up("arm64"):
            fix = f"edgepipe devices setup {profile.name}"
            raise DeviceError("the ARM root that goes to the device is not set up", where=where, fix=fix)
        self._root = f"{PLACE}/edgepipe-root-{lock_digest('arm64')[:12]}"
        self._where = where
        self._connect()
        try:
            serial = self._shell("getprop ro.serialno", check=False).strip() or self._serial  # Android tells the shell no machine id
            self._bring_root()
            super().__init__(profile, where)
        except EdgepipeError as error:
            if IN_USE not in error.what:  # else the root is another build's
                self._drop_root()
            raise
        except BaseException:
            self._drop_root()
            raise
        self._ready = True
        self.device = hashlib.sha256(f"{self.device} {serial}".encode()).hexdigest()

    def reach(self, line: str, *, first: bool) -> Sequence[str]:
        return ["adb", "-s", self._serial, "shell", "-T", line]

    def python(self) -> str:
        """The root's own, through its own loader."""
        root = self._root
        libraries = ":".join(f"{root}/{place}" for place in LIBRARIES)
        home = f"PYTHONHOME={root}/usr PYTHONPATH={root}/usr/lib/python3/dist-packages HOME={self.base}"
        return f"env {home} {root}/{LOADER} --library-path {libraries} {root}/usr/bin/python3.11"

    def explain(self, code: int, words: str) -> EdgepipeError | None:
        last = next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "")
        lower = last.lower()
        if "unauthorized" in lower:
            return DeviceError("the device does not trust this computer yet", where=self._where, fix="allow USB debugging on its screen")
        silent = code in (0, 255) and not last  # how adb ends when the device goes away
        if not silent and not lower.startswith(("adb:", "error:")):
            return None
        if "not found" in lower or "no devices" in lower or "offline" in lower:
            fix = "plug it in, switch USB debugging on, and see that adb devices lists it"
            return DeviceError(f"the device cannot be reached: {last}", where=self._where, fix=fix)
        return DeviceError(
            f"the connection to the device was cut: {last or 'no message'}", where=self._where, fix="plug it in again and run again"
        )

    def close(self) -> None:
        super().close()
        if self._ready and not os.environ.get(KEEP):
            self._drop_root()

    def _connect(self) -> None:
        if ":" in self._serial:
            said = self._adb("connect", self._serial, serial=False)
            if "connected to" not in said:
                fix = "see that its wireless debugging is on, and that this works: adb connect"
                raise DeviceError(f"the device cannot be reached: {said.strip()}", where=self._where, fix=fix)
        self._adb("get-state")

    def _bring_root(self) -> None:
        """The ARM root on the device: whole, or not there."""
        root, part, packed = self._root, f"{self._root}.part", f"{self._root}.tar"
        if DONE in self._shell(f"ls {root} 2>/dev/null; true"):
            return
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "root.tar"
            with tarfile.open(archive, "w") as tar:
                tar.add(folder_of("arm64") / "root", arcname=".", filter=_wanted)
            try:
                self._adb("push", str(archive), packed, limit_s=PUSH_S)
                self._shell(
                    f"rm -rf {part} {root} && mkdir {part} && tar -xf {packed} -C {part} && touch {part}/{DONE} && mv {part} {root}"
                )
            finally:
                self._shell(f"rm -rf {packed} {part}", check=False)

    def _drop_root(self) -> None:
        try:
            self._shell(f"rm -rf {self._root}", check=False)
        except EdgepipeError:
            pass  # the way is gone; what made us leave is told already

    def _shell(self, line: str, *, check: bool = True) -> str:
        return self._adb("shell", "-T", line, limit_s=PUSH_S, check=check)

    def _adb(self, *words: str, serial: bool = True, limit_s: float = CONNECT_S, check: bool = True) -> str:
        command = ["adb", *(["-s", self._serial] if serial else []), *words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL, timeout=limit_s
            )
        except FileNotFoundError:
            raise DeviceError("adb is not on this machine", where=self._where, fix="install it (Debian: apt-get install adb)") from None
        except subprocess.TimeoutExpired:
            what = f"the device did not answer within {limit_s:.0f} s (adb {words[0]})"
            raise ResourceError(what, where=self._where, fix="unlock it, or plug it in again") from None
        if done.returncode and check:
            said = done.stderr.strip() or done.stdout.strip()
            if "No space left" in said:
                raise ResourceError("the device's disk is full", where=self._where, fix=f"free 200 MB there ({PLACE})")
            fix = "see that adb devices lists it, and run again"
            what = f"adb could not {words[0]}: {said.splitlines()[-1] if said else 'no message'}"
            raise self.explain(done.returncode, said) or DeviceError(what, where=self._where, fix=fix)
        return done.stdout


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if LEFT_OUT.search(entry.name.removeprefix("./") + ("/" if entry.isdir() else "")) or (
        entry.issym() and entry.linkname.startswith("/")
    ):
        return None
    entry.uid = entry.gid = 0
    return entry
