"""Arrays of .npz files as samples that are read when asked for: ten thousand of them hold no more memory than one.

`numpy.savez` stores each array as a .npy file, uncompressed, so that row i lies at a known place in the .npz and is read
from there. Arrays that `numpy.savez_compressed` wrote, or that lie in Fortran's order, are unpacked once into
`EDGEPIPE_CACHE` and read from there.
"""

from __future__ import annotations

import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.errors import DataError
from edgepipe.unpacked import unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError)
CHUNK_BYTES = 1 << 20
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: the lengths of its name and extra field come before its data


@dataclass(frozen=True, slots=True)
class StoredArray:
    """Where an array's bytes lie, in C order."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self, row: int | None) -> np.ndarray:
        """One row, or the whole array. Raises `DataError` where the file is not what it was when it was opened."""
        import numpy as np

        shape = self.shape if row is None else self.shape[1:]
        data = bytearray(int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize)
        try:
            with self.path.open("rb", buffering=0) as handle:
                handle.seek(self.offset + (row or 0) * len(data))
                done = 0
                while done < len(data):  # one call may give less than was asked for
                    got = handle.readinto(memoryview(data)[done:])
                    if not got:
                        raise EOFError("it is cut off")
                    done += got
        except (OSError, EOFError) as error:
            raise _unreadable(self.path, error) from None
        array = np.frombuffer(data, self.dtype).reshape(shape)
        return array.astype(self.dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class LazyTensors(Mapping[str, Any]):
    """{name: array} of one sample: row `row` of the named arrays of a .npz, or all of it. Small, and pickles as such."""

    path: str
    row: int | None
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        return open_npz(Path(self.path))[name].read(self.row)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_npz_rows(path: Path, label: str) -> Iterator[dict[str, Any]]:
    """Row i of every array is what the model takes for sample i; of an array [n] named `label`, its label."""
    arrays = checked(path)
    lengths = {name: array.shape[0] if array.shape else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"the arrays have unlike numbers of rows: {lengths}", where=str(path), fix="row i of every array belongs to sample i"
        )
    named = _label_array(arrays, label)
    names = tuple(name for name in arrays if name != named)
    labels = arrays[named].read(None) if named else None
    for index in range(next(iter(lengths.values()), 0)):
        yield _sample(LazyTensors(str(path), index, names), None if labels is None else labels[index])


def read_npz_files(paths: list[Path], label: str) -> Iterator[dict[str, Any]]:
    """A sample for each file."""
    for path in paths:
        arrays = checked(path)
        named = _label_array(arrays, label, rows=False)
        names = tuple(name for name in arrays if name != named)
        yield _sample(LazyTensors(str(path), None, names), arrays[named].read(None).reshape(-1)[0] if named else None)


def _label_array(arrays: Mapping[str, StoredArray], label: str, *, rows: bool = True) -> str | None:
    """The array that holds labels: one value a sample, which is less than any model takes."""
    for name in (label, "labels") if label == "label" else (label,):
        shape = arrays[name].shape if name in arrays else None
        if shape is not None and (len(shape) == 1 if rows else shape in ((), (1,))):
            return name
    return None


def _sample(tensors: LazyTensors, label: Any) -> dict[str, Any]:
    if label is None:
        return {"tensors": tensors}
    value = label.item()
    return {"tensors": tensors, "label": value.decode() if isinstance(value, bytes) else value}


def checked(path: Path) -> dict[str, StoredArray]:
    """The arrays of a .npz, whose bytes are all there and unharmed; `DataError` otherwise."""
    arrays = open_npz(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type == zipfile.ZIP_STORED:  # others were checked when they were unpacked
                    with archive.open(info) as member:
                        while member.read(CHUNK_BYTES):  # the last one compares checksums
                            pass
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    return arrays


def open_npz(path: Path) -> dict[str, StoredArray]:
    """The arrays of a .npz by name, none of them read."""
    try:
        stat = path.stat()
        return _opened(path, stat.st_mtime_ns, stat.st_size)
    except UNREADABLE as error:
        raise _unreadable(path, error) from None


@lru_cache(maxsize=64)
def _opened(path: Path, modified_ns: int, size_bytes: int) -> dict[str, StoredArray]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        arrays, packed = {}, []
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                dtype, shape, fortran, header_bytes = _npy_header(member)
            if info.compress_type != zipfile.ZIP_STORED or (fortran and len(shape) > 1):
                packed.append(info)
            raw.seek(info.header_offset)
            start = info.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(raw.read(LOCAL_HEADER.size)))
            arrays[name] = StoredArray(path, start + header_bytes, dtype, shape)
        if packed:
            folder = unpacked([path], "arrays", lambda into: _unpack(archive, packed, into))
            for info in packed:
                name = info.filename.removesuffix(".npy")
                arrays[name] = StoredArray(folder / f"{packed.index(info)}.bin", 0, arrays[name].dtype, arrays[name].shape)
    return arrays


def _npy_header(member: Any) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """(dtype, shape, Fortran order, bytes before the data). Raises `ValueError` for what is no array of plain numbers."""
    import numpy as np

    version = np.lib.format.read_magic(member)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"arrays of format {version} are not known")
    shape, fortran, dtype = read(member)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    return dtype, shape, fortran, member.tell()


def _unpack(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], into: Path) -> None:
    """Write the members' data in C order as `0.bin`, `1.bin`, …"""
    import numpy as np

    for number, info in enumerate(members):
        target = into / f"{number}.bin"
        with archive.open(info) as member, target.open("wb") as out:
            dtype, shape, fortran, _ = _npy_header(member)
            shutil.copyfileobj(member, out, CHUNK_BYTES)
        if fortran and len(shape) > 1:
            stored: np.ndarray = np.memmap(target, dtype, "r", shape=shape, order="F")
            turned = target.with_suffix(".turned")
            with turned.open("wb") as out:
                for row in stored:
                    np.ascontiguousarray(row).tofile(out)
            del stored
            turned.replace(target)


def _unreadable(path: Path, error: object) -> DataError:
    return DataError(f"not a readable .npz file: {error}", where=str(path), fix="write it with numpy.savez, without pickled objects")
