"""CPUs of other kinds under user-mode emulation: what is set up here, and the command that runs Python as one.

EDGEPIPE_CACHE/devices/emulator-<lock>/     QEMU and the libraries it needs, unpacked
EDGEPIPE_CACHE/devices/arm64-<lock>/        one ARM root with Python, numpy and ONNX Runtime, for all ARM profiles
    root/                                   … and under cpus/ a view of it for every CPU: links, and its own
    cpus/<model>-<cores>-<digest>/          /proc/cpuinfo and /sys, which ONNX Runtime chooses kernels by
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import sha256_file
from edgepipe.errors import DeviceError
from edgepipe.profile import int8_saturates, runs_here
from edgepipe.resources import resource
from edgepipe.store import cache_root, disk_errors, drop_leftovers, scratch_prefix
from edgepipe.toml import read_toml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.profile import Cpu, Profile

LOCK = "packages.lock.json"
WHEELS = "wheels.lock.txt"
X86_WITHOUT_VNNI = "Haswell"
MATRIX_PRODUCTS = "max,sve=off,sme=off"  # the emulator's only CPU with i8mm
RECORD = "setup.json"  # of a set-up that is whole
VIEWS = "cpus"


@dataclass(frozen=True, slots=True)
class Emulated:
    """One profile's CPU under emulation."""

    command: tuple[str, ...]  # the emulator up to, and without, the program
    python: str
    env: dict[str, str]
    qemu_cpu: str
    nearest: str  # what stands for the CPU where the emulator has none of that name; empty otherwise
    digest: str  # over everything its outputs depend on

    def run(self, script: Path, *args: str, options: Sequence[str] = ()) -> list[str]:
        """The command line that runs a Python file as that CPU; `options` are the emulator's own."""
        return [*self.command, *options, self.python, str(script), *args]


def can_emulate(profile: Profile) -> bool:
    """Whether user-mode emulation can stand for the device: a Linux board, phone or PC with ONNX Runtime, seen from x86-64 Linux."""
    if platform.system() != "Linux" or platform.machine() != "x86_64" or runs_here(profile):
        return False
    if profile.runtime.name != "onnxruntime":
        return False
    return profile.cpu.arch == "aarch64" or (profile.cpu.arch == "x86_64" and int8_saturates(profile.cpu.arch, profile.cpu.isa))


def parts_of(profile: Profile) -> tuple[str, ...]:
    """Names of what must be set up to emulate the profile's CPU."""
    return ("emulator", "arm64") if profile.cpu.arch == "aarch64" else ("emulator",)


@cache
def lock_digest(part: str) -> str:
    """Of what the lock files ask for, so that a change of them asks for a new set-up."""
    folder = resource("devices") / "emulation"
    asked: dict[str, Any] = {"packages": json.loads((folder / LOCK).read_text(encoding="utf-8"))[part]}
    if part == "arm64":
        asked["wheels"] = (folder / WHEELS).read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def root_runtime() -> str:
    """The version of ONNX Runtime in the ARM root."""
    lines = (resource("devices") / "emulation" / WHEELS).read_text(encoding="utf-8").splitlines()
    return next(line.split("==")[1].split()[0] for line in lines if line.startswith("onnxruntime=="))


def folder_of(part: str) -> Path:
    return cache_root() / "devices" / f"{part}-{lock_digest(part)[:12]}"


def is_set_up(part: str) -> bool:
    return (folder_of(part) / RECORD).is_file()


