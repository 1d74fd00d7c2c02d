"""Whether a device at the far end is the one that a profile describes, and what its state says about the times it gave."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from edgepipe.errors import DeviceError
from edgepipe.profile import DECIDING
from edgepipe.resources import resource
from edgepipe.toml import read_toml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.profile import Profile

ARCHITECTURES = {"arm64": "aarch64", "amd64": "x86_64", "AMD64": "x86_64"}
OLDEST_GLIBC = (2, 27)  # that ONNX Runtime's wheels for Linux run with
FASTER = 1.05  # of the profile's clock: times of a device that is faster than the profile's prove nothing


def check_arch(facts: Mapping[str, Any], profile: Profile, where: str) -> None:
    """Raises `DeviceError` for a device of another architecture."""
    arch = arch_of(facts)
    if arch != profile.cpu.arch:
        what = f"the device is {arch}, and {profile.name} is {profile.cpu.arch}"
        fix = "name the profile of that device, or the device of that profile"
        if arch.startswith("arm"):
            fix = "its system is a 32-bit one: install a 64-bit system"
        raise DeviceError(what, where=where, fix=fix)


def arch_of(facts: Mapping[str, Any]) -> str:
    return ARCHITECTURES.get(facts["arch"], str(facts["arch"]))


def check_runtime(packages: Mapping[str, str], facts: Mapping[str, Any], profile: Profile, needed: Sequence[str], where: str) -> None:
    """Raises `DeviceError` when packages that the agent needs are absent there, or older than the profile's."""
    wanted = profile.runtime.version
    asked = [f"onnxruntime=={wanted}" if name == "onnxruntime" else name for name in needed]
    install = f"pip install {' '.join(asked)} there, or a folder with those wheels in EDGEPIPE_WHEELHOUSE here; another Python: EDGEPIPE_DEVICE_PYTHON"
    absent = [name for name in needed if name not in packages]
    old = "onnxruntime" in packages and version_of(packages["onnxruntime"]) < version_of(wanted)
    if not absent and not old:
        return
    libc, python = str(facts["libc"]), ".".join(map(str, facts["python"]))
    if (absent or old) and version_of(libc.removeprefix("glibc ")) < OLDEST_GLIBC:
        what = f"the device's C library is {libc or 'none that we know'}, too old for ONNX Runtime {wanted}"
        raise DeviceError(
            what, where=where, fix=f"a system with glibc {'.'.join(map(str, OLDEST_GLIBC))} or newer (Debian 10, Ubuntu 18.04)"
        )
    if absent:
        raise DeviceError(f"the device's Python {python} has no {', '.join(absent)}", where=where, fix=install)
    what = f"the device has onnxruntime {packages['onnxruntime']}, too old: {profile.name} names {wanted}"
    raise DeviceError(what, where=where, fix=f"{install}; or a profile of your own with runtime.version {packages['onnxruntime']}")


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".") if part.isdigit())


def other_kernels(facts: Mapping[str, Any], packages: Mapping[str, str], profile: Profile) -> str:
    """Why outputs there are not the profile's device's; empty when they are."""
    here, there = DECIDING & set(facts["isa"]), DECIDING & set(profile.cpu.isa)
    told = [
        f"the device lacks {', '.join(sorted(there - here))}" if there - here else "",
        f"the device has {', '.join(sorted(here - there))} too" if here - there else "",
    ]
    if packages["onnxruntime"] != profile.runtime.version:
        told.append(f"the device has onnxruntime {packages['onnxruntime']}, and {profile.name} names {profile.runtime.version}")
    return "; ".join(text for text in told if text)


def other_speed(facts: Mapping[str, Any], profile: Profile, threads: int) -> str:
    """Why times there are not the profile's device's; empty when they are."""
    told = []
    parts = {_parts().get(part, f"part {part:#x}") for part in facts["parts"]}
    if parts and profile.cpu.model in _parts().values() and profile.cpu.model not in parts:
        told.append(f"the device's cores are {', '.join(sorted(parts))}, and {profile.name}'s {profile.cpu.model}")
    clock = max((khz for khz in facts["core_khz"].values() if khz), default=0) // 1000
    if clock > FASTER * profile.cpu.clock_mhz:
        told.append(f"the device's clock is {clock} MHz, and {profile.name}'s {profile.cpu.clock_mhz}")
    if threads < profile.runtime.threads:
        told.append(f"taken with {threads} of {profile.runtime.threads} threads")
    return "; ".join(told)


@cache
def _parts() -> dict[int, str]:
    """Arm's own cores by their number in /proc/cpuinfo."""
    known = read_toml(resource("devices") / "emulation" / "cpus.toml")
    return {entry["part"]: name for name, entry in known.items() if entry.get("implementer") == 0x41}


def pinned(facts: Mapping[str, Any], wanted: int) -> list[int]:
    """The fastest cores, as many as wanted, of a device whose cores are unlike; empty where they are all alike."""
    usable = set(facts["usable"])
    speeds = {int(core): khz for core, khz in facts["core_khz"].items() if khz and (not usable or int(core) in usable)}
    if len(set(speeds.values())) < 2:
        return []
    return sorted(sorted(speeds, key=lambda core: -speeds[core])[:wanted])


def state_told(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Governor, clock and temperature in words."""
    heat = [f"{state['temperature_c']:.0f}" for state in (before, after) if state.get("temperature_c") is not None]
    told = [
        f"governor {after['governor']}" if after.get("governor") else "",
        f"{after['clock_mhz']} MHz" if after.get("clock_mhz") else "",
        f"{' → '.join(heat)} °C" if heat else "",
    ]
    return ", ".join(text for text in told if text)


def slowed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Why the device ran slower than it can between two states."""
    found = {*before.get("slowed", ()), *after.get("slowed", ())}
    if after["since_start"] & ~before["since_start"]:
        found.add("the firmware noted it since")
    if after["throttle_count"] > before["throttle_count"]:
        found.add("clock held down by temperature")
    return sorted(found)


def others_share(before: Mapping[str, Any], after: Mapping[str, Any], agents_cpu_s: float, tick_s: float = 0.01) -> float:
    """Share of all cores that processes other than the agents used between two states, 0 to 1."""
    passed = after["ticks"] - before["ticks"]
    used = after["busy"] - before["busy"] - agents_cpu_s / tick_s
    return max(0.0, used / passed) if passed > 0 else 0.0
