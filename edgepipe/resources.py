"""Finds `profiles/`, `devices/` and `export/` in a checkout, an editable install and a wheel."""

from __future__ import annotations

from pathlib import Path

from edgepipe.errors import EdgepipeError


def resource(folder: str) -> Path:
    """The folder of that name: beside the package in a checkout, under `edgepipe/_data/` in a wheel."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_data" / folder, package.parent / folder):
        if candidate.is_dir():
            return candidate
    raise EdgepipeError(f"edgepipe's own folder {folder}/ is missing", where=str(package), fix="install edgepipe again")
