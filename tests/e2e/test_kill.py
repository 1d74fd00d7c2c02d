"""Killed anywhere, the next run goes on from there and gives the same artifact; nobody is left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.e2e.command import COMMAND, Project, copy, leftovers, listing, manifest_of
from tests.models import sentences, write_csv

if TYPE_CHECKING:
    from pathlib import Path

BUILD = ("compress", "--profile", "host", "--verbose", "--no-tune")  # what is tuned depends on times that a cold cache takes anew
# Lines of the progress that stand for moments spread over a build: what runs right after each is what is killed.
MOMENTS = ("merge-lora: 1 adapter", "export-onnx: onnxruntime", "optimize-graph: constants", "validate: on host", "validate: memory")


@pytest.fixture
def cold(small_source: Path, built: Project, tmp_path: Path) -> Project:
    """The small project with a cache that holds only the measured fusions, which would differ if measured again."""
    shutil.copytree(built.cache / "devices", tmp_path / "cache" / "devices")
    return Project(copy(small_source, tmp_path / "project"), tmp_path / "cache")


@pytest.fixture
def warm(small: Project, request: pytest.FixtureRequest) -> Project:
    """The small project with test data of its own: its passes are in the cache, its figures are not."""
    write_csv(small.folder / "judge.csv", sentences(80, seed=zlib.crc32(request.node.name.encode())))
    small.toml().write_text(small.toml().read_text().replace("[budget]", 'test = "judge.csv"\n\n[budget]'))
    return small


@pytest.fixture(params=["in a pass", "in validation"])
def interrupted(request: pytest.FixtureRequest) -> tuple[Project, str]:
    """A project, and the line of its progress after which something happens to its build."""
    project, line = ("cold", MOMENTS[0]) if request.param == "in a pass" else ("warm", "validate: on host")
    return request.getfixturevalue(project), line


def start(project: Project, *, until: str) -> subprocess.Popen[str]:
    """Begin a build in a process group of its own, and wait until it tells that moment."""
    process = subprocess.Popen(
        [*COMMAND, *BUILD], cwd=project.folder, env=project.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, encoding="utf-8", start_new_session=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if until in line:
            return process
    raise AssertionError(f"the build never came to {until!r}: {process.communicate()}")


def heed_interrupts() -> None:
    """A test run that a shell started in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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
def test_build_killed_at_any_moment_goes_on_to_the_same_artifact(cold: Project, built: Project, tmp_path: Path, moment: str) -> None:
    process = start(cold, until=moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    assert process.returncode == -signal.SIGKILL
    assert not (cold.folder / "build").exists()
    cold.passes("compress", "--profile", "host", "--no-tune", "--quiet")
    resumed = manifest_of(cold.folder / "build")
    whole = Project(copy(cold.folder, tmp_path / "whole"), built.cache)
    whole.passes("compress", "--profile", "host", "--no-tune", "--quiet", "--force")
    assert resumed["artifact"] == manifest_of(whole.folder / "build")["artifact"]
    assert resumed["passes"][0]["cached"] == (moment != MOMENTS[0])  # what was finished is not done again
    assert leftovers(cold.cache) == []
    assert not [path.name for path in cold.folder.iterdir() if path.name.startswith(".")]


def test_bundle_that_a_killed_build_left_half_written_is_swept_up(small: Project) -> None:
    script = "from edgepipe.store import scratch_prefix; print(scratch_prefix())"
    half = small.folder / f".build-{small.execute([sys.executable, '-c', script]).stdout.strip()}abc"
    half.mkdir()
    (half / "model.onnx").write_bytes(b"half")

    small.passes("compress", "--profile", "host", "--quiet")

    assert not half.exists()


def test_children_die_with_a_killed_parent(interrupted: tuple[Project, str]) -> None:
    project, moment = interrupted
    process = start(project, until=moment)
    time.sleep(0.3)  # the child of that stage is being started
    children = family(process)

    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert children
    assert gone_within(children, 10)


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "parent-only"])
def test_interrupt_ends_with_130_and_one_message(interrupted: tuple[Project, str], whole_group: bool) -> None:
    project, moment = interrupted
    before = listing(project.folder)
    process = start(project, until=moment)
    children = family(process)

    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert errors.count("error: ") == 1 and "interrupted" in errors and "Traceback" not in errors
    assert out == ""
    assert listing(project.folder) == before
    assert leftovers(project.cache) == []
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


def test_cache_pruned_while_a_build_runs_does_not_disturb_it(warm: Project, tmp_path: Path) -> None:
    own = warm.with_cache(copy(warm.cache, tmp_path / "cache"))
    process = start(own, until="validate: on host")

    own.passes("cache", "prune", "--max-size", "0")

    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors


def test_two_builds_at_once_in_one_cache_both_succeed(cold: Project) -> None:
    other = Project(copy(cold.folder, cold.folder.parent / "other"), cold.cache)
    running = [start(project, until=MOMENTS[0]) for project in (cold, other)]

    ended = [process.communicate(timeout=120)[1] for process in running]

    assert [process.returncode for process in running] == [0, 0], ended
    assert manifest_of(cold.folder / "build")["artifact"] == manifest_of(other.folder / "build")["artifact"]
