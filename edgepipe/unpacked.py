"""What has to be unpacked before it can be read piecewise, in `EDGEPIPE_CACHE/unpacked/<digest>/`: once, whole or not at all.

Folders that nobody used for a month go when another is added.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from typing import TYPE_CHECKING

from edgepipe.artifact import digest, sha256_file
from edgepipe.store import cache_root, disk_errors, drop_leftovers, scratch_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

UNUSED_S = 30 * 86400


def unpacked(sources: Sequence[Path], what: str, write: Callable[[Path], None]) -> Path:
    """The folder that `write` fills with `what` is in `sources`; filled before where a folder for this content is there."""
    home = cache_root() / "unpacked"
    target = home / digest([what, *(sha256_file(source) for source in sources)])
    if not target.is_dir():
        with disk_errors(home):
            home.mkdir(parents=True, exist_ok=True)
            drop_leftovers(home, ".tmp-")
            _drop_unused(home)
            building = _new_folder(home)
            try:
                write(building)
                if hasattr(os, "sync"):  # not on Windows
                    os.sync()  # one for all: a sync for each of ten thousand images takes minutes
                _replace(building, target)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    os.utime(target)
    return target


def _new_folder(home: Path) -> Path:
    building = home / tempfile.mkdtemp(dir=home, prefix=".tmp-" + scratch_prefix())
    building.chmod(0o755)
    return building


def _replace(building: Path, target: Path) -> None:
    try:
        building.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first, with the same bytes
            raise


def _drop_unused(home: Path) -> None:
    for folder in home.iterdir():
        if not folder.name.startswith(".") and time.time() - folder.stat().st_mtime > UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)