@cache
def is_intact(home: Path) -> bool:
    """Whether a set-up holds what was unpacked into it, file by file; looked at once a process (0.7 s)."""
    try:
        kept = json.loads((home / RECORD).read_text(encoding="utf-8"))["contents"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(kept == contents_digest(home))


def contents_digest(home: Path) -> str:
    """Over every unpacked file and link, of the emulator or of the root."""
    total = hashlib.sha256()
    for path in sorted(home.rglob("*")):
        place = path.relative_to(home)
        if place.parts[0] in (RECORD, VIEWS) or not (path.is_symlink() or path.is_file()):
            continue
        held = str(path.readlink()) if path.is_symlink() else sha256_file(path)
        total.update(f"{place}\0{held}\n".encode())
    return total.hexdigest()


def missing(profile: Profile) -> list[str]:
    """The parts of the profile's emulation that are not set up."""
    return [part for part in parts_of(profile) if not is_set_up(part)]


def emulated(profile: Profile) -> Emulated:
    """The emulation of the profile's CPU. Raises `DeviceError` when it is not set up."""
    if lacking := missing(profile):
        raise DeviceError(
            f"the emulation of {profile.cpu.model} is not set up ({', '.join(lacking)} missing)",
            where=f"profile {profile.name}",
            fix=f"edgepipe devices setup {profile.name}",
        )
    if changed := [part for part in parts_of(profile) if not is_intact(folder_of(part))]:
        raise DeviceError(
            "the emulation is not what was set up: a file of it was changed since",
            where=", ".join(str(folder_of(part)) for part in changed),
            fix=f"edgepipe devices setup {profile.name} unpacks it again",
        )
    home = folder_of("emulator")
    env = {"LD_LIBRARY_PATH": f"{home}/usr/lib/x86_64-linux-gnu:{home}/lib/x86_64-linux-gnu"}
    parts = [_setup_digest(part) for part in parts_of(profile)]
    if profile.cpu.arch == "x86_64":
        name = X86_WITHOUT_VNNI
        own = os.environ.get("LD_LIBRARY_PATH")  # this Python's, which the emulated one is; the emulator's must not reach it
        libraries = ("-E", f"LD_LIBRARY_PATH={own}") if own else ("-U", "LD_LIBRARY_PATH")
        command: tuple[str, ...] = (f"{home}/usr/bin/qemu-x86_64", "-cpu", name, *libraries)
        return Emulated(command, sys.executable, env, name, name, _digest([*parts, name, sys.version]))
    name, nearest = qemu_cpu(profile.cpu)
    view = cpu_view(profile.cpu)
    # The emulator's libraries must not reach the emulated program, nor the user's Python settings.
    unset = ("-U", "LD_LIBRARY_PATH", "-U", "PYTHONPATH", "-U", "PYTHONHOME", "-U", "LD_PRELOAD")
    command = (f"{home}/usr/bin/qemu-aarch64", "-L", str(view), "-cpu", name, *unset, "-E", "PYTHONDONTWRITEBYTECODE=1")
    digest = _digest([*parts, name, view.name])
    return Emulated(command, f"{view}/usr/bin/python3.11", env, name, nearest, digest)


def _setup_digest(part: str) -> str:
    return hashlib.sha256((folder_of(part) / RECORD).read_bytes()).hexdigest()


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _descriptions() -> dict[str, Any]:
    return read_toml(resource("devices") / "emulation" / "cpus.toml")


def qemu_cpu(cpu: Cpu) -> tuple[str, str]:
    """The emulator's name for an ARM core, and what it stands for where it is only the nearest."""
    name = MATRIX_PRODUCTS if "i8mm" in cpu.isa else "cortex-a76" if "asimddp" in cpu.isa else "cortex-a72"
    known = _descriptions().get(cpu.model)
    # Features choose the kernels: a profile may name a core and state others than that core's.
    if known is not None and _features(known["qemu"]) == _features(name):
        return known["qemu"], known["qemu"] if known.get("nearest") else ""
    return name, name


def _features(qemu: str) -> tuple[bool, bool]:
    """Whether the emulator's CPU has dot products and 8-bit matrix products."""
    return qemu in (MATRIX_PRODUCTS, "cortex-a76", "neoverse-n1"), qemu == MATRIX_PRODUCTS


def cpu_view(cpu: Cpu) -> Path:
    """The ARM root as that CPU sees it; made when first asked for, whole or not at all."""
    files = _description_files(cpu)
    home = folder_of("arm64")
    name = re.sub(r"[^A-Za-z0-9._]+", "-", cpu.model)[:40]  # a user's profile may write anything
    view = home / VIEWS / f"{name}-{cpu.cores}-{_digest([json.dumps(files, sort_keys=True)])[:12]}"
    if view.is_dir():
        if all((view / place).is_file() and (view / place).read_text(encoding="ascii") == text for place, text in files.items()):
            return view
        shutil.rmtree(view, ignore_errors=True)
    with disk_errors(view):
        view.parent.mkdir(parents=True, exist_ok=True)
        drop_leftovers(view.parent, ".tmp-")
        building = Path(tempfile.mkdtemp(dir=view.parent, prefix=".tmp-" + scratch_prefix()))
        building.chmod(0o755)
        try:
            for entry in (home / "root").iterdir():
                if entry.name not in ("proc", "sys"):
                    (building / entry.name).symlink_to(Path("..") / ".." / "root" / entry.name)
            for place, text in files.items():
                target = building / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="ascii")
            building.rename(view)
        except OSError:
            if not view.is_dir():  # else another build was first
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return view


def _description_files(cpu: Cpu) -> dict[str, str]:
    """/proc/cpuinfo and the part of /sys that tells cores and their identification, as the board's kernel shows them."""
    known = {"implementer": 0x41, "part": 0xD0B if cpu.int8_dot_product else 0xD08, "variant": 0, "revision": 0}
    known |= _descriptions().get(cpu.model, {})
    midr = known["implementer"] << 24 | known["variant"] << 20 | 0xF << 16 | known["part"] << 4 | known["revision"]
    cores = range(cpu.cores)
    block = (
        "processor\t: {core}\nBogoMIPS\t: 108.00\n"
        f"Features\t: {' '.join(cpu.isa)}\nCPU implementer\t: 0x{known['implementer']:02x}\nCPU architecture: 8\n"
        f"CPU variant\t: 0x{known['variant']:x}\nCPU part\t: 0x{known['part']:03x}\nCPU revision\t: {known['revision']}\n"
    )
    last = cpu.cores - 1
    listed = f"0-{last}\n" if last else "0\n"
    root = "sys/devices/system/cpu"
    files = {"proc/cpuinfo": "\n".join(block.format(core=core) for core in cores) + "\n"}
    files |= {f"{root}/{name}": listed for name in ("possible", "present", "online")}
    files[f"{root}/kernel_max"] = f"{last}\n"
    for core in cores:
        here = f"{root}/cpu{core}"
        files[f"{here}/regs/identification/midr_el1"] = f"0x{midr:016x}\n"
        files[f"{here}/topology/core_id"] = f"{core}\n"
        files[f"{here}/topology/physical_package_id"] = "0\n"
        files[f"{here}/cpufreq/cpuinfo_max_freq"] = f"{cpu.clock_mhz * 1000}\n"
    return files


def emulator_env(emulation: Emulated) -> dict[str, str]:
    """The environment of an emulator process: the user's own without what would steer the emulated Python."""
    return {**os.environ, **emulation.env, "PYTHONDONTWRITEBYTECODE": "1"}
