"""An ARM machine for tests of what reaches a device over a wire: Debian's ARM root entered through proot, whose shell and
tools are ARM programs under emulation, with a Raspberry Pi's /proc/cpuinfo and /sys. Debian packages are fetched once,
into the user's cache; nothing is installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepipe.device_setup import apt_fetch
from edgepipe.emulation import cpu_view, folder_of, lock_digest
from edgepipe.profile import load_profile

TOOLS = ("openssh-server", "openssh-client", "proot", "libtalloc2", "libnss-wrapper", "libwrap0", "libaudit1", "libcap-ng0", "libpam0g")
ADB = ("adb", "android-libbase", "android-libboringssl", "android-libcutils", "android-liblog", "libusb-1.0-0")
ROOT = ("dash", "tar", "coreutils", "libselinux1", "libacl1", "libattr1", "libgmp10", "libpcre2-8-0")
HOST_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/android")


def unpacked(cache: Path, name: str, arch: str, packages: Sequence[str], base: Path | None = None, lock: str = "") -> Path:
    """The packages laid out on top of a copy of `base`; kept in the cache for the next run."""
    key = hashlib.sha256(" ".join([*packages, lock]).encode()).hexdigest()[:12]
    home = cache / "devices" / "tests" / f"{name}-{key}"
    if not home.is_dir():
        debs = apt_fetch(cache / "devices" / "downloads" / f"tests-{arch}", arch, packages)
        building = home.with_name(f".tmp-{os.getpid()}-{name}")
        shutil.rmtree(building, ignore_errors=True)
        if base is None:
            building.mkdir(parents=True)
        else:
            shutil.copytree(base, building, symlinks=True)
        for deb in debs:
            subprocess.run(["dpkg", "-x", str(deb), str(building)], check=True)
        try:
            building.rename(home)
        except OSError:
            shutil.rmtree(building)  # another run was first
    return home


@dataclass(frozen=True)
class ArmMachine:
    """`home` is the user's folder on it; `shell` a program that enters it and takes what /bin/sh takes."""

    home: Path
    sys: Path
    shell: Path
    tools: Path


def make_machine(cache: Path, folder: Path, profile: str = "rpi4", binds: Mapping[Path, str] | None = None) -> ArmMachine:
    """A machine with a home and a /tmp of its own under `folder`."""
    tools = unpacked(cache, "tools", "amd64", TOOLS)
    root = unpacked(cache, "arm", "arm64", ROOT, folder_of("arm64") / "root", lock_digest("arm64"))
    for place in ("proc", "sys", "dev", "tmp", "home/pi"):
        (root / place).mkdir(parents=True, exist_ok=True)
    for link, target in (("usr/bin/python3", "python3.11"), ("bin/sh", "dash")):
        if not (root / link).is_symlink():
            (root / link).symlink_to(target)
    home, tmp = folder / "home", folder / "tmp"
    home.mkdir(parents=True)
    tmp.mkdir()
    view = cpu_view(load_profile(profile).cpu)
    shutil.copytree(view / "sys", folder / "sys")
    emulator = Path("/host-rootfs") / folder_of("emulator").relative_to("/")
    # The emulator's own libraries must reach neither the shell it enters from nor the ARM programs: a loader of its own.
    libraries = [f"{emulator}/{place}" for place in HOST_LIBRARIES[:2]] + [
        f"/host-rootfs/{place}" for place in reversed(HOST_LIBRARIES[:2])
    ]
    cpu = load_profile(profile).cpu.model
    qemu = f"/lib64/ld-linux-x86-64.so.2 --library-path {':'.join(libraries)} {emulator}/usr/bin/qemu-aarch64 -cpu {cpu}"
    places = {
        Path("/dev"): "/dev", Path("/proc"): "/proc", view / "proc" / "cpuinfo": "/proc/cpuinfo", folder / "sys": "/sys",
        tmp: "/tmp", home: "/home/pi", **(binds or {}),
    }  # fmt: skip
    bound = " ".join(f"-b '{place}:{there}'" for place, there in places.items())
    shell = folder / "shell"
    shell.write_text(f"""#!/bin/sh
export LD_LIBRARY_PATH='{":".join(str(tools / place) for place in HOST_LIBRARIES[:2])}'
export HOME=/home/pi PATH=/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
unset LD_PRELOAD TMPDIR PYTHONPATH EDGEPIPE_CACHE
exec '{tools}/usr/bin/proot' -r '{root}' -q '{qemu}' {bound} -w /home/pi /bin/sh "$@"
""")
    shell.chmod(0o755)
    return ArmMachine(home, folder / "sys", shell, tools)


def libraries(tools: Path) -> str:
    return ":".join(str(tools / place) for place in HOST_LIBRARIES)
