"""What each profile can be judged with on this machine: how far its figures would be proof, and what brings them further."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe import browser_setup
from edgepipe.cost.counting import compiler_command
from edgepipe.emulation import can_emulate, missing
from edgepipe.profile import load_profile, profile_names, runs_here

if TYPE_CHECKING:
    from edgepipe.profile import Profile


@dataclass(frozen=True, slots=True)
class Readiness:
    """How one profile would be judged here and now."""

    profile: str
    title: str
    by: str  # measured | emulated | browser | nothing
    axes: dict[str, str]  # axis → provenance of its figures now
    lacking: tuple[tuple[str, str], ...]  # (what is missing, the command that gets it)

    def to_json(self) -> dict[str, object]:
        return {
            "profile": self.profile,
            "title": self.title,
            "by": self.by,
            "axes": self.axes,
            "lacking": [{"what": what, "command": command} for what, command in self.lacking],
        }


def readiness() -> list[Readiness]:
    """Of every profile that has a name here."""
    return [of_profile(load_profile(name)) for name in profile_names()]


def of_profile(profile: Profile) -> Readiness:
    if profile.reach.runner == "browser":
        return _browser(profile)
    if runs_here(profile) and not profile.reach.address:
        return Readiness(profile.name, profile.title, "measured", _axes("measured", "measured"), ())
    lacking: list[tuple[str, str]] = []
    by, axes = "nothing", _axes("host", "host")
    if can_emulate(profile):
        if absent := missing(profile):
            lacking.append((f"the emulation of {profile.cpu.model} ({', '.join(absent)})", f"edgepipe devices setup {profile.name}"))
        else:
            by, axes = "emulated", _axes("emulated", "predicted" if predictable(profile) else "host")
        if predictable(profile) and not compiler():
            lacking.append(("a C compiler, for predicted latency", "apt-get install gcc libc6-dev"))
            axes["latency"] = "host"
    else:
        lacking.append((f"a machine of the kind of {profile.title}", "run edgepipe validate BUNDLE on one"))
    if profile.reach.runner in ("ssh", "adb"):
        tool, package = {"ssh": ("ssh", "openssh-client"), "adb": ("adb", "adb")}[profile.reach.runner]
        if shutil.which(tool) is None:
            lacking.append((f"{tool}, to reach the device", f"apt-get install {package}"))
        lacking.append(("the device itself, for measured latency", f"--device {_example(profile)}"))
    return Readiness(profile.name, profile.title, by, axes, tuple(lacking))


def compiler() -> str | None:
    """Where the C compiler is that builds the instruction counter."""
    words = compiler_command().split()
    return shutil.which(words[0]) if words else None


def predictable(profile: Profile) -> bool:
    """Whether latency can be predicted: the model is of ARM cores."""
    return profile.cpu.arch == "aarch64"


def _example(profile: Profile) -> str:
    return f"{profile.name}=USER@HOST" if profile.reach.runner == "ssh" else f"{profile.name}=SERIAL"


def _browser(profile: Profile) -> Readiness:
    lacking = tuple(browser_setup.missing())
    by = "nothing" if lacking else "browser"
    return Readiness(profile.name, profile.title, by, _axes("host" if lacking else "measured", "host"), lacking)


def _axes(outputs: str, latency: str) -> dict[str, str]:
    return {"accuracy": outputs, "parity": outputs, "memory": outputs, "latency": latency}
