"""Writes the bundle, and nothing else does: into a temporary folder, then one rename.

OUT/
  artifact.json       components, assets and program, as the driver reads them
  model/…  assets/…   the artifact's files
  driver.py  run.py   executes it with onnxruntime, numpy and tokenizers only
  manifest.json       every pass, figure and verdict
  report.html  model_card.md  run.log  SHA256SUMS
"""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Artifact, placed_files, sha256_file
from edgepipe.driver import driver_files
from edgepipe.errors import ModelError, UsageError
from edgepipe.resources import resource
from edgepipe.store import disk_errors, drop_leftovers, scratch_prefix

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECKSUMS = "SHA256SUMS"
REJECTED = ".rejected"


def check_target(out: Path, *, force: bool, archive: bool = False) -> None:
    """Refuse an output folder that exists (without `force`), is no bundle, or cannot be written, before hours of work."""
    with disk_errors(out):
        if out.exists() and not force:
            raise UsageError("the output folder exists", where=str(out), fix="choose another --out, or --force to replace it")
        if archive and archive_of(out).exists() and not force:
            raise UsageError("the archive exists", where=str(archive_of(out)), fix="choose another --out, or --force to replace it")
        for path in (out, rejected_of(out)):
            if not _replaceable(path):
                raise UsageError(
                    "the output path exists and is no bundle, so it will not be replaced", where=str(path), fix="choose another --out"
                )
    parent = out.parent
    while not parent.exists():
        parent = parent.parent
    with disk_errors(parent), tempfile.NamedTemporaryFile(dir=parent, prefix=".edgepipe-"):
        pass


def _replaceable(path: Path) -> bool:
    """Whether nothing is lost with what stands there: nothing, an empty folder, or a bundle."""
    if not path.is_dir():
        return not path.exists()
    return _is_bundle(path) or not any(path.iterdir())


def rejected_of(out: Path) -> Path:
    """Where a bundle goes whose budget broke."""
    return out.with_name(out.name + REJECTED)


def _is_bundle(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("artifact.json", "manifest.json", CHECKSUMS))


def device_bytes(artifact: Artifact) -> int:
    """Bytes that go to the device: the artifact's files, the driver and run.py."""
    scripts = [*driver_files(artifact.program), resource("export") / "run.py"]
    return sum(ref.bytes for ref in placed_files(artifact).values()) + sum(path.stat().st_size for path in scripts)


