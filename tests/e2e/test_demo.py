"""The demo as a user runs it: MiniLM with its LoRA adapter and 2,200 test sentences, for a Raspberry Pi 4 and here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from edgepipe.bundle import write_archive
from tests.e2e.command import Project, copy, files_of, listing, manifest_of, own_devices

if TYPE_CHECKING:
    from collections.abc import Iterable

EXAMPLE = Path(__file__).parents[2] / "examples" / "sentiment"
# For a bundle's own scripts: nothing but what its run.py says it needs can be imported.
DEVICE = """\
import runpy, sys

for name in ("edgepipe", "torch", "transformers", "onnx", "peft", "optimum", "huggingface_hub", "PIL", "click", "rich", "psutil", "jinja2", "pydantic"):
    sys.modules[name] = None
sys.path.insert(0, ".")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def first_run(e2e_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, subprocess.CompletedProcess[str]]:
    """The example as git has it, built for rpi4 with the command of the README, and what that printed. Read only."""
    folder = tmp_path_factory.mktemp("demo") / "sentiment"
    folder.mkdir()
    (folder / "edgepipe.toml").write_bytes((EXAMPLE / "edgepipe.toml").read_bytes())
    copy(EXAMPLE / "adapter", folder / "adapter")
    project = Project(folder, e2e_cache)
    return project, project.passes("compress", "--profile", "rpi4")


@pytest.fixture(scope="module")
def demo(first_run: tuple[Project, subprocess.CompletedProcess[str]]) -> Project:
    return first_run[0]


@pytest.fixture(scope="module")
def here(demo: Project) -> dict[str, Any]:
    """The manifest of the demo built for this machine."""
    demo.passes("compress", "--profile", "host", "--out", "build-host", "--archive", "--junit", "junit.xml", "--quiet")
    return manifest_of(demo.folder / "build-host")


def rows(manifest: dict[str, Any], axis: str, metric: str = "") -> list[dict[str, Any]]:
    return [row for row in manifest["results"] if row["axis"] == axis and metric in row["metric"]]


def verdicts(found: Iterable[dict[str, Any]]) -> set[str]:
    return {row["verdict"] for row in found if row["verdict"]}


def test_demo_is_unproven_on_the_pi_and_nothing_from_here_counts_as_proof(demo: Project) -> None:
    manifest = manifest_of(demo.folder / "build")

    assert (manifest["verdict"], manifest["exit_code"]) == ("unproven", 0)
    stood_in = [row for row in manifest["results"] if row["provenance"] == "host"]
    assert verdicts(stood_in) == {"unproven"}
    assert {row["axis"] for row in stood_in} == {"accuracy", "latency", "memory", "parity"}
    assert verdicts(rows(manifest, "size")) == verdicts(rows(manifest, "operators")) == {"held"}


def test_pis_own_kernels_prove_the_demo_and_its_latency_is_predicted(demo: Project, emulation_cache: Path, tmp_path: Path) -> None:
    cache = own_devices(emulation_cache, tmp_path / "cache")  # the counter it compiles is not for tests that have no compiler
    (cache / "store").mkdir()
    (cache / "downloads").symlink_to(demo.cache / "downloads")
    (cache / "store" / "trees").symlink_to(demo.cache / "store" / "trees")

    done = Project(demo.folder, cache).run("validate", "build", "--profile", "rpi4", "--target-samples", "100", "--json")

    manifest = json.loads(done.stdout)
    assert (done.returncode, manifest["verdict"]) == (0, "held"), done.stderr
    proofs = {
        axis: {row["provenance"] for row in rows(manifest, axis) if row["verdict"]} for axis in ("accuracy", "memory", "parity", "latency")
    }
    assert proofs == {"accuracy": {"emulated"}, "memory": {"emulated"}, "parity": {"emulated"}, "latency": {"predicted"}}
    for row in rows(manifest, "latency"):
        low, high = row["interval"]
        assert 0 < low < row["value"] < high < row["budget"] * 2
        assert "× as fast as float32" in row["reason"]
    reason = rows(manifest, "accuracy", "drop")[0]["reason"]
    assert "every sample ran here, 100 random ones on rpi4's kernels too" in reason or "differ from this machine's" in reason


def test_demo_ends_with_table_verdict_and_paths(first_run: tuple[Project, subprocess.CompletedProcess[str]]) -> None:
    demo, shown = first_run[0], first_run[1].stdout

    for words in ("accuracy drop", "component bytes", "median", "peak of a fresh process", "without a kernel", "? unproven"):
        assert words in shown
    assert f"bundle  {demo.folder}/build" in shown and f"report  {demo.folder}/build/report.html" in shown


def test_this_machine_proves_everything_it_is_quiet_enough_for(demo: Project, here: dict[str, Any]) -> None:
    unproven = [row for row in here["results"] if row["verdict"] == "unproven"]

    assert {row["axis"] for row in unproven} <= {"latency"}
    assert all("other programs used" in row["reason"] for row in unproven)
    assert here["verdict"] == ("unproven" if unproven else "held") and here["exit_code"] == 0
    assert {row["provenance"] for row in here["results"]} == {"measured"}


