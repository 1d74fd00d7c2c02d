"""Stand-ins for what `edgepipe devices setup` brings: set-ups without an emulator in them, for tests of what is around it."""

from __future__ import annotations

import json
from pathlib import Path

from edgepipe.emulation import RECORD, contents_digest, folder_of


def fake_set_up(part: str) -> Path:
    """A part as a set-up leaves it, in the cache that is in force."""
    home = folder_of(part)
    binary = home / ("usr/bin/qemu-aarch64" if part == "emulator" else "root/usr/bin/python3.11")
    binary.parent.mkdir(parents=True)
    binary.write_bytes(b"no program")
    if part == "arm64":
        (home / "root" / "lib").symlink_to("usr/lib")
        (home / "root" / "etc").mkdir()
    (home / RECORD).write_text(json.dumps({"size_bytes": 10, "newer_than_pinned": [], "contents": contents_digest(home)}))
    return home
