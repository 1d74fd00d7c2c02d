"""The ssh runner: any Linux board that OpenSSH's client reaches, with the user's own keys and ~/.ssh/config.

Nobody is asked anything, and only a host whose key is known already is talked to. The first connection carries the
others, so that a board is logged in to once.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.errors import DeviceError, EdgepipeError, UsageError
from edgepipe.runners.remote import RemoteRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.profile import Profile

CONFIG = "EDGEPIPE_SSH_CONFIG"  # in place of ~/.ssh/config
OPTIONS = (
    "BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4",
    "ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no", "LogLevel=ERROR", "ControlPersist=no",
)  # fmt: skip
LONGEST_SOCKET = 80  # a socket's path has room for 108 bytes, of which OpenSSH takes some while it makes it
CUT = 255  # the end code of OpenSSH's own failures
UNREACHABLE = ("connection refused", "timed out", "no route to host", "could not resolve", "network is unreachable", "banner exchange")


def make(profile: Profile) -> SshRunner:
    return SshRunner(profile)


@dataclass(frozen=True, slots=True)
class Address:
    """USER@HOST[:PORT]; user and port may be left to ~/.ssh/config."""

    host: str  # with the user
    port: str = ""

    @classmethod
    def of(cls, text: str) -> Address:
        """Raises `UsageError` for text that is none."""
        found = re.fullmatch(r"((?:[\w.+-]+@)?)(?:\[([0-9A-Fa-f:.%\w]+)\]|([\w.-]+))(?::(\d+))?", text)
        if found is None or text.startswith("-") or (found[3] or "").startswith("-"):
            raise UsageError(f'"{text}" is no address', where="--device", fix="write USER@HOST or USER@HOST:PORT")
        return cls(found[1] + (found[2] or found[3]), found[4] or "")


class SshRunner(RemoteRunner):
    """Runs artifacts on a board, logged in to by ssh."""

    name = "ssh"

    def __init__(self, profile: Profile) -> None:
        self._address = Address.of(profile.reach.address)
        self._sockets = Path(tempfile.mkdtemp(prefix="edgepipe-ssh-"))
        try:
            super().__init__(profile, f"device {self._address.host}")
        except BaseException:
            shutil.rmtree(self._sockets, ignore_errors=True)
            raise

    def reach(self, line: str, *, first: bool) -> Sequence[str]:
        options = list(OPTIONS)
        socket = self._sockets / "s"
        if len(str(socket)) <= LONGEST_SOCKET:
            options += [f"ControlPath={socket}", f"ControlMaster={'yes' if first else 'no'}"]
        given = os.environ.get(CONFIG)
        return [
            *("ssh", "-T", *(["-F", given] if given else []), *(word for option in options for word in ("-o", option))),
            *(["-p", self._address.port] if self._address.port else []),
            *("--", self._address.host, line),
        ]

    def explain(self, code: int, words: str) -> EdgepipeError | None:
        if code != CUT:
            return None
        where, lower = self._where, words.lower()
        last = next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "no message")
        port = f"-p {self._address.port} " if self._address.port else ""
        by_hand = f"ssh {port}{self._address.host}"
        if "identification has changed" in lower or ("host key" in lower and "has changed" in lower):
            return DeviceError(
                "the host key of the device has changed: it was set up anew, or another machine answers in its place",
                where=where,
                fix=f"find out which; if it was set up anew, remove the old key (ssh-keygen -R) and log in once by hand: {by_hand}",
            )
        if "host key verification failed" in lower or "host key is known" in lower:
            fix = f"log in once by hand and compare the fingerprint it shows with the device's: {by_hand}"
            return DeviceError("the host key of the device is not known here", where=where, fix=fix)
        if "permission denied" in lower or "too many authentication failures" in lower:
            fix = f"give it your key (ssh-copy-id {port}{self._address.host}); a key with a passphrase must be in ssh-agent"
            return DeviceError(f"the device did not let us in: {last}", where=where, fix=fix)
        if "configuration option" in lower or "bad owner or permissions" in lower or "can't open user config" in lower:
            return DeviceError(f"ssh's configuration is not right: {last}", where=where, fix=f"see that this works: {by_hand}")
        if any(sign in lower for sign in UNREACHABLE):
            fix = f"see that it is switched on, on the network, and that this works: {by_hand}"
            return DeviceError(f"the device cannot be reached: {last}", where=where, fix=fix)
        fix = "run again: a push goes on where it was cut off, and the device tidies up by itself"
        return DeviceError(f"the connection to the device was cut: {last}", where=where, fix=fix)

    def close(self) -> None:
        try:
            super().close()
        finally:
            shutil.rmtree(self._sockets, ignore_errors=True)
