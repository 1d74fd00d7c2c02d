"""Artifacts are immutable values; their digest is over content, wherever the files lie."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.artifact import Artifact, Component, FileRef, canonical, digest, files_in, placed_files, safe_relative, sha256_file
from edgepipe.errors import ModelError

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=("Cs",))),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner, max_size=4)
    ),
    max_leaves=12,
)


def component(folder: Path, contents: dict[str, bytes]) -> Component:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return Component("onnx", tuple(FileRef.of(folder, name) for name in contents), {"inputs": [], "outputs": []}, 3)


def artifact(folder: Path) -> Artifact:
    model = component(folder / "model", {"model.onnx": b"graph", "model.onnx.data": b"weights"})
    (folder / "assets").mkdir()
    (folder / "assets" / "tokenizer.json").write_bytes(b"{}")
    return Artifact({"model": model}, (FileRef.of(folder / "assets", "tokenizer.json"),), {"kind": "single", "component": "model"})


def shuffled(value: Any) -> Any:
    """The same JSON with every object's keys in the other order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(JSON)
def test_digest_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    assert digest(shuffled(value)) == digest(value)


@given(JSON)
def test_digest_survives_writing_and_reading_as_json(value: Any) -> None:
    assert digest(json.loads(json.dumps(value))) == digest(value)


@given(JSON, JSON)
def test_digests_are_equal_only_for_equal_values(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


def test_digest_of_a_known_value_never_changes() -> None:
    assert canonical({"b": 1, "a": ["é", None]}) == '{"a":["é",null],"b":1}'.encode()
    assert digest({"b": 1, "a": ["é", None]}) == "6b940ff97b8f64e75080429519f8fe71eb9a5693540a8b6c61147486f08706db"


def test_digest_refuses_numbers_that_json_has_not() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))


def test_artifact_in_another_folder_has_the_same_digest(tmp_path: Path) -> None:
    first = artifact(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")

    moved = Artifact.from_json(first.to_json(), tmp_path / "second")

    assert moved.digest == first.digest
    assert moved == first
    assert moved.model.main_file == tmp_path / "second/model/model.onnx"


def test_one_changed_byte_changes_the_digest(tmp_path: Path) -> None:
    first = artifact(tmp_path / "first")
    changed = first.with_component("model", component(tmp_path / "second", {"model.onnx": b"grapH", "model.onnx.data": b"weights"}))

    assert changed.digest != first.digest


def test_program_and_assets_are_part_of_the_digest(tmp_path: Path) -> None:
    first = artifact(tmp_path / "first")
    (tmp_path / "labels.txt").write_text("a")

    digests = {first.digest, first.with_program(labels=["a"]).digest, first.with_assets((FileRef.of(tmp_path, "labels.txt"),)).digest}

    assert len(digests) == 3


def test_artifact_read_back_from_json_is_the_same(tmp_path: Path) -> None:
    first = artifact(tmp_path)

    assert Artifact.from_json(json.loads(json.dumps(first.to_json())), tmp_path) == first


def test_with_component_replaces_one_role_and_drops_others(tmp_path: Path) -> None:
    first = artifact(tmp_path / "a").with_component("adapter", component(tmp_path / "b", {"adapter.bin": b"x"}))

    merged = first.with_component("model", component(tmp_path / "c", {"model.onnx": b"merged"}), drop=("adapter",))

    assert list(merged.components) == ["model"]
    assert list(first.components) == ["model", "adapter"]


def test_with_assets_replaces_those_of_the_same_name(tmp_path: Path) -> None:
    first = artifact(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"[]")

    changed = first.with_assets((FileRef.of(tmp_path, "tokenizer.json"),))

    assert [ref.path for ref in changed.assets] == ["tokenizer.json"]
    assert changed.asset("tokenizer.json") != first.asset("tokenizer.json")
    assert changed.asset("missing.json") is None


def test_size_is_the_sum_of_all_files(tmp_path: Path) -> None:
    assert artifact(tmp_path).model.size_bytes == len(b"graph") + len(b"weights")


def test_first_file_is_the_one_that_is_opened(tmp_path: Path) -> None:
    assert artifact(tmp_path).model.main_file.read_bytes() == b"graph"


def test_placed_files_stand_under_their_role(tmp_path: Path) -> None:
    assert sorted(placed_files(artifact(tmp_path))) == ["assets/tokenizer.json", "model/model.onnx", "model/model.onnx.data"]


def test_files_in_finds_everything_below_in_order(tmp_path: Path) -> None:
    component(tmp_path, {"b/c.txt": b"1", "a.txt": b"22"})

    assert [(ref.path, ref.bytes) for ref in files_in(tmp_path)] == [("a.txt", 2), ("b/c.txt", 1)]


def test_sha256_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    assert sha256_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_artifacts_are_immutable(tmp_path: Path) -> None:
    first = artifact(tmp_path)

    with pytest.raises(dataclasses.FrozenInstanceError):
        first.program = {}  # type: ignore[misc]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret", "a/../../secret", "a\\..\\..\\secret", "C:\\secret", "C:/secret", "\\\\host\\share"]
)
def test_path_that_leaves_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ModelError, match="leaves the model folder"):
        safe_relative(path)


@given(st.lists(st.sampled_from(["..", ".", "a", "b.bin", "", "\\", "..\\", "C:"]), min_size=1, max_size=6).map("/".join))
def test_paths_that_are_accepted_stay_inside(path: str) -> None:
    try:
        accepted = safe_relative(path)
    except ModelError:
        return
    root = Path("/root/of/model")
    assert (root / accepted.replace("\\", "/")).resolve().is_relative_to(root)
