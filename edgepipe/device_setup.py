"""Brings emulators and ARM roots to this machine: packages of the user's own registries, unpacked in a folder.

The only part of edgepipe that uses the network. Needs no root and changes nothing outside `EDGEPIPE_CACHE`: apt runs
with private state, archives are unpacked, never installed. Versions are pinned and checked by sha256; where an archive
has dropped a pinned version for a security update, the one it has now is taken, vouched for by its signed index, and
noted in `setup.json`. What is downloaded stays, so that a set-up that was cut off goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import browser_setup
from edgepipe.artifact import sha256_file
from edgepipe.emulation import LOCK, RECORD, WHEELS, can_emulate, contents_digest, cpu_view, folder_of, is_intact, is_set_up, parts_of
from edgepipe.errors import DeviceError, ResourceError, UsageError
from edgepipe.profile import runs_here
from edgepipe.resources import resource
from edgepipe.store import cache_root, disk_errors, drop_leftovers, scratch_prefix, write_atomic
from edgepipe.toml import read_toml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.profile import Profile
    from edgepipe.progress import Progress

STAGE = "devices setup"
SOURCES = "EDGEPIPE_APT_SOURCES"
HOOKS = (
    b"APT::Update::Pre-Invoke",
    b"APT::Update::Post-Invoke",
    b"APT::Update::Post-Invoke-Success",
    b"DPkg::Post-Invoke",
    b"DPkg::Pre-Invoke",
)
NETWORK_S = 900
RESUME = "check the network and run the set-up again; it goes on where it was"
ARCHITECTURES = {"emulator": "amd64", "arm64": "arm64"}
WHEEL_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def set_up_profile(profile: Profile, progress: Progress) -> str:
    """Everything that stands for the profile's device here; gives what there is now. Raises `UsageError` for a device
    that needs nothing or that nothing can stand for."""
    if profile.reach.runner == "browser":
        browser_setup.setup(browser_setup.browser_folder(), progress)
        return "the browser runtime is set up"
    if runs_here(profile):
        raise UsageError("this machine is of that kind: nothing is to be set up", where=f"profile {profile.name}", fix="use it as it is")
    if not can_emulate(profile):
        raise UsageError(
            f"{profile.title} cannot be emulated here (that takes Linux on x86-64, and a device with ONNX Runtime on ARM, or on x86 without VNNI)",
            where=f"profile {profile.name}",
            fix="validate the bundle on such a machine",
        )
    progress.stage(STAGE, profile.name)
    homes = [set_up(part, progress) for part in parts_of(profile)]
    records = [json.loads((home / RECORD).read_text(encoding="utf-8")) for home in homes]
    if profile.cpu.arch == "aarch64":
        cpu_view(profile.cpu)
    progress.finish(STAGE, "ready")
    size = sum(record["size_bytes"] for record in records)
    newer = [name for record in records for name in record["newer_than_pinned"]]
    return f"emulation is set up ({size / 1e6:.0f} MB)" + (f"; newer than pinned: {', '.join(newer)}" if newer else "")


def set_up(part: str, progress: Progress) -> Path:
    """Make one part ready; a second call does nothing, or unpacks again what was changed since. Raises `DeviceError`
    when a tool or the network is missing."""
    home = folder_of(part)
    if is_set_up(part) and is_intact(home):
        return home
    downloads = cache_root() / "devices" / "downloads"
    lock = json.loads((resource("devices") / "emulation" / LOCK).read_text(encoding="utf-8"))[part]
    progress.update(STAGE, f"{part}: downloading {len(lock)} packages")
    debs, drifted = _packages(downloads / part, ARCHITECTURES[part], lock)
    wheels: list[Path] = []
    if part == "arm64":
        progress.update(STAGE, f"{part}: downloading wheels")
        wheels = _wheels(downloads / "wheels")
    start = time.monotonic()
    with disk_errors(home):
        home.parent.mkdir(parents=True, exist_ok=True)
        drop_leftovers(home.parent, ".tmp-")
        building = Path(tempfile.mkdtemp(dir=home.parent, prefix=".tmp-" + scratch_prefix()))
        building.chmod(0o755)
        try:
            root = building / "root" if part == "arm64" else building
            for number, deb in enumerate(debs):
                progress.update(STAGE, f"{part}: unpacking", number, len(debs) + len(wheels))
                _run(["dpkg", "-x", str(deb), str(root)], "unpack", "dpkg")
            for number, wheel in enumerate(wheels):
                progress.update(STAGE, f"{part}: unpacking", len(debs) + number, len(debs) + len(wheels))
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(root / "usr" / "lib" / "python3" / "dist-packages")
            _drop_unused(root)
            record = {
                "packages": sorted(deb.name for deb in debs),
                "wheels": sorted(wheel.name for wheel in wheels),
                "newer_than_pinned": drifted,
                "unpack_s": round(time.monotonic() - start, 1),
                "contents": contents_digest(building),
                "size_bytes": sum(path.lstat().st_size for path in building.rglob("*") if not path.is_symlink() and path.is_file()),
            }
            write_atomic(building / RECORD, json.dumps(record, indent=1).encode())
            _replace(home, building)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return home


def _replace(home: Path, building: Path) -> None:
    """Put a whole set-up in its place; one that is there is damaged, or another process was first with the same."""
    is_intact.cache_clear()
    if home.exists() and not is_intact(home):
        aside = Path(tempfile.mkdtemp(dir=home.parent, prefix=".tmp-" + scratch_prefix()))
        home.rename(aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)
        is_intact.cache_clear()
    try:
        os.rename(building, home)
    except OSError:
        if not (home / RECORD).is_file():
            raise


def _drop_unused(root: Path) -> None:
    """Documentation, translations and byte-code of other places: half of the files, and nothing reads them."""
    for place in ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/lintian", "usr/share/bug"):
        shutil.rmtree(root / place, ignore_errors=True)
    bins = root / "usr" / "bin"
    if (bins / "qemu-aarch64").exists():
        for path in bins.glob("qemu-*"):
            if path.name not in ("qemu-aarch64", "qemu-x86_64"):
                path.unlink()


def _packages(folder: Path, arch: str, lock: Mapping[str, Mapping[str, str]]) -> tuple[list[Path], list[str]]:
    """The archives of a part, checked; and those whose pinned version was gone."""
    found = {name: _kept(folder, name, entry["sha256"]) for name, entry in lock.items()}
    wanted = [name for name, path in found.items() if path is None]
    drifted: list[str] = []
    if wanted:
        for path in apt_fetch(folder, arch, wanted, {name: lock[name]["version"] for name in wanted}):
            name, version = path.name.split("_")[:2]
            if sha256_file(path) != lock[name]["sha256"]:
                if version.replace("%3a", ":") == lock[name]["version"]:
                    path.unlink()
                    raise DeviceError(
                        "the download is not the file that was pinned (its sha256 differs)",
                        where=path.name,
                        fix="run the set-up again; if it repeats, the archive in use is not to be trusted",
                    )
                drifted.append(f"{name} {version}")
            found[name] = path
    return [path for path in found.values() if path is not None], drifted


def _kept(folder: Path, name: str, sha256: str) -> Path | None:
    """An archive of an earlier, perhaps cut off, set-up."""
    return next((path for path in folder.glob(f"{name}_*.deb") if sha256_file(path) == sha256), None)


def apt_fetch(folder: Path, arch: str, names: Sequence[str], versions: Mapping[str, str] | None = None) -> list[Path]:
    """Download packages of an architecture with apt, as any user: private state, the machine's own sources (or those
    of the file `EDGEPIPE_APT_SOURCES`). Of a version that the archive no longer has, the one it has is taken."""
    state = folder / ".apt"
    with disk_errors(folder):
        for place in ("state/lists/partial", "cache/archives/partial"):
            (state / place).mkdir(parents=True, exist_ok=True)
    quiet = state / "apt.conf"  # the system's settings hold, but not what it runs after an update: that would write outside
    write_atomic(quiet, b"".join(b"#clear %s;\n" % hook for hook in HOOKS))
    options = [
        *("-c", str(quiet), "-o", f"Dir::State={state}/state", "-o", f"Dir::Cache={state}/cache", "-o", "Dir::State::status=/dev/null"),
        *("-o", f"APT::Architecture={arch}", "-o", f"APT::Architectures={arch}", "-o", "Debug::NoLocking=1", "-o", "Acquire::Retries=3"),
        *("-o", "APT::Sandbox::User="),
    ]
    if own := os.environ.get(SOURCES):
        options += ["-o", f"Dir::Etc::sourcelist={Path(own).resolve()}", "-o", "Dir::Etc::sourceparts=/dev/null"]
    warned = _run(["apt-get", *options, "-qq", "update"], "read the package lists", "apt")
    known = subprocess.run(["apt-cache", *options, "madison", *names], capture_output=True, text=True, check=False).stdout
    have: dict[str, list[str]] = {}
    for line in known.splitlines():
        name, version, *_ = (part.strip() for part in line.split("|"))
        have.setdefault(name, []).append(version)
    absent = [name for name in names if name not in have]
    if absent and (failed := next((line for line in warned.splitlines() if "Failed to fetch" in line), "")):  # only a warning of apt's
        raise DeviceError(f"apt could not read the package lists: {failed}", where=STAGE, fix=RESUME)
    if absent:
        release = read_toml(resource("devices") / "emulation" / "packages.toml")["release"]
        raise DeviceError(
            f"the package sources of this machine have no {', '.join(absent)} for {arch}",
            where="apt",
            fix=f"name a sources.list of Debian {release} in {SOURCES}; the set-up uses it and leaves the system as it is",
        )
    wanted = {name: (versions or {}).get(name, "") for name in names}
    chosen = {name: version if version in have[name] else have[name][0] for name, version in wanted.items()}  # apt names the newest first
    _run(
        ["apt-get", *options, "-qq", "download", *(f"{name}={version}" for name, version in chosen.items())],
        "download packages",
        "apt",
        cwd=folder,
    )
    found = {name: next(folder.glob(f"{name}_{version.replace(':', '%3a')}_*.deb"), None) for name, version in chosen.items()}
    if lost := [name for name, path in found.items() if path is None]:
        raise DeviceError(f"apt gave no {', '.join(lost)}", where="apt", fix="run the set-up again")
    return [path for path in found.values() if path is not None]


def wheel_command(folder: Path, wanted: Sequence[str]) -> list[str]:
    """pip's command that downloads aarch64 wheels for the root's Python."""
    platforms = [word for name in WHEEL_PLATFORMS for word in ("--platform", name)]
    python = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
    return [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
            *platforms, *python, "-d", str(folder), *wanted]  # fmt: skip


def _wheels(folder: Path) -> list[Path]:
    lock = resource("devices") / "emulation" / WHEELS
    digests = {line.split("==")[0]: line.strip().rsplit(":", 1)[1] for line in lock.read_text(encoding="utf-8").splitlines()}
    kept = {sha256_file(path): path for path in folder.glob("*.whl")}
    if not set(digests.values()) <= set(kept):
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        _run(wheel_command(folder, ["--require-hashes", "-r", str(lock)]), "download wheels", "pip")
        kept = {sha256_file(path): path for path in folder.glob("*.whl")}
    return [kept[digest] for digest in digests.values()]


def _run(command: Sequence[str], doing: str, tool: str, **more: Any) -> str:
    """Run a tool that must succeed; gives its warnings."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL, timeout=NETWORK_S, **more
        )
    except FileNotFoundError:
        fix = (
            f"install {command[0]} (Debian: apt-get install {tool}), or set it up on a Debian machine and copy EDGEPIPE_CACHE/devices here"
        )
        raise DeviceError(f"{command[0]} is not on this machine", where=STAGE, fix=fix) from None
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{tool} did not {doing} within {NETWORK_S} s", where=STAGE, fix=RESUME) from None
    if done.returncode:
        words = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no message"]
        told = next((line for line in words if line.startswith(("E:", "ERROR"))), words[-1])
        if "No space left" in done.stderr:
            raise ResourceError(f"the disk is full: {tool} could not {doing}: {told}", where=STAGE, fix="free some space in EDGEPIPE_CACHE")
        fix = f"{sys.executable} -m ensurepip, and run the set-up again" if "No module named pip" in told else RESUME
        raise DeviceError(f"{tool} could not {doing}: {told}", where=STAGE, fix=fix)
    return str(done.stderr)
