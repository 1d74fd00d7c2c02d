"""examples/ci: the steps a CI job runs, on the small model: first build, next build, regression."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import yaml

from tests.e2e.command import manifest_of

if TYPE_CHECKING:
    import subprocess

    from tests.e2e.command import Project

EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"


@pytest.fixture
def job(small: Project) -> Project:
    """The small project with build.sh beside its edgepipe.toml, as the example's README says."""
    shutil.copy(EXAMPLES / "build.sh", small.folder)
    return small


def steps(project: Project, **variables: str) -> subprocess.CompletedProcess[str]:
    return project.execute(["./build.sh"], env=variables)


def test_first_build_publishes_report_manifest_junit_bundle_and_archive(job: Project) -> None:
    done = steps(job, PREVIOUS="previous/manifest.json")  # there is none yet

    published = job.folder / "dist"
    assert done.returncode == 0, done.stderr
    assert {path.name for path in published.iterdir()} == {"bundle", "bundle.tar.gz", "junit.xml", "manifest.json", "report.html"}
    assert manifest_of(published) == manifest_of(published / "bundle")
    assert ElementTree.parse(published / "junit.xml").getroot().get("failures") in ("0", None)


def test_next_build_is_compared_with_the_last_and_passes(job: Project) -> None:
    steps(job)
    shutil.copytree(job.folder / "dist", job.folder / "previous")

    done = steps(job, PREVIOUS="previous/manifest.json")

    assert done.returncode == 0, done.stderr + done.stdout
    assert "component bytes" in done.stdout and "✗ worse" not in done.stdout
    assert all(step["cached"] for step in manifest_of(job.folder / "dist")["passes"])


def test_regression_against_the_last_release_fails_with_its_axis_code(job: Project) -> None:
    steps(job)
    manifest = manifest_of(job.folder / "dist")
    row = next(row for row in manifest["results"] if row["axis"] == "size")
    row["value"] = row["value"] // 2
    (job.folder / "previous.json").write_text(json.dumps(manifest))

    done = steps(job, PREVIOUS="previous.json")

    assert done.returncode == 11
    assert "✗ worse" in done.stdout
    assert (job.folder / "dist" / "report.html").is_file()


def test_broken_budget_fails_and_publishes_why(job: Project) -> None:
    job.toml().write_text(job.toml().read_text().replace("max_size_ratio = 0.9", "max_size_ratio = 0.01"))

    done = steps(job, OUT="out", PROFILE="rpi4")

    assert done.returncode == 11
    assert manifest_of(job.folder / "out")["verdict"] == "broken"
    assert ElementTree.parse(job.folder / "out" / "junit.xml").getroot().get("failures") != "0"


def test_wrong_configuration_fails_with_its_own_code(job: Project) -> None:
    done = steps(job, PROFILE="rpi44")

    assert done.returncode == 2
    assert 'did you mean "rpi4"?' in done.stderr


def commands(job: dict[str, Any]) -> str:
    return "\n".join(str(step.get("run", "")) for step in job["steps"]) if "steps" in job else "\n".join(job["script"])


@pytest.mark.parametrize("name", ["github-workflow.yml", "gitlab-ci.yml"])
def test_ci_files_parse_and_run_the_script_with_the_store_restored(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    found = yaml.safe_load(text)

    job = found["jobs"]["build"] if "jobs" in found else found["edgepipe"]
    assert "./build.sh" in commands(job)
    assert all(word in text for word in ("EDGEPIPE_CACHE", "PREVIOUS", "cache", "dist"))
