"""A set-up browser runtime for tests, taken from the user's own cache: nothing is fetched while tests run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgepipe.browser_setup import browser_folder, checked_runtime, missing, runtime_folder


def give_runtime(user_cache: Path) -> Path:
    """The pinned files in the test session's cache, linked to the user's. Skips where they are not set up."""
    here = runtime_folder(browser_folder())
    there = runtime_folder(user_cache / "devices" / "browser")
    if not here.exists() and there.is_dir():
        here.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(there, here)
    if lacking := missing():
        pytest.skip("; ".join(f"{what}: {command}" for what, command in lacking))
    return checked_runtime()
