"""Devices that run the agent at the far end of a wire: what the ssh and adb runners share.

One bootstrap holds the device for as long as the runner lives: lock, files, facts, state. Each opened model is one more
bootstrap, which becomes an agent.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import shlex
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import digest, placed_files, sha256_file
from edgepipe.errors import DeviceError, EdgepipeError, ResourceError
from edgepipe.resources import resource
from edgepipe.runners import Proof, board
from edgepipe.runners.link import CHANGED, Control, RemoteModel, start
from edgepipe.runners.wheelhouse import fitting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.profile import Profile

CHUNK_BYTES = 1 << 20
LIMIT_S = 900.0  # for one answer of an agent: loading a large model from a slow card
COOL_DOWN_S, COOL_STEP_S, COOLER_BY_C = 180.0, 5.0, 3.0
NEEDED = {"text": "tokenizers", "image": "pillow", "pixels": "pillow"}
PYTHON, KEEP = "EDGEPIPE_DEVICE_PYTHON", "EDGEPIPE_KEEP_ON_DEVICE"


class RemoteRunner:
    """Runs artifacts on a device; a subclass knows the way there."""

    name = "remote"
    emulates = False
    base: str | None = None  # the agent's folder there; None: the device's own choice

    def __init__(self, profile: Profile, where: str) -> None:
        self._profile, self._where = profile, where
        self._folders: dict[str, Path] = {}
        self._site = ""
        self._interrupted = False
        self._watch: Watch | None = None
        process, log = self._start()
        self._control = Control(process, log, where=where, explain=self.explain)
        try:
            self.facts = self._control.send("hello", owner=_owner(), base=self.base)
            board.check_arch(self.facts, profile, where)
            self._packages: dict[str, str] = dict(self.facts["packages"])
            self._bring_packages()
            self.pins = board.pinned(self.facts, profile.runtime.threads)
            self.threads = min(profile.runtime.threads, len(self.pins or self.facts["usable"]) or profile.runtime.threads)
            self._agent = self._tree(
                "agent", {name: resource("devices") / name for name in ("agent.py", "driver.py", "stream.py", "ocr.py")}
            )
        except BaseException:
            self.close()
            raise
        self.device = digest(
            [self.facts["identity"], self.facts["cpus"], self.facts["parts"], self._packages, self.facts["python"], self.pins]
        )

    def reach(self, line: str, *, first: bool) -> Sequence[str]:
        """The command that runs a line in the device's shell. `first`: the one that holds the device."""
        raise NotImplementedError

    def explain(self, code: int, words: str) -> EdgepipeError | None:
        """What the way's own failures mean."""
        raise NotImplementedError

    def python(self) -> str:
        """The device's Python, as its shell takes it."""
        given = os.environ.get(PYTHON, "python3")
        return f"~/{shlex.quote(given[2:])}" if given.startswith("~/") else shlex.quote(given)

    def _start(self, *, first: bool = True) -> Any:
        return start(lambda line: self.reach(line, first=first), self.python(), where=self._where, explain=self.explain)

    def proof(self, axis: str) -> Proof:
        """`measured`, unless the device is another than the profile's."""
        doubt = board.other_kernels(self.facts, self._packages, self._profile)
        note = ""
        if axis == "latency":
            speed = board.other_speed(self.facts, self._profile, self.threads)
            doubt = "; ".join(text for text in (doubt, speed) if text)
            note = self._watch.told() if self._watch else ""
        return Proof("measured", doubt, note)

    def push(self, artifact: Artifact) -> Path:
        if artifact.digest not in self._folders:
            kind = artifact.program["preprocess"]["kind"]
            needed = ["onnxruntime", "numpy", *([NEEDED[kind]] if kind in NEEDED else [])]
            board.check_runtime(self._packages, self.facts, self._profile, needed, self._where)
            root = artifact.root
            files = {place: ref.location for place, ref in placed_files(artifact).items()}
            self._folders[artifact.digest] = self._tree(artifact.digest[:16], {"artifact.json": root / "artifact.json", **files})
        return self._folders[artifact.digest]

    def open(self, folder: Path, *, threads: int, optimise: bool = True) -> RemoteModel:
        process, log = self._start(first=False)
        model = RemoteModel(process, log, where=self._where, limit_s=LIMIT_S, explain=self.explain)
        try:
            agent = (self._agent / "agent.py").as_posix()
            base = self._agent.parent.parent.as_posix()
            model.ask({"do": "agent", "agent": agent, "base": base, "site": self._site, "cpus": self.pins})
        except BaseException:
            model.close()
            raise
        return model.opened(folder.as_posix(), threads, optimise)

    def close(self) -> None:
        """Leave nothing behind there, but what a push brought that was interrupted."""
        self._control.leave(keep=self._interrupted or bool(os.environ.get(KEEP)))

    def watch(self) -> Watch:
        """Note how the device fares from now on."""
        self._watch = Watch(self._control)
        return self._watch

    def cool_down(self) -> None:
        """Wait until nothing slows the device, and it is as cool as before, or a little warmer; not for ever."""
        before = self._watch.before if self._watch else {}
        deadline = time.monotonic() + COOL_DOWN_S
        while time.monotonic() < deadline:
            now = self._control.send("state")
            cool = (now["temperature_c"] or 0) <= (before.get("temperature_c") or 1000) + COOLER_BY_C
            if cool and not now["slowed"]:
                return
            time.sleep(COOL_STEP_S)

    def _tree(self, name: str, files: Mapping[str, Path]) -> Path:
        """The files in a folder there, under their own names."""
        digests = {place: sha256_file(path) for place, path in files.items()}
        self._bring({digests[place]: path for place, path in files.items()})
        return Path(PurePosixPath(self._control.send("tree", name=name, files=digests)["folder"]))

    def _bring(self, files: Mapping[str, Path]) -> None:
        """Send what is not there yet, from where an earlier push was cut off."""
        sizes = {sha256: path.stat().st_size for sha256, path in files.items()}
        found = self._control.send("missing", files=sorted(files))
        have: dict[str, int] = found["have"]
        lacking = sum(max(0, sizes[sha256] - have[sha256]) for sha256 in have)
        if lacking > found["free_bytes"]:
            what = f"the device's disk is full: {lacking} bytes are to go there, and {found['free_bytes']} are free"
            raise ResourceError(what, where=self._where, fix="free some space there")
        try:
            for sha256 in have:
                offset = have[sha256] if have[sha256] <= sizes[sha256] else 0
                try:
                    self._send(sha256, files[sha256], offset)
                except DeviceError as error:
                    if not offset or CHANGED not in error.what:
                        raise
                    self._send(sha256, files[sha256], 0)  # what an earlier push left was not right
        except KeyboardInterrupt:
            self._interrupted = True
            raise

    def _send(self, sha256: str, path: Path, offset: int) -> None:
        size = path.stat().st_size
        with path.open("rb") as handle:
            handle.seek(offset)
            while True:
                data = handle.read(CHUNK_BYTES)
                last = offset + len(data) >= size
                self._control.send("put", data, sha256=sha256, offset=offset, last=last)
                offset += len(data)
                if last:
                    return

    def _bring_packages(self) -> None:
        """Push the wheels of the user's folder where the device lacks packages or has another runtime."""
        wheels = fitting(self.facts)
        right = self._packages.get("onnxruntime") == self._profile.runtime.version and {"numpy", "tokenizers", "pillow"} <= set(
            self._packages
        )
        if not wheels or right:
            return
        digests = {sha256_file(path): path for _, path in wheels.values()}
        self._bring(digests)
        self._site = self._control.send("unpack", files=sorted(digests))["folder"]
        self._packages |= {name: version for name, (version, _) in wheels.items()}


class Watch:
    """How a device fared while times were taken."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.before: dict[str, Any] = control.send("watch")
        self.after: dict[str, Any] = {}

    def others_share(self, agents_cpu_s: float) -> float:
        """Share of all of its cores that others used meanwhile; ends the watch."""
        self.after = self._control.send("watched")
        return board.others_share(self.before, self.after, agents_cpu_s)

    def board(self) -> dict[str, Any]:
        """Its state before and after, and what slowed it."""
        return {"before": self.before, "after": self.after, "slowed": board.slowed(self.before, self.after)}

    def told(self) -> str:
        return board.state_told(self.before, self.after) if self.after else ""


def _owner() -> str:
    """Who uses the device, for the next who wants to."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return json.dumps({"user": user, "machine": platform.node(), "process": os.getpid(), "since": since})
