"""The device driver as a module of the engine: one file (`devices/driver.py`) executes programs everywhere."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from edgepipe.importing import import_file
from edgepipe.resources import resource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BESIDE = {"stream": ("stream.py",), "pipeline": ("ocr.py",)}  # what the driver loads for a kind of program


def driver_files(program: Mapping[str, Any]) -> list[Path]:
    """The files that execute this program."""
    return [resource("devices") / name for name in ("driver.py", *BESIDE.get(program["kind"], ()))]


@cache
def driver_module() -> Any:
    return import_file(resource("devices") / "driver.py", "edgepipe_device_driver")
