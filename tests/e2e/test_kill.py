"""Killed anywhere, the next run goes on from there and gives the same artifact; nobody is left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.e2e.command import COMMAND, Project, copy, leftovers, listing, manifest_of

if TYPE_CHECKING:
    from pathlib import Path

BUILD = ("compress", "--profile", "host", "--verbose")
# Lines of the progress that stand for moments spread over a build: what runs right after each is what is killed.
MOMENTS = ("merge-lora: 1 adapter", "export-onnx: onnxruntime", "optimize-graph: constants", "validate: on host", "validate: memory")


@pytest.fixture
def cold(small_source: Path, built: Project, tmp_path: Path) -> Project:
    """The small project with a cache that holds only the measured fusions, which would differ if measured again."""
    shutil.copytree(built.cache / "devices", tmp_path / "cache" / "devices")
    return Project(copy(small_source, tmp_path / "project"), tmp_path / "cache")


def start(project: Project, *, until: str) -> subprocess.Popen[str]:
    """Begin a build in a process group of its own, and wait until it tells that moment."""
    process = subprocess.Popen(
        [*COMMAND, *BUILD], cwd=project.folder, env=project.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, encoding="utf-8", start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if until in line:
            return process
    raise AssertionError(f"the build never came to {until!r}: {process.communicate()}")


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes the build has started."""
    return psutil.Process(process.pid).children(recursive=True)


def gone_within(processes: list[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("moment", MOMENTS)
def test_build_killed_at_any_moment_goes_on_to_the_same_artifact(cold: Project, built: Project, moment: str) -> None:
    process = start(cold, until=moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    assert process.returncode == -signal.SIGKILL
    assert not (cold.folder / "build").exists()
    cold.passes("compress", "--profile", "host", "--quiet")
    assert manifest_of(cold.folder / "build")["artifact"] == manifest_of(built.folder / "build")["artifact"]
    assert leftovers(cold.cache) == []
    assert not [path.name for path in cold.folder.iterdir() if path.name.startswith(".")]


def test_finished_passes_of_a_killed_build_are_not_run_again(cold: Project) -> None:
    process = start(cold, until="optimize-graph: constants")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    cold.passes("compress", "--profile", "host", "--quiet")

    assert {step["name"]: step["cached"] for step in manifest_of(cold.folder / "build")["passes"]}["merge-lora"] is True


@pytest.mark.parametrize("moment", ["merge-lora: 1 adapter", "validate: on host"])
def test_children_die_with_a_killed_parent(cold: Project, moment: str) -> None:
    process = start(cold, until=moment)
    time.sleep(0.3)  # the child of that stage is being started
    children = family(process)

    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert children
    assert gone_within(children, 10)


@pytest.mark.parametrize("moment", ["merge-lora: 1 adapter", "validate: on host"])
@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "parent-only"])
def test_interrupt_ends_with_130_and_one_message(cold: Project, moment: str, whole_group: bool) -> None:
    before = listing(cold.folder)
    process = start(cold, until=moment)
    children = family(process)

    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert errors.count("error: ") == 1 and "interrupted" in errors and "Traceback" not in errors
    assert out == ""
    assert listing(cold.folder) == before
    assert leftovers(cold.cache) == []
    assert gone_within(children, 10)


def test_terminated_build_leaves_nothing_running(cold: Project) -> None:
    process = start(cold, until="merge-lora: 1 adapter")
    time.sleep(0.3)
    children = family(process)

    process.terminate()
    process.communicate(timeout=60)

    assert process.returncode in (-signal.SIGTERM, 143)
    assert gone_within(children, 10)
    assert not (cold.folder / "build").exists()


def test_two_builds_at_once_in_one_cache_both_succeed(cold: Project, built: Project) -> None:
    other = Project(copy(cold.folder, cold.folder.parent / "other"), cold.cache)
    running = [subprocess.Popen([*COMMAND, *BUILD], cwd=one.folder, env=one.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for one in (cold, other)]

    ended = [process.communicate(timeout=120)[1] for process in running]

    assert [process.returncode for process in running] == [0, 0], ended
    assert manifest_of(cold.folder / "build")["artifact"] == manifest_of(other.folder / "build")["artifact"] == manifest_of(built.folder / "build")["artifact"]