def write_bundle(
    artifact: Artifact,
    out: Path,
    texts: Mapping[str, str],
    *,
    broken: bool,
    archive: bool = False,
    threads: int = 1,
    extra: Mapping[str, Path] = MappingProxyType({}),
) -> Path:
    """Write the bundle whole; `texts` are the generated files by name, `extra` files that the target's runtime takes besides,
    `threads` what it was validated with and runs with unless told otherwise. A broken one goes to `OUT.rejected`.

    What stood at the target is replaced in one step; a crash leaves either the old or the new.
    """
    target = rejected_of(out) if broken else out
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        drop_leftovers(target.parent, f".{target.name}-")
        building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-{scratch_prefix()}"))
        building.chmod(0o755)
    try:
        with disk_errors(target):
            _fill(building, artifact, texts, threads, extra)
            _swap(building, target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    if not broken and _is_bundle(rejected_of(out)):  # an older rejection no longer tells of this build
        shutil.rmtree(rejected_of(out), ignore_errors=True)
    with disk_errors(target):
        if archive:
            write_archive(target)
    return target


def _fill(folder: Path, artifact: Artifact, texts: Mapping[str, str], threads: int, extra: Mapping[str, Path]) -> None:
    for place, ref in placed_files(artifact).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ref.location, folder / place)
    (folder / "artifact.json").write_text(
        json.dumps({**artifact.to_json(), "threads": threads}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    for path in driver_files(artifact.program):
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(resource("export") / "run.py", folder / "run.py")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for place, path in extra.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / place)
    lines = [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}" for path in _files(folder)]
    (folder / CHECKSUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path in _files(folder):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _swap(building: Path, target: Path) -> None:
    if not target.exists():
        os.rename(building, target)
        return
    if _exchanged(building, target):
        shutil.rmtree(building, ignore_errors=True)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-old-"))
    os.rename(target, aside / "old")
    try:
        os.rename(building, target)
    except OSError:
        os.rename(aside / "old", target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two folders in one step, where the system and its file system can (Linux)."""
    exchange = 2  # RENAME_EXCHANGE
    here = -100  # AT_FDCWD
    try:
        return bool(ctypes.CDLL(None).renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
    except (AttributeError, OSError, TypeError):  # the C library has none
        return False


def archive_of(bundle: Path) -> Path:
    return bundle.with_name(bundle.name + ".tar.gz")


def write_archive(bundle: Path) -> Path:
    """`BUNDLE.tar.gz`, the same bytes for the same files: sorted, no times, no owners."""
    target = archive_of(bundle)
    part = target.with_name(f".{target.name}.part")

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime = info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mode = 0o644 if info.isfile() else 0o755
        return info

    try:
        with (
            part.open("wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in _files(bundle):
                tar.add(path, f"{bundle.name}/{path.relative_to(bundle).as_posix()}", filter=plain)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def read_bundle(folder: Path) -> tuple[Artifact, dict[str, Any]]:
    """A bundle's artifact and manifest. Raises `ModelError` for what is no bundle, and for one that was tampered with."""
    sums = folder / CHECKSUMS
    if not _is_bundle(folder):
        raise ModelError("the folder is no edgepipe bundle", where=str(folder), fix="name the folder `edgepipe compress` wrote")
    pairs = [line.split("  ", 1) for line in sums.read_text(encoding="utf-8", errors="replace").splitlines() if "  " in line]
    listed = {name: expected for expected, name in pairs}
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != expected:
            raise ModelError(
                f'"{name}" is not the file the bundle was made with', where=str(folder), fix="take the bundle from where it was built again"
            )
    extra = {path.relative_to(folder).as_posix() for path in _files(folder)} - set(listed) - {CHECKSUMS}
    if stray := sorted(
        name
        for name in extra
        if name.startswith((*(f"{role}/" for role in _roles(folder)), "assets/", "ort/", "browser/")) or name.endswith((".py", ".html"))
    ):
        raise ModelError(f'"{stray[0]}" was added to the bundle', where=str(folder), fix="take the bundle from where it was built again")
    try:
        artifact = Artifact.from_json(json.loads((folder / "artifact.json").read_text(encoding="utf-8")), folder)
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            "the bundle's artifact.json or manifest.json is corrupt", where=str(folder), fix="take the bundle from where it was built again"
        ) from None
    if missing := sorted(set(placed_files(artifact)) - set(listed)):
        raise ModelError(f'"{missing[0]}" is not in SHA256SUMS', where=str(folder), fix="take the bundle from where it was built again")
    return artifact, manifest


def _roles(folder: Path) -> list[str]:
    """Of the components by name, each of which has a folder; whether the file is whole is looked at later."""
    try:
        return [*json.loads((folder / "artifact.json").read_text(encoding="utf-8"))["components"], "model"]
    except (ValueError, KeyError, TypeError):
        return ["model"]


def totals(artifact: Artifact) -> dict[str, Any]:
    """{sha256, size_bytes, parameters} over all components; the sha256 is the file's where there is one only."""
    files = [ref for component in artifact.components.values() for ref in component.files]
    joined = hashlib.sha256("".join(ref.sha256 for ref in files).encode()).hexdigest()
    return {
        "sha256": files[0].sha256 if len(files) == 1 else joined,
        "size_bytes": sum(ref.bytes for ref in files),
        "parameters": sum(component.parameters for component in artifact.components.values()),
    }
