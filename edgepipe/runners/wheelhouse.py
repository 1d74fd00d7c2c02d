"""Which wheels of a folder fit a device that has no internet."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError
from edgepipe.runners.board import arch_of, version_of

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "EDGEPIPE_WHEELHOUSE"


def fitting(facts: Mapping[str, Any]) -> dict[str, tuple[str, Path]]:
    """name → (version, wheel) of the newest wheels that fit; nothing where no folder is named."""
    if not (named := os.environ.get(VARIABLE)):
        return {}
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise UsageError("is no folder", where=f"{VARIABLE}={named}", fix="name a folder with wheels (pip download --platform …)")
    found: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.glob("*.whl")):
        name, version, *_, python, abi, platform = path.stem.split("-")
        name = re.sub(r"[-_.]+", "-", name).lower()
        newer = name not in found or version_of(version) > version_of(found[name][0])
        if newer and _python_fits(python, abi, facts["python"]) and any(_platform_fits(tag, facts) for tag in platform.split(".")):
            found[name] = (version, path)
    return found


def _python_fits(python: str, abi: str, version: list[int]) -> bool:
    own = f"cp{version[0]}{version[1]}"
    tags = python.split(".")
    if abi == "none":
        return bool({"py3", f"py{version[0]}{version[1]}", own} & set(tags))
    if "abi3" in abi.split("."):
        return any(tag.startswith("cp3") and int(tag[3:] or 0) <= version[1] for tag in tags)
    return own in tags and own in abi.split(".")


def _platform_fits(tag: str, facts: Mapping[str, Any]) -> bool:
    if tag == "any":
        return True
    if not tag.endswith(arch_of(facts)):
        return False
    if found := re.match(r"manylinux_(\d+)_(\d+)_", tag):
        return (int(found[1]), int(found[2])) <= version_of(str(facts["libc"]).removeprefix("glibc "))
    return tag.startswith(("manylinux2014", "manylinux2010", "manylinux1", "linux"))
