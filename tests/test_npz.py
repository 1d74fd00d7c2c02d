"""Arrays as samples: read one at a time, the same however they were stored, and gone from memory when they are done with."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepipe.config import Data, Task
from edgepipe.data import Splits, read_samples
from edgepipe.errors import DataError
from edgepipe.tasks import load_task

ARRAYS = hnp.arrays(
    st.sampled_from(["<f4", ">f4", "<i8", "u1", "?", "<f2"]), hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=st.just(1)
)
PEAK = """
import re, sys
from edgepipe.config import Data
from edgepipe.data import Splits
splits = Splits(Data(calibration=sys.argv[1]), ("label",))
for sample in splits("calibration"):
    sample["tensors"]["x"].sum()
splits.digest("calibration"), splits.check_overlap()
print(1024 * int(re.search("VmHWM: *\\t* *(\\d+)", open("/proc/self/status").read())[1]))  # ru_maxrss would count the parent's
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))


def read(path: Path, **config: Any) -> list[dict[str, Any]]:
    return read_samples(str(path), Data(**config), ("label",))


@given(ARRAYS, st.booleans(), st.booleans())
def test_rows_are_the_same_however_the_file_was_written(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, compressed: bool, fortran: bool
) -> None:
    path = tmp_path_factory.mktemp("rows") / "data.npz"
    values = np.arange(array.size).reshape(array.shape).astype(array.dtype)
    (np.savez_compressed if compressed else np.savez)(path, x=np.asfortranarray(values) if fortran else values, y=values)

    found = read(path)

    for name in ("x", "y"):
        rows = [sample["tensors"][name] for sample in found]
        assert all(row.dtype == values.dtype.newbyteorder("=") and row.shape == values.shape[1:] for row in rows)
        np.testing.assert_array_equal(np.stack(rows), values)


def test_a_row_can_be_written_to(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 3)))

    row = read(tmp_path / "data.npz")[0]["tensors"]["x"]
    row += 1

    assert read(tmp_path / "data.npz")[0]["tensors"]["x"].sum() == 0


def test_a_sample_is_small_and_crosses_processes(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(200_000.0).reshape(2, -1))

    packed = pickle.dumps(read(tmp_path / "data.npz")[1])
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer)['tensors']['x'][0])"

    assert len(packed) < 1000
    assert float(subprocess.run([sys.executable, "-c", program], input=packed, capture_output=True, check=True).stdout) == 100_000.0


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_thousands_of_samples_hold_no_more_memory_than_a_hundred(tmp_path: Path, save: Any) -> None:
    peaks = {}
    for count in (100, 3000):
        path = tmp_path / f"{count}.npz"
        save(path, x=np.random.default_rng(0).integers(0, 4, (count, 1, 3, 64, 64)).astype(np.float32))
        peaks[count] = int(subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, check=True, text=True).stdout)

    assert peaks[3000] - peaks[100] < 15_000_000  # the arrays are 147 MB


@pytest.mark.parametrize("labels", [np.array([1, 0, 2]), np.array(["b", "a", "c"]), np.array([b"b", b"a", b"c"])])
@pytest.mark.parametrize("name", ["label", "labels"])
def test_array_of_labels_is_no_input_but_the_label(tmp_path: Path, labels: np.ndarray, name: str) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 1, 2)), **{name: labels})

    found = read(tmp_path / "data.npz", label_map={"0": "zero"})

    assert [str(sample["label"]) for sample in found] in (["1", "zero", "2"], ["b", "a", "c"])
    assert all(list(sample["tensors"]) == ["x"] for sample in found)


def test_labels_have_the_name_that_the_project_says(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 1)), digit=[3, 4])

    assert [sample["label"] for sample in read(tmp_path / "data.npz", label="digit")] == [3, 4]
    assert all("digit" in sample["tensors"] for sample in read(tmp_path / "data.npz"))


def test_array_named_label_that_is_an_input_stays_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 1)), label=np.zeros((2, 1, 4)))

    assert all("label" in sample["tensors"] and "label" not in sample for sample in read(tmp_path / "data.npz"))


def test_folder_of_files_has_a_label_in_each(tmp_path: Path) -> None:
    for index in range(2):
        np.savez(tmp_path / f"{index}.npz", x=np.full((1, 2), index), label=index)

    assert [(sample["label"], sample["tensors"]["x"].sum()) for sample in read(tmp_path)] == [(0, 0), (1, 2)]


def test_image_classification_judges_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 1)), label=[1, 0])
    task = load_task(Task(name="image-classification"))
    samples = read(tmp_path / "data.npz")

    assert task.check_labels is not None
    task.check_labels(samples, ["cat", "dog"], "data.npz")
    assert task.score([{"logits": np.array([[0.0, 1.0]])}], [], samples[0], ["cat", "dog"]) == [1.0]


def test_classes_by_number_have_their_share_in_every_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(400.0).reshape(400, 1), label=np.arange(400) % 4)
    splits = Splits(Data(file=str(tmp_path / "data.npz")), ("label",))

    assert [sum(sample["label"] == 3 for sample in splits(split)) for split in ("train", "calibration", "dev", "test")] == [50, 10, 10, 30]


def test_same_array_under_two_labels_is_an_overlap_and_another_digest(tmp_path: Path) -> None:
    for name, label in (("a", 0), ("b", 1)):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((1, 2)), label=[label])
    splits = Splits(Data(train=str(tmp_path / "a.npz"), test=str(tmp_path / "b.npz")), ("label",))

    assert splits.digest("train") != splits.digest("test")
    with pytest.raises(DataError, match="share a sample"):
        splits.check_overlap()


def test_damaged_bytes_are_found_when_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((4, 100)))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)

    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read(path)


def test_file_that_is_cut_off_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((4, 100)))
    sample = read(path)[3]
    path.write_bytes(path.read_bytes()[:500])

    with pytest.raises(DataError, match=r"not a readable \.npz"):
        sample["tensors"]["x"]


def test_member_that_is_no_array_is_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")

    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read(tmp_path / "data.npz")


def test_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    for value in (1.0, 2.0):
        np.savez_compressed(path, x=np.full((1, 2), value))
        assert read(path)[0]["tensors"]["x"].tolist() == [value, value]
