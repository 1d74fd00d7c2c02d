"""What the browser runner and the bundle's page need beside a browser: onnxruntime-web and tokenizers.js, pinned.

npm installs what `devices/browser/package-lock.json` names and checks it; the four files that are used are kept, each
by its own sha256 (`files.json`), and the rest is dropped. Nothing is fetched afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import digest, sha256_file
from edgepipe.chromium import INSTALL as INSTALL_CHROMIUM
from edgepipe.chromium import find_chromium
from edgepipe.errors import DeviceError
from edgepipe.resources import resource
from edgepipe.store import cache_root, disk_errors, drop_leftovers, scratch_prefix

if TYPE_CHECKING:
    from edgepipe.progress import Progress

STAGE = "setup browser"
SET_UP = "edgepipe devices setup browser-wasm"
INSTALL_NPM = "apt-get install npm"
LIMIT_S = 900


def browser_folder() -> Path:
    """Where everything is kept between runs."""
    return cache_root() / "devices" / "browser"


def pinned_files() -> dict[str, dict[str, Any]]:
    """{name: {from, sha256, bytes}} of every file that is used."""
    found: dict[str, dict[str, Any]] = json.loads((resource("devices") / "browser" / "files.json").read_text(encoding="utf-8"))
    return found


def runtime_version() -> str:
    """The version of onnxruntime-web that is pinned."""
    package = json.loads((resource("devices") / "browser" / "package.json").read_text(encoding="utf-8"))
    return str(package["dependencies"]["onnxruntime-web"])


def runtime_folder(folder: Path | None = None) -> Path:
    """Where set-up puts the pinned files, by their digest: another version never takes their place."""
    return (folder or browser_folder()) / f"runtime-{digest(pinned_files())[:12]}"


def checked_runtime() -> Path:
    """The folder of the pinned files, each read and found to be what it should. Raises `DeviceError`."""
    folder = runtime_folder()
    if wrong := wrong_file(folder):
        what = "is not set up" if not folder.is_dir() else f"has a file that was changed since set-up: {wrong}"
        raise DeviceError(f"the browser runtime {what}", where=str(folder), fix=SET_UP)
    return folder


def wrong_file(folder: Path) -> str:
    """The first pinned file that is missing in the folder or is another; empty when all are right."""
    for name, entry in pinned_files().items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            return name
    return ""


def missing() -> list[tuple[str, str]]:
    """What the browser runner lacks on this machine, each with the command that gets it."""
    lacking = [] if find_chromium() else [("Chromium is not installed", INSTALL_CHROMIUM)]
    if wrong := wrong_file(runtime_folder()):
        if shutil.which("npm") is None:
            lacking.append(("npm is not installed (set-up fetches with it)", INSTALL_NPM))
        changed = runtime_folder().is_dir()
        lacking.append((f"{wrong} was changed since set-up" if changed else "onnxruntime-web is not set up", SET_UP))
    return lacking


def setup(folder: Path, progress: Progress) -> None:
    """Put the pinned files under `folder`. Does nothing where they are; killed anywhere, runs again. Raises `DeviceError`."""
    target = runtime_folder(folder)
    progress.stage(STAGE)
    if not wrong_file(target):
        progress.finish(STAGE, "already set up")
        return
    npm = shutil.which("npm")
    if npm is None:
        raise DeviceError("npm is not installed", where=STAGE, fix=INSTALL_NPM)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        drop_leftovers(folder, ".setup-")
        work = Path(tempfile.mkdtemp(dir=folder, prefix=f".setup-{scratch_prefix()}"))
    try:
        with disk_errors(folder):
            _install(npm, work, progress)
            fresh = work / "runtime"
            fresh.mkdir()
            for name, entry in pinned_files().items():
                shutil.copyfile(work / "node_modules" / entry["from"], fresh / name)
            if wrong := wrong_file(fresh):
                raise DeviceError(
                    f"{wrong} is not the file that is pinned", where=STAGE, fix="see where npm fetches from: npm config get registry"
                )
            _take(fresh, target, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress.finish(STAGE, f"onnxruntime-web {runtime_version()}, {sum(entry['bytes'] for entry in pinned_files().values()) / 1e6:.0f} MB")


def _take(fresh: Path, target: Path, work: Path) -> None:
    if target.exists():
        os.rename(target, work / "old")
    try:
        os.rename(fresh, target)
    except OSError:
        if wrong_file(target):  # else another set-up was first
            raise


def _install(npm: str, work: Path, progress: Progress) -> None:
    """`npm ci`: exactly what the lock names, its integrity checked, no package's scripts run."""
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(resource("devices") / "browser" / name, work / name)
    progress.update(STAGE, f"npm fetches onnxruntime-web {runtime_version()} (44 MB)")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"npm was not done within {LIMIT_S} s", where=STAGE, fix="run it again: what was fetched is kept") from None
    if done.returncode:
        lines = [line.removeprefix("npm error ").strip() for line in done.stderr.splitlines() if line.startswith("npm error ")]
        words = next((line for line in lines if not line.startswith(("code", "errno", "syscall", "type"))), "no message")
        raise DeviceError(
            f"npm could not fetch the browser runtime: {words[:300]}", where=STAGE, fix="see that this machine is online, then run it again"
        )
