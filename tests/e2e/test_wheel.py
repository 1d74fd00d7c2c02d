"""The wheel, installed elsewhere: it brings its profiles, devices and export files along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import Project, manifest_of
from tests.e2e.conftest import write_onnx_project

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package as the wheel installs it, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)],
        check=True,
        capture_output=True,
    )
    target = folder / "site"
    wheel = next(folder.glob("*.whl"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)],
        check=True,
        capture_output=True,
    )
    return target


def test_wheel_builds_a_bundle_far_from_the_checkout(installed: Path, e2e_cache: Path, tmp_path: Path) -> None:
    project = Project(write_onnx_project(tmp_path / "project"), e2e_cache, {"PYTHONPATH": str(installed)})

    where = project.execute([sys.executable, "-c", "import edgepipe; print(edgepipe.__file__)"])
    done = project.run("compress", "--profile", "rpi4", "--budget", "max_size_ratio=2")

    assert where.stdout.strip().startswith(str(installed))
    assert done.returncode == 0, done.stderr
    assert manifest_of(project.folder / "build")["profile"] == "rpi4"
    assert (project.folder / "build" / "run.py").is_file()


def test_wheel_holds_one_top_level_package_only(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}

    assert names == {"edgepipe", "bin"}
