"""Facts of the machine edgepipe runs on, read from the operating system (Linux and macOS)."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import psutil


@cache
def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in reversed(list(pairs))}


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def cpu_model() -> str:
    info = _cpuinfo()
    return info.get("model name") or info.get("CPU part") or _sysctl("machdep.cpu.brand_string") or platform.processor() or "unknown"


def cpu_flags() -> tuple[str, ...]:
    """Feature flags in Linux's names, sorted."""
    info = _cpuinfo()
    flags = info.get("flags") or info.get("Features")
    if flags:
        return tuple(sorted(set(flags.split())))
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        names = {"hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm", "hw.optional.arm.FEAT_FP16": "asimdhp"}
        return tuple(sorted(["asimd", *(flag for key, flag in names.items() if _sysctl(key) == "1")]))
    return tuple(sorted(_sysctl("machdep.cpu.leaf7_features").lower().split()))


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def clock_mhz() -> int:
    frequency = psutil.cpu_freq()
    mhz = (frequency.max or frequency.current) if frequency else float(_cpuinfo().get("cpu MHz", 0))
    return max(1, round(mhz))


def cache_kib(level: int) -> int | None:
    """Size of the data or unified cache of that level of core 0, KiB."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if (index / "level").read_text().strip() == str(level) and (index / "type").read_text().strip() != "Instruction":
                return int((index / "size").read_text().strip().rstrip("K"))
        except (OSError, ValueError):
            continue
    return None


def ram_bytes() -> int:
    return int(psutil.virtual_memory().total)


def machine_facts() -> dict[str, object]:
    """What stands beside every figure: CPU model and the flags that choose kernels."""
    return {
        "system": platform.system(),
        "arch": platform.machine(),
        "cpu": cpu_model(),
        "flags": list(cpu_flags()),
        "cores": usable_cores(),
        "ram_bytes": ram_bytes(),
    }
