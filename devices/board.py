"""What a device is, and how it fares: read from its kernel's files, by standard library only, on any Python from 3.8.

Comes along with `bootstrap.py`. Nothing here writes anything.
"""

import hashlib
import os
import platform
import shutil
import sys

SYS = "/sys/devices/system/cpu"
PI_FLAGS = "/sys/devices/platform/soc/soc:firmware/get_throttled"
PI_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read().strip()
    except OSError:
        return ""


def number(path):
    text = read(path)
    return int(text) if text.lstrip("-").isdigit() else None


def listed(folder):
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def facts():
    """What the device is: interpreter, C library, CPU, memory, Python packages."""
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in ("onnxruntime", "numpy", "tokenizers", "pillow"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            pass
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        libc = ""
    info = read("/proc/cpuinfo")
    pairs = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in info.splitlines())]
    cores = {}
    for name in listed(SYS):
        if name.startswith("cpu") and name[3:].isdigit():
            cores[name[3:]] = number(SYS + "/" + name + "/cpufreq/cpuinfo_max_freq")
    memory = [line.split()[1] for line in read("/proc/meminfo").splitlines() if line.startswith("MemTotal:")]
    return {
        "python": list(sys.version_info[:3]),
        "arch": platform.machine(),
        "libc": libc or "",
        "isa": sorted({flag for key, value in pairs if key in ("flags", "Features") for flag in value.split()}),
        "cpus": sorted({value for key, value in pairs if key == "model name"}),
        "parts": sorted({int(value, 16) for key, value in pairs if key == "CPU part"}),
        "core_khz": cores,
        "usable": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "ram_bytes": int(memory[0]) * 1024 if memory else 0,
        "packages": packages,
        "identity": hashlib.sha256((read("/etc/machine-id") or platform.node()).encode()).hexdigest(),
    }


def firmware_bits(ask):
    """A Raspberry Pi's flags: bits 0-3 now, 16-19 since it started."""
    text = read(PI_FLAGS)
    if not text and ask and shutil.which("vcgencmd"):
        text = said_by(["vcgencmd", "get_throttled"]).rpartition("=")[2]
    try:
        return int(text, 16)
    except ValueError:
        return 0


def said_by(command):
    import subprocess

    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=10
        ).stdout.decode()
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def slowed(ask):
    """Why the device runs slower than it could, now."""
    bits = firmware_bits(ask)
    found = {name for bit, name in PI_BITS.items() if bits >> bit & 1}
    for name in listed("/sys/class/thermal"):
        place = "/sys/class/thermal/" + name
        if name.startswith("cooling_device") and "cpu" in read(place + "/type").lower() and (number(place + "/cur_state") or 0) > 0:
            found.add("clock held down by temperature")
    return found


def state(ask=True):
    """Governor, clock, temperature, what slows it, and jiffies used and passed. `ask`: also by starting programs."""
    policies = [SYS + "/" + name + "/cpufreq" for name in listed(SYS) if name.startswith("cpu") and name[3:].isdigit()]
    zones = ["/sys/class/thermal/" + name for name in listed("/sys/class/thermal") if name.startswith("thermal_zone")]
    heat = [t for t in (number(zone + "/temp") for zone in zones) if t is not None and 0 < t < 150000]
    clocks = [khz for khz in (number(policy + "/scaling_cur_freq") for policy in policies) if khz]
    ticks = [int(word) for word in read("/proc/stat").partition("\n")[0].split()[1:9]]
    reasons = slowed(ask)
    if ask and os.path.exists("/system/bin/dumpsys"):
        level = said_by(["/system/bin/dumpsys", "thermalservice"]).partition("Thermal Status:")[2].split()
        if level and level[0].isdigit() and int(level[0]) > 0:
            reasons.add("Android's thermal status " + level[0])
    counts = [number(SYS + "/" + name + "/thermal_throttle/core_throttle_count") for name in listed(SYS)]
    return {
        "governor": ", ".join(sorted({read(policy + "/scaling_governor") for policy in policies} - {""})),
        "clock_mhz": max(clocks) // 1000 if clocks else None,
        "temperature_c": round(max(heat) / 1000, 1) if heat else None,
        "slowed": sorted(reasons),
        "since_start": firmware_bits(ask) >> 16,
        "throttle_count": sum(count or 0 for count in counts),
        "busy": sum(ticks) - sum(ticks[3:5]),
        "ticks": sum(ticks),
    }
