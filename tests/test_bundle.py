"""The bundle: whole or not there, the same bytes again, and refused when somebody touched it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edgepipe.artifact import Artifact
from edgepipe.bundle import check_target, device_bytes, read_bundle, totals, write_archive, write_bundle
from edgepipe.errors import EdgepipeError, ModelError, UsageError

TEXTS = {"manifest.json": '{"verdict": "held"}\n', "report.html": "<p>é</p>\n", "model_card.md": "# card\n", "run.log": ""}


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def sign_again(bundle: Path) -> None:
    """Bring SHA256SUMS in step with the files, as somebody who hides a change would."""
    lines = [f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}" for name in listing(bundle) if name != "SHA256SUMS"]
    (bundle / "SHA256SUMS").write_text("\n".join(lines) + "\n")


@pytest.fixture
def bundle(onnx_artifact: Artifact, tmp_path: Path) -> Path:
    return write_bundle(onnx_artifact, tmp_path / "build", TEXTS, broken=False)


def test_bundle_holds_everything_that_runs_it(bundle: Path) -> None:
    assert listing(bundle) == sorted(
        [
            *TEXTS,
            "SHA256SUMS",
            "artifact.json",
            "assets/tokenizer.json",
            "assets/tokenizer_config.json",
            "driver.py",
            "model/model.onnx",
            "run.py",
        ]
    )
    assert (bundle / "report.html").read_text(encoding="utf-8") == "<p>é</p>\n"


def test_checksums_are_what_sha256sum_checks(bundle: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=bundle, check=True)

    assert len((bundle / "SHA256SUMS").read_text().splitlines()) == len(listing(bundle)) - 1


def test_bundle_reads_back_as_it_was_written(bundle: Path, onnx_artifact: Artifact) -> None:
    artifact, manifest = read_bundle(bundle)

    assert artifact == onnx_artifact
    assert artifact.model.main_file == bundle / "model/model.onnx"
    assert manifest == {"verdict": "held"}


def test_bundle_runs_by_itself_wherever_it_is_copied(bundle: Path, tmp_path: Path) -> None:
    bundle.rename(tmp_path / "elsewhere")

    done = subprocess.run(
        [sys.executable, str(tmp_path / "elsewhere/run.py"), "a good film", "bad"], capture_output=True, text=True, check=True
    )

    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 2
    assert {answer["label"] for answer in answers} <= {"negative", "positive"}


def test_new_bundle_takes_the_place_of_the_old_one_whole(bundle: Path, onnx_artifact: Artifact) -> None:
    (bundle / "stray.txt").touch()

    write_bundle(onnx_artifact, bundle, {**TEXTS, "manifest.json": '{"verdict": "unproven"}'}, broken=False)

    assert not (bundle / "stray.txt").exists()
    assert read_bundle(bundle)[1] == {"verdict": "unproven"}
    assert listing(bundle.parent) == [f"build/{name}" for name in listing(bundle)]


def test_broken_bundle_goes_beside_the_good_one(bundle: Path, onnx_artifact: Artifact) -> None:
    rejected = write_bundle(onnx_artifact, bundle, {**TEXTS, "manifest.json": '{"verdict": "broken"}'}, broken=True)

    assert rejected == bundle.with_name("build.rejected")
    assert (read_bundle(rejected)[1], read_bundle(bundle)[1]) == ({"verdict": "broken"}, {"verdict": "held"})


def test_rejection_is_gone_after_a_build_that_holds(bundle: Path, onnx_artifact: Artifact) -> None:
    rejected = write_bundle(onnx_artifact, bundle, TEXTS, broken=True)

    write_bundle(onnx_artifact, bundle, TEXTS, broken=False)

    assert not rejected.exists()


def test_folder_of_the_users_that_looks_like_a_rejection_is_left_alone(onnx_artifact: Artifact, tmp_path: Path) -> None:
    mine = tmp_path / "build.rejected/thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")

    write_bundle(onnx_artifact, tmp_path / "build", TEXTS, broken=False)
    assert mine.read_text() == "years of work"
    with pytest.raises(UsageError, match="is no bundle"):
        check_target(tmp_path / "build", force=True)


def test_failure_leaves_the_old_bundle_and_nothing_else(bundle: Path, onnx_artifact: Artifact) -> None:
    before = {name: (bundle / name).read_bytes() for name in listing(bundle)}

    with pytest.raises(OSError, match="No such file"):
        write_bundle(onnx_artifact, bundle, {**TEXTS, "no/such/folder.txt": "x"}, broken=False)

    assert {name: (bundle / name).read_bytes() for name in listing(bundle)} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["build"]


def test_output_folder_must_be_new_or_forced(bundle: Path, tmp_path: Path) -> None:
    check_target(tmp_path / "other", force=False)
    check_target(bundle, force=True)
    with pytest.raises(UsageError, match="exists") as caught:
        check_target(bundle, force=False)
    assert caught.value.where == str(bundle)


def test_force_does_not_replace_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.txt").touch()
    (tmp_path / "file").touch()

    for name in ("folder", "file"):
        with pytest.raises(UsageError, match="is no bundle"):
            check_target(tmp_path / name, force=True)


def test_output_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match="cannot be written"):
        check_target(tmp_path / "file/build", force=False)


def test_checking_the_target_leaves_nothing_behind(tmp_path: Path) -> None:
    check_target(tmp_path / "a/b/build", force=False)

    assert list(tmp_path.iterdir()) == []


def test_archive_is_the_same_bytes_for_the_same_files(onnx_artifact: Artifact, tmp_path: Path) -> None:
    bundles = [write_bundle(onnx_artifact, tmp_path / name / "build", TEXTS, broken=False, archive=True) for name in ("one", "two")]
    for path in bundles[1].rglob("*"):
        os.utime(path, (0, 0))
        path.chmod(0o700 if path.is_dir() else 0o600)
    write_archive(bundles[1])

    assert (tmp_path / "one/build.tar.gz").read_bytes() == (tmp_path / "two/build.tar.gz").read_bytes()


def test_archive_holds_the_bundle_without_times_and_owners(bundle: Path) -> None:
    with tarfile.open(write_archive(bundle)) as archive:
        members = archive.getmembers()

    assert [member.name for member in members] == [f"build/{name}" for name in listing(bundle)]
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {(0, 0, 0, "", 0o644)}


@pytest.mark.parametrize(
    "name", ["model/model.onnx", "assets/tokenizer.json", "driver.py", "run.py", "artifact.json", "manifest.json", "report.html"]
)
def test_changed_or_missing_file_is_refused_by_name(bundle: Path, name: str) -> None:
    with (bundle / name).open("ab") as handle:
        handle.write(b" ")
    with pytest.raises(ModelError, match=f'"{name}" is not the file'):
        read_bundle(bundle)

    (bundle / name).unlink()
    with pytest.raises(ModelError):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["model/extra.bin", "assets/vocab.txt", "numpy.py", "numpy/__init__.py"])
def test_added_file_is_refused_by_name(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).touch()

    with pytest.raises(ModelError, match=f'"{name}" was added'):
        read_bundle(bundle)


def test_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no edgepipe bundle"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"rubbish"])
def test_damaged_checksums_are_refused(bundle: Path, data: bytes) -> None:
    (bundle / "SHA256SUMS").write_bytes(data)

    with pytest.raises(ModelError):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"components": [], "assets": [], "program": {}}', '{"components": {"model": {}}, "assets": [], "program": {}}']
)
def test_artifact_of_another_shape_is_refused(bundle: Path, text: str) -> None:
    (bundle / "artifact.json").write_text(text)
    sign_again(bundle)

    with pytest.raises(ModelError, match=r"corrupt|not there"):
        read_bundle(bundle)


def test_artifact_that_points_out_of_the_bundle_is_refused(bundle: Path) -> None:
    data = json.loads((bundle / "artifact.json").read_text())
    data["components"]["model"]["files"][0]["path"] = "../../../etc/passwd"
    (bundle / "artifact.json").write_text(json.dumps(data))
    sign_again(bundle)

    with pytest.raises(EdgepipeError, match="leaves the model folder"):
        read_bundle(bundle)


def test_totals_of_one_file_are_the_files_own(onnx_artifact: Artifact) -> None:
    found = totals(onnx_artifact)

    assert found["sha256"] == onnx_artifact.model.files[0].sha256
    assert (found["size_bytes"], found["parameters"]) == (onnx_artifact.model.size_bytes, onnx_artifact.model.parameters)


def test_totals_are_over_all_components(onnx_artifact: Artifact) -> None:
    both = onnx_artifact.with_component("detector", onnx_artifact.model)

    assert totals(both)["size_bytes"] == 2 * totals(onnx_artifact)["size_bytes"]
    assert totals(both)["sha256"] != totals(onnx_artifact)["sha256"]


def test_bytes_on_the_device_are_the_files_that_run_there(bundle: Path, onnx_artifact: Artifact) -> None:
    names = [name for name in listing(bundle) if name.startswith(("model/", "assets/")) or name.endswith(".py")]

    assert device_bytes(onnx_artifact) == sum((bundle / name).stat().st_size for name in names)