def test_int8_is_far_smaller_and_as_accurate(demo: Project) -> None:
    manifest = manifest_of(demo.folder / "build")

    assert manifest["baseline"]["size_bytes"] >= 3.6 * manifest["model"]["size_bytes"]
    assert manifest["model"]["size_bytes"] == sum(part["bytes"] for part in manifest["components"])
    drop = rows(manifest, "accuracy", "drop")[0]
    assert drop["value"] <= 1.0 and drop["n"] == 2200 and drop["interval"][0] <= drop["value"] <= drop["interval"][1]
    assert rows(manifest, "accuracy")[0]["baseline"] >= 85


def test_strict_second_run_is_cached_and_gives_the_same_artifact_as_json(demo: Project) -> None:
    first = manifest_of(demo.folder / "build")

    done = demo.run("compress", "--profile", "rpi4", "--strict", "--out", "again", "--json")

    again = json.loads(done.stdout)
    assert done.returncode == again["exit_code"] == 16 and done.stderr == ""
    assert again == manifest_of(demo.folder / "again")  # unproven is not broken: it goes to OUT
    assert all(step["cached"] for step in again["passes"])
    assert again["artifact"] == first["artifact"]
    assert rows(again, "accuracy") == rows(first, "accuracy")


def test_archive_holds_the_bundle_and_its_bytes_depend_on_nothing_else(demo: Project, here: dict[str, Any], tmp_path: Path) -> None:
    archive, bundle = demo.folder / "build-host.tar.gz", demo.folder / "build-host"
    again = copy(bundle, tmp_path / "build-host")
    for number, path in enumerate(sorted(again.rglob("*"))):
        os.utime(path, (number, number))
        path.chmod(0o700)

    with tarfile.open(archive) as opened:
        packed = {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]

    assert packed == {f"build-host/{name}": data for name, data in files_of(bundle).items()}
    assert write_archive(again).read_bytes() == archive.read_bytes()


def test_junit_tells_every_axis(demo: Project, here: dict[str, Any]) -> None:
    cases = list(ElementTree.parse(demo.folder / "junit.xml").iter("testcase"))

    assert len(cases) >= len(verdicts(here["results"])) + 5
    assert not [case for case in cases if case.find("failure") is not None]


def run_on_device(bundle: Path, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", DEVICE, "run.py", *arguments],
        cwd=bundle,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_bundle_runs_where_it_is_copied_with_three_libraries(demo: Project, tmp_path: Path) -> None:
    bundle = copy(demo.folder / "build", tmp_path / "else where" / "bündle")
    (bundle / "inputs.txt").write_text("a warm, funny and moving film\na dull and lifeless mess — naïve\n", encoding="utf-8")
    before = listing(bundle)

    good, bad = run_on_device(bundle, "--file", "inputs.txt")
    single = run_on_device(bundle, "a warm, funny and moving film", "--threads", "1")

    assert (good["label"], bad["label"]) == ("positive", "negative")
    assert single == [good] or abs(single[0]["score"] - good["score"]) < 1e-3
    assert {name for name in listing(bundle) if "__pycache__" not in name} == set(before)


def test_driver_imports_nothing_it_was_not_promised(demo: Project) -> None:
    for name in ("edgepipe", "torch", "onnx"):
        assert f"import {name}\n" not in (demo.folder / "build" / "driver.py").read_text()


def test_checksums_name_every_file(demo: Project) -> None:
    bundle = demo.folder / "build"
    listed = {name: digest for digest, name in (line.split("  ") for line in (bundle / "SHA256SUMS").read_text().splitlines())}

    actual = {
        name: hashlib.sha256(data).hexdigest()
        for name, data in files_of(bundle).items()
        if name != "SHA256SUMS" and "__pycache__" not in name
    }

    assert listed == actual


def test_bundle_of_the_demo_is_judged_again(demo: Project, here: dict[str, Any]) -> None:
    again = json.loads(demo.passes("validate", "build-host", "--json").stdout)

    assert rows(again, "accuracy")[0]["value"] == rows(here, "accuracy")[0]["value"]
    assert again["artifact"] == here["artifact"] and again["verdict"] in ("held", "unproven")


def test_licences_of_base_adapter_and_data_are_in_the_model_card(demo: Project) -> None:
    card = (demo.folder / "build" / "model_card.md").read_text()

    assert all(words in card for words in ("Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2)", "MIT (C.J. Hutto, vaderSentiment 3.3.2"))


def test_manifest_keeps_its_published_schema(demo: Project) -> None:
    import jsonschema

    from edgepipe.manifest import manifest_schema

    jsonschema.validate(manifest_of(demo.folder / "build"), manifest_schema())


def test_report_is_one_page_without_outside_links(demo: Project) -> None:
    page = (demo.folder / "build" / "report.html").read_text()

    assert "<script src" not in page and "<link" not in page and 'src="http' not in page
    assert "unproven" in page and "minilm-sentiment" in page
