"""The device driver as a module of the engine: one file (`devices/driver.py`) executes programs everywhere."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

from edgepipe.resources import resource


@cache
def driver_module() -> Any:
    spec = importlib.util.spec_from_file_location("edgepipe_device_driver", resource("devices") / "driver.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
