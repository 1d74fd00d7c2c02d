"""The device driver as a module of the engine: one file (`devices/driver.py`) executes programs everywhere."""

from __future__ import annotations

from functools import cache
from typing import Any

from edgepipe.importing import import_file
from edgepipe.resources import resource


@cache
def driver_module() -> Any:
    return import_file(resource("devices") / "driver.py", "edgepipe_device_driver")
