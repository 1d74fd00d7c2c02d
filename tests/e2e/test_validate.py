"""`validate` judges a bundle again and refuses one that was tampered with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from tests.e2e.command import files_of, manifest_of
from tests.models import sentences, write_csv

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.command import Project


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def raise_the_verdict(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "verdict": "held", "exit_code": 0}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda bundle: flip_byte(bundle / "model" / "model.onnx"), "model/model.onnx"),
        (lambda bundle: (bundle / "driver.py").write_text("print('mine')"), "driver.py"),
        (lambda bundle: flip_byte(bundle / "assets" / "tokenizer.json"), "assets/tokenizer.json"),
        (raise_the_verdict, "manifest.json"),
        (lambda bundle: (bundle / "model" / "model.onnx").unlink(), "model/model.onnx"),
        (lambda bundle: (bundle / "model_card.md").unlink(), "model_card.md"),
        (lambda bundle: (bundle / "model" / "extra.onnx").write_bytes(b"x"), "model/extra.onnx"),
        (lambda bundle: (bundle / "numpy.py").write_text("print('imported first')"), "numpy.py"),
        (lambda bundle: (bundle / "SHA256SUMS").unlink(), "no edgepipe bundle"),
        (lambda bundle: (bundle / "SHA256SUMS").write_text(""), "was added"),
        (lambda bundle: (bundle / "SHA256SUMS").write_bytes(b"\xff\xfe"), "was added"),
        (
            lambda bundle: (bundle / "SHA256SUMS").write_text((bundle / "SHA256SUMS").read_text() + f"{'0' * 64}  ../../etc/passwd\n"),
            "../../etc/passwd",
        ),
    ],
)
def test_tampered_bundle_is_refused_naming_the_file(bundled: Project, spoil: Callable[[Path], object], says: str) -> None:
    spoil(bundled.folder / "build")

    bundled.refuses("validate", "build", code=3, says=("build", says))


def test_added_package_folder_is_refused(bundled: Project) -> None:
    (bundled.folder / "build" / "onnxruntime").mkdir()
    (bundled.folder / "build" / "onnxruntime" / "__init__.py").write_text("print('imported first')")

    bundled.refuses("validate", "build", code=3, says=("onnxruntime/__init__.py", "added"))


def test_artifact_whose_files_are_not_listed_is_refused(bundled: Project) -> None:
    sums = bundled.folder / "build" / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if "model.onnx" not in line))

    bundled.refuses("validate", "build", code=3, says=("model/model.onnx",))


@pytest.mark.parametrize("name", ["nowhere", "base", "samples.csv", "."])
def test_folder_that_is_no_bundle_is_refused(bundled: Project, name: str) -> None:
    bundled.refuses("validate", name, code=3, says=(name, "no edgepipe bundle"))


def test_bundle_is_judged_again_with_the_same_figures(bundled: Project) -> None:
    before, built = files_of(bundled.folder / "build"), manifest_of(bundled.folder / "build")

    again = json.loads(bundled.passes("validate", "build", "--json", "--junit", "junit.xml").stdout)

    assert again["results"][0]["value"] == built["results"][0]["value"]
    assert [(row["axis"], row["metric"]) for row in again["results"]] == [(row["axis"], row["metric"]) for row in built["results"]]
    assert again["artifact"] == built["artifact"] and again["profile"] == "host"
    assert ElementTree.parse(bundled.folder / "junit.xml").getroot().tag in ("testsuites", "testsuite")
    assert files_of(bundled.folder / "build") == before


def test_other_profiles_give_one_result_each(bundled: Project) -> None:
    found = json.loads(bundled.passes("validate", "build", "--profile", "rpi4", "--profile", "rpi5", "--json").stdout)

    assert [one["profile"] for one in found] == ["rpi4", "rpi5"]
    assert {one["verdict"] for one in found} == {"unproven"}


def test_strict_and_tighter_budgets_change_the_exit_code(bundled: Project) -> None:
    assert bundled.run("validate", "build", "--profile", "rpi4", "--strict", "--quiet").returncode == 16
    assert bundled.run("validate", "build", "--budget", "max_size_bytes=1", "--quiet").returncode == 11
    assert bundled.run("validate", "build", "--budget", "max_size_ratio=0.01", "--strict", "--quiet").returncode == 11


def test_other_data_is_what_judges(bundled: Project) -> None:
    write_csv(bundled.folder / "other.csv", sentences(70, seed=9))

    found = json.loads(bundled.passes("validate", "build", "--data", "other.csv", "--json").stdout)

    assert found["results"][0]["n"] == 70


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        ("text,label\n", 3, ("other.csv", "no samples")),
        ("words,label\nfilm,positive\n", 3, ('column "text" is missing',)),
        (None, 3, ("other.csv", "no such file")),
    ],
)
def test_bad_data_is_refused(bundled: Project, content: str | None, code: int, says: tuple[str, ...]) -> None:
    if content is not None:
        (bundled.folder / "other.csv").write_text(content)

    bundled.refuses("validate", "build", "--data", "other.csv", code=code, says=says)


def test_bundle_without_a_project_file_needs_its_data_named(bundled: Project, tmp_path: Path) -> None:
    (bundled.folder / "edgepipe.toml").unlink()

    bundled.refuses("validate", "build", code=3, says=("no test data is given", "--data"))
    bundled.passes("validate", "build", "--data", "samples.csv", "--quiet")


def test_baseline_that_left_the_store_is_made_again(onnx_project: Project, tmp_path: Path) -> None:
    onnx_project.passes("compress", "--profile", "host", "--quiet")
    emptied = onnx_project.with_cache(tmp_path / "cache")

    found = json.loads(emptied.passes("validate", "build", "--json").stdout)

    assert found["results"][0]["baseline"] == manifest_of(onnx_project.folder / "build")["results"][0]["baseline"]


def test_bundle_is_not_compared_with_another_projects_model(bundled: Project, onnx_project: Project, tmp_path: Path) -> None:
    elsewhere = onnx_project.with_cache(tmp_path / "cache")

    elsewhere.refuses("validate", bundled.folder / "build", code=2, says=("float32 model", "edgepipe.toml"))
