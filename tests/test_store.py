"""The store: content-addressed, whole or not there, in bounds when asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgepipe.artifact import Artifact, Component, FileRef, placed_files
from edgepipe.errors import ResourceError, UsageError
from edgepipe.store import Store, cache_root, disk_errors, write_atomic
from edgepipe.weights import load_onnx, onnx_component
from tests.onnx_models import write_external


def artifact(folder: Path, data: bytes = b"graph", asset: bytes = b"{}") -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(data)
    (folder / "tokenizer.json").write_bytes(asset)
    model = Component("onnx", (FileRef.of(folder, "model.onnx"),), {"inputs": [], "outputs": []}, 1)
    return Artifact({"model": model}, (FileRef.of(folder, "tokenizer.json"),), {"kind": "single"})


def overwrite(path: Path, data: bytes) -> None:
    """Damage a file in place, as a failing disk would."""
    path.chmod(0o644)
    path.write_bytes(data)


def age(store: Store, kept: Artifact, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(store.root / "store/trees" / kept.digest, (then, then))


def test_cache_root_is_the_named_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "x"))

    assert cache_root() == (tmp_path / "x").resolve()


def test_artifact_that_was_put_comes_back_equal(store: Store, tmp_path: Path) -> None:
    put = artifact(tmp_path / "source")

    kept = store.put(put)
    found = store.get(put.digest)

    assert kept == put == found
    assert found is not None
    assert found.model.main_file.read_bytes() == b"graph"
    assert found.model.main_file.is_relative_to(store.root)


def test_artifact_outlives_its_source(store: Store, tmp_path: Path) -> None:
    kept = store.put(artifact(tmp_path / "source"))

    overwrite(tmp_path / "source/model.onnx", b"other")

    assert store.get(kept.digest) is not None


@pytest.mark.parametrize("digest", ["0" * 64, ""])
def test_unknown_digest_is_not_there_and_harms_nothing(store: Store, tmp_path: Path, digest: str) -> None:
    kept = store.put(artifact(tmp_path / "source"))

    assert store.get(digest) is None
    assert store.get(kept.digest) == kept


def test_external_weights_load_from_the_store(store: Store, tmp_path: Path) -> None:
    folder = write_external(tmp_path).parent
    kept = store.put(Artifact({"model": onnx_component(folder)}, (), {"kind": "single"}))

    model = load_onnx(kept.model.main_file, data=True)  # onnx refuses data files with a second hard link

    assert len(model.graph.initializer[0].raw_data) > 0


def test_kept_files_cannot_be_written_by_accident(store: Store, tmp_path: Path) -> None:
    kept = store.put(artifact(tmp_path / "source"))

    assert all(ref.location.stat().st_mode & 0o222 == 0 for ref in placed_files(kept).values())


@pytest.mark.parametrize("damage", ["changed-file", "changed-size", "missing-file", "broken-json", "json-of-another-shape", "missing-json"])
def test_damaged_artifact_is_not_there_and_can_be_put_again(store: Store, tmp_path: Path, damage: str) -> None:
    put = artifact(tmp_path / "source")
    tree = store.put(put).model.folder.parent
    if damage == "changed-file":
        overwrite(tree / "model/model.onnx", b"grapH")
    elif damage == "changed-size":
        overwrite(tree / "model/model.onnx", b"")
    elif damage == "missing-file":
        (tree / "model/model.onnx").unlink()
    elif damage == "missing-json":
        (tree / "artifact.json").unlink()
    else:
        overwrite(tree / "artifact.json", b'{"components"' if damage == "broken-json" else b"[1]")

    assert store.get(put.digest) is None
    again = store.put(put)
    assert store.get(put.digest) == again
    assert again.model.main_file.read_bytes() == b"graph"


def test_putting_over_a_damaged_artifact_mends_it(store: Store, tmp_path: Path) -> None:
    put = artifact(tmp_path / "source")
    overwrite(store.put(put).model.main_file, b"rubbish")

    assert store.put(put).model.main_file.read_bytes() == b"graph"


def test_unfinished_artifact_of_a_killed_build_is_not_taken_for_a_whole_one(store: Store, tmp_path: Path) -> None:
    put = artifact(tmp_path / "source")
    unfinished = store.root / "store/trees/.tmp-abc/model"
    unfinished.mkdir(parents=True)
    (unfinished / "model.onnx").write_bytes(b"gra")

    assert store.entries() == []
    assert store.get(put.digest) is None
    assert store.put(put).model.main_file.read_bytes() == b"graph"


def test_builds_that_put_the_same_artifact_at_once_agree(store: Store, tmp_path: Path) -> None:
    put = artifact(tmp_path / "source", b"x" * 100_000)

    with ThreadPoolExecutor(4) as pool:
        kept = list(pool.map(lambda _: store.put(put), range(8)))

    assert all(one == put for one in kept)
    assert store.get(put.digest) == put
    assert len(store.entries()) == 1


def test_result_comes_back_as_it_was(store: Store) -> None:
    store.put_result("key", {"artifact": "abc", "seconds": 1.5})

    assert store.get_result("key") == {"artifact": "abc", "seconds": 1.5}
    assert store.get_result("other") is None


@pytest.mark.parametrize("text", ["", '{"a": 1', "[]", "\x00"])
def test_damaged_result_is_not_there(store: Store, text: str) -> None:
    store.put_result("key", {"a": 1})
    (store.root / "store/results/key.json").write_text(text)

    assert store.get_result("key") is None


def test_atomic_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub/file.json"

    write_atomic(path, b"one")
    write_atomic(path, b"second")

    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("place", ["file/below.json", "file/deeper/below.json", "folder"])
def test_unwritable_target_is_a_usage_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()

    with pytest.raises(UsageError, match="cannot be written"):
        write_atomic(tmp_path / place, b"x")


def test_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="disk is full"), disk_errors(tmp_path), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")


def test_workdir_is_empty_and_gone_afterwards(store: Store) -> None:
    with store.workdir() as folder:
        assert list(folder.iterdir()) == []
        (folder / "scratch").write_text("x")

    assert not folder.exists()


def test_workdir_is_gone_after_an_error(store: Store) -> None:
    with pytest.raises(RuntimeError), store.workdir() as folder:
        raise RuntimeError
    assert not folder.exists()


def test_workdir_clears_up_after_killed_builds_only(store: Store) -> None:
    script = "from edgepipe.store import scratch_prefix; print(scratch_prefix())"
    dead = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    left_over = store.root / "work" / f"{dead}abc"
    left_over.mkdir(parents=True)

    with store.workdir() as other, store.workdir():
        assert other.is_dir()
        assert not left_over.exists()


def test_workdir_of_another_machine_is_left_alone_for_a_day(store: Store) -> None:
    theirs = store.root / "work" / "99999999-another-abc"
    theirs.mkdir(parents=True)

    with store.workdir():
        assert theirs.is_dir()
    os.utime(theirs, (time.time() - 90_000, time.time() - 90_000))
    with store.workdir():
        assert not theirs.exists()


def test_prune_spares_what_a_running_build_uses(store: Store, tmp_path: Path) -> None:
    used, old = (store.put(artifact(tmp_path / name, name.encode())) for name in ("a", "b"))
    age(store, old, 1_000_000)

    with store.workdir():
        store.prune(0)
        assert store.get(used.digest) is not None
    assert store.get(old.digest) is None
    store.prune(0)
    assert store.size_bytes() == 0


def test_entries_list_the_least_recently_used_first(store: Store, tmp_path: Path) -> None:
    kept = [store.put(artifact(tmp_path / name, name.encode())) for name in ("a", "b", "c")]
    for one, seconds in zip(kept, (10, 300, 200), strict=True):
        age(store, one, seconds)

    assert [entry["digest"] for entry in store.entries()] == [kept[1].digest, kept[2].digest, kept[0].digest]


def test_reading_an_artifact_counts_as_use(store: Store, tmp_path: Path) -> None:
    old, new = (store.put(artifact(tmp_path / name, name.encode())) for name in ("a", "b"))
    age(store, old, 300)
    age(store, new, 200)

    store.get(old.digest)

    assert [entry["digest"] for entry in store.entries()] == [new.digest, old.digest]


def test_prune_drops_the_least_recently_used_until_in_bounds(store: Store, tmp_path: Path) -> None:
    old, new = (store.put(artifact(tmp_path / name, name.encode() * 50_000)) for name in ("a", "b"))
    age(store, old, 300)

    freed = store.prune(60_000)

    assert freed >= 50_000
    assert (store.get(old.digest), store.get(new.digest)) == (None, new)
    assert store.size_bytes() <= 60_000


def test_prune_within_bounds_drops_nothing(store: Store, tmp_path: Path) -> None:
    kept = store.put(artifact(tmp_path / "a"))
    store.put_result("key", {"artifact": kept.digest})

    assert store.prune(10**9) == 0
    assert store.get(kept.digest) == kept
    assert store.get_result("key") == {"artifact": kept.digest}


def test_prune_drops_results_of_artifacts_that_are_gone(store: Store, tmp_path: Path) -> None:
    kept = store.put(artifact(tmp_path / "a"))
    store.put_result("key", {"artifact": kept.digest})

    store.prune(0)

    assert store.get_result("key") is None


def test_prune_to_nothing_leaves_nothing(store: Store, tmp_path: Path) -> None:
    store.put(artifact(tmp_path / "a"))
    store.put_result("measurement", {"counts": [1.0] * 1000})
    (store.root / "store/results/broken.json").write_text("{")
    unfinished = store.root / "store/trees/.tmp-killed"
    unfinished.mkdir()
    os.utime(unfinished, (0, 0))
    (unfinished / "file").write_bytes(b"x" * 1000)
    os.utime(unfinished, (0, 0))

    store.prune(0)

    assert store.size_bytes() == 0
    assert store.entries() == []
