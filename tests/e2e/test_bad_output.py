"""Output folders that exist, cannot be written or run full; budgets that break: nothing half-written, nothing lost."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.command import COMMAND, assert_one_message, files_of, leftovers, listing, manifest_of

if TYPE_CHECKING:
    import subprocess

    from tests.e2e.command import Project

HOST = ("compress", "--profile", "host")
IMPOSSIBLE = (*HOST, "--budget", "max_size_bytes=1")


def without_override() -> None:
    """In the child: give up root's right to ignore a folder's mode. Without effect for other users."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def without_reading() -> None:
    """In the child: give up root's right to read what it may not."""
    without_override()
    ctypes.CDLL(None).prctl(24, 2, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH


def on_small_disk(project: Project, folder: Path, kilobytes: int, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run edgepipe where `folder` is a disk of its own; the mount is gone when it ends. Then list what stayed there."""
    folder.mkdir()
    ours = shlex.join([*COMMAND, *arguments])
    script = f'mount -t tmpfs -o size={kilobytes}k tmpfs "{folder}" || exit 99; {ours}; code=$?; find "{folder}" -name ".*" -o -name "*.tar.gz" >&3; exit $code'
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    return project.execute([*namespace, "sh", "-c", f"exec 3>{project.folder}/left.txt; {script}"])


def test_existing_output_folder_is_kept(bundled: Project) -> None:
    before = files_of(bundled.folder / "build")

    bundled.refuses(*HOST, code=2, says=("build: the output folder exists", "--force"))

    assert files_of(bundled.folder / "build") == before


def test_force_replaces_a_bundle_whole(bundled: Project) -> None:
    (bundled.folder / "build" / "notes.txt").write_text("mine")

    bundled.passes(*HOST, "--force", "--quiet")

    assert not (bundled.folder / "build" / "notes.txt").exists()
    bundled.passes("validate", "build", "--quiet")
    assert not [path for path in bundled.folder.iterdir() if path.name.startswith(".")]


def test_force_refuses_to_replace_a_folder_that_is_no_bundle(small: Project) -> None:
    (small.folder / "photos").mkdir()
    (small.folder / "photos" / "cat.png").write_bytes(b"cat")

    small.refuses(*HOST, "--out", "photos", "--force", code=2, says=("photos:", "no bundle"))

    assert (small.folder / "photos" / "cat.png").read_bytes() == b"cat"


def test_force_refuses_a_folder_whose_manifest_is_another_tools(small: Project) -> None:
    (small.folder / "site").mkdir()
    (small.folder / "site" / "manifest.json").write_text('{"name": "my web app", "icons": []}')
    (small.folder / "site" / "index.html").write_text("<html>")

    small.refuses(*HOST, "--out", "site", "--force", code=2, says=("site:", "no bundle"))


def test_output_path_that_is_a_file_is_refused(small: Project) -> None:
    (small.folder / "build").write_text("mine")

    small.refuses(*HOST, "--force", code=2, says=("build:", "no bundle"))
    small.refuses(*HOST, "--out", "build/inner", code=2, says=("build",))


@pytest.mark.parametrize("model", ["base", "adapter", "."])
def test_output_over_the_input_is_refused(small: Project, model: str) -> None:
    small.refuses(*HOST, "--out", model, "--force", code=2, says=("no bundle",))


def test_force_into_an_empty_folder_is_fine(small: Project) -> None:
    (small.folder / "build").mkdir()

    small.passes(*HOST, "--force", "--quiet")

    assert (small.folder / "build" / "manifest.json").is_file()


def test_unwritable_output_folder_is_refused_before_anything_runs(small: Project) -> None:
    locked = small.folder / "locked"
    locked.mkdir(mode=0o555)

    errors = small.refuses(
        *HOST, "--out", "locked/build", code=2, says=("locked", "cannot be written: Permission denied"), before=without_override
    )

    assert errors.startswith("error: ")


def test_unwritable_cache_is_refused(small: Project, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)

    small.with_cache(locked / "cache").refuses(*HOST, code=2, says=(str(locked), "cannot be written"), before=without_override)


def test_cache_path_that_is_a_file_is_refused(small: Project, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    small.with_cache(tmp_path / "file").refuses(*HOST, code=2, says=(str(tmp_path / "file"), "cannot be written"))


@pytest.mark.parametrize(("option", "path"), [("--junit", "."), ("--out", "x" * 300)], ids=["junit", "long-name"])
def test_path_that_cannot_be_a_file_is_one_message(small: Project, option: str, path: str) -> None:
    done = small.run(*HOST, option, path, "--quiet")

    assert_one_message(done, 2, ("cannot be written",))


@pytest.mark.parametrize("command", [("compress", "base", "--profile", "host"), ("inspect", "base")], ids=" ".join)
def test_model_that_may_not_be_read_is_refused(small: Project, command: tuple[str, ...]) -> None:
    weights = small.folder / "base" / "model.safetensors"
    weights.chmod(0o000)

    small.refuses(*command, code=3, says=("model.safetensors", "Permission denied"), before=without_reading)


@pytest.mark.parametrize("command", ["inspect", "validate", "init", "report"])
def test_name_that_no_file_can_have_is_refused(small: Project, command: str) -> None:
    small.toml().unlink()

    small.refuses(command, "x" * 300, code=3, says=("x" * 300,))


def test_full_disk_under_the_output_is_exit_code_6(small: Project) -> None:
    done = on_small_disk(small, small.folder / "disk", 100, (*HOST, "--out", "disk/build", "--archive"))

    assert_one_message(done, 6, ("disk/build", "the disk is full"))
    assert (small.folder / "left.txt").read_text() == ""


def test_full_disk_under_the_archive_leaves_no_part_of_it(small: Project) -> None:
    small.passes(*HOST, "--out", "whole", "--archive", "--quiet")
    whole = sum(path.stat().st_size for path in (small.folder / "whole").rglob("*") if path.is_file())

    done = on_small_disk(small, small.folder / "disk", whole // 1024 + 60, (*HOST, "--out", "disk/build", "--archive"))

    assert_one_message(done, 6, ("disk/build", "the disk is full"))
    assert (small.folder / "left.txt").read_text() == ""


def test_full_disk_under_the_cache_is_exit_code_6(small: Project, tmp_path: Path) -> None:
    full = small.with_cache(tmp_path / "disk")

    done = on_small_disk(full, tmp_path / "disk", 150, HOST)

    assert_one_message(done, 6, ("the disk is full",))
    assert not (small.folder / "build").exists()
    assert "/.tmp-" not in (small.folder / "left.txt").read_text()


def test_impossible_budget_goes_to_rejected_with_its_axis_code(small: Project) -> None:
    done = small.run(*IMPOSSIBLE)

    rejected = small.folder / "build.rejected"
    assert done.returncode == 11 and "Traceback" not in done.stderr
    assert not (small.folder / "build").exists()
    manifest = manifest_of(rejected)
    assert (manifest["verdict"], manifest["exit_code"]) == ("broken", 11)
    assert [row["axis"] for row in manifest["results"] if row["verdict"] == "broken"] == ["size"]
    assert "broken" in done.stdout and str(rejected) in done.stdout


def test_several_broken_budgets_exit_with_the_lowest_code(small: Project) -> None:
    done = small.run(*IMPOSSIBLE, "--budget", "max_latency_ms=0.000001", "--budget", "max_memory_bytes=1", "--json")

    broken = {row["axis"] for row in json.loads(done.stdout)["results"] if row["verdict"] == "broken"}
    assert done.returncode == 11
    assert {"size", "memory"} <= broken


def test_broken_build_leaves_the_good_bundle_and_a_good_one_clears_the_rejected(bundled: Project) -> None:
    before = files_of(bundled.folder / "build")

    bundled.run(*IMPOSSIBLE, "--force")
    assert files_of(bundled.folder / "build") == before
    assert (bundled.folder / "build.rejected").is_dir()
    bundled.passes(*HOST, "--force", "--quiet")

    assert not (bundled.folder / "build.rejected").exists()


def test_rejected_folder_that_is_no_bundle_is_not_replaced(small: Project) -> None:
    (small.folder / "build.rejected").mkdir()
    (small.folder / "build.rejected" / "cat.png").write_bytes(b"cat")

    small.refuses(*IMPOSSIBLE, code=2, says=("build.rejected:", "no bundle"))

    assert (small.folder / "build.rejected" / "cat.png").read_bytes() == b"cat"


def test_failing_build_leaves_no_scratch_folder(small: Project) -> None:
    before = listing(small.folder)

    small.run(*HOST, "--plugin", "broken.py")

    assert listing(small.folder) == before
    assert not leftovers(small.cache)


def test_closed_output_pipe_ends_quietly(small: Project) -> None:
    command = shlex.join([sys.executable, "-m", "edgepipe", "profiles", "list"])

    done = small.execute(["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"])

    assert done.returncode == 0
    assert done.stderr == ""
