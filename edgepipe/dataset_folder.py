"""Hugging Face dataset folders, read a batch of rows at a time with pyarrow alone: `save_to_disk` and Parquet, with splits.

`Dataset.save_to_disk` writes `state.json`, `dataset_info.json` (the types of the columns) and Arrow streams;
`DatasetDict` a folder of that for each split; the hub has `data/<split>-00000-of-00001.parquet`, whose schema carries the
types. Class numbers become their names. Images and audio lie in a column as encoded bytes: they are written out once as
files, since a device takes files, and a sample names its own. What that holds in memory is a page of the column, not the file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.errors import DataError, UsageError
from edgepipe.unpacked import unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROLES = {"train": "train", "validation": "dev", "valid": "dev", "val": "dev", "dev": "dev", "test": "test", "calibration": "calibration"}
SHARD = re.compile(r"(?P<split>[A-Za-z]+)(-\d+(-of-\d+.*)?)?\.parquet")
BATCH_ROWS = 64
BUFFER_BYTES = 1 << 20
MEDIA = {"Image": "image", "Audio": "audio"}  # the column's type → what a sample calls it
MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".wav", b"BM": ".bmp", b"GIF8": ".gif"}


@dataclass(frozen=True, slots=True)
class Part:
    """One split: its files, in order, and the types of its columns as the datasets library writes them."""

    folder: Path
    files: tuple[Path, ...]
    features: dict[str, Any]

    @property
    def columns(self) -> list[str]:
        return _columns(self.files[0]) if self.files else []


def parts_of(folder: Path) -> dict[str, Part]:
    """The splits of a dataset folder by name, "" for one that is not split; empty where the folder is no dataset.

    Raises `DataError` where it is one and something of it is missing, `UsageError` where pyarrow is.
    """
    if (folder / "state.json").is_file():
        return {"": _saved(folder)}
    shards = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    if shards:
        groups: dict[str, list[Path]] = {}
        for shard in shards:
            match = SHARD.fullmatch(shard.name)
            groups.setdefault(match["split"] if match and match["split"] in ROLES else "", []).append(shard)
        return {split: Part(folder, tuple(files), _parquet_features(files[0])) for split, files in groups.items()}
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder / "dataset_dict.json").get("splits", [])
        return {name: _saved(folder / name) for name in (Path(str(name)).name for name in names)}  # never outside the folder
    parts = {sub.name: parts_of(sub) for sub in folder.iterdir() if sub.is_dir() and sub.name in ROLES}
    return {name: part[""] for name, part in parts.items() if "" in part}


def parquet_part(path: Path) -> Part:
    """One Parquet file by itself."""
    return Part(path.parent, (path,), _parquet_features(path))


def _saved(folder: Path) -> Part:
    state, info = _json(folder / "state.json"), _json(folder / "dataset_info.json")
    files = tuple(folder / Path(str(entry.get("filename"))).name for entry in state.get("_data_files") or ())
    if state.get("_indices_data_files"):
        raise DataError(
            "the dataset is a selection that was saved without its rows in order",
            where=str(folder),
            fix="save it again with dataset.flatten_indices().save_to_disk(folder)",
        )
    for path in files:
        if not path.is_file():
            raise DataError("a file of the dataset is missing", where=str(path), fix="copy the folder again, whole")
    return Part(folder, files, info.get("features") or {})


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("a file of the dataset is missing", where=str(path), fix="copy the folder again, whole") from None
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", where=str(path), fix="write the dataset again with save_to_disk") from None
    return data if isinstance(data, dict) else {}


def _parquet_features(path: Path) -> dict[str, Any]:
    import_pyarrow(path)
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
        return {field.name: {"_type": "Audio" if "audio" in field.name else "Image"} for field in schema if _is_media(field.type)} | told
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(path, error) from None


def _is_media(kind: Any) -> bool:
    """{bytes, path} is how the datasets library stores a file in a column."""
    import pyarrow

    return pyarrow.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}


def import_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UsageError("reading Parquet and Arrow needs pyarrow", where=str(path), fix="pip install 'edgepipe[parquet]'") from None


def read_rows(part: Part, names: Sequence[str], *, files: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every row, with the columns of `names` that there are; images and audio as paths, whatever their
    column is called, unless `files` is off. Other columns are there by name alone, for errors."""
    media = {kind: name for name, feature in part.features.items() if (kind := MEDIA.get(_type(feature)))}
    paths = {kind: _media_files(part, name) for kind, name in media.items()} if files else {}
    total = 0
    for path in part.files:
        start = total
        present = _columns(path)
        there = dict.fromkeys(name for name in present if name not in names)
        plain = [name for name in dict.fromkeys(names) if name in present and name not in media.values()]
        for batch in _batches(path, plain or present[:1]):
            columns = {name: [_decoded(value, part.features.get(name)) for value in batch.column(name).to_pylist()] for name in plain}
            for index in range(batch.num_rows):
                row = {**there, **{name: values[index] for name, values in columns.items()}}
                yield f"{path}:{total - start + 1}", row | {kind: found[total] for kind, found in paths.items()}
                total += 1


def _type(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _decoded(value: Any, feature: Any) -> Any:
    """Class numbers as names, in lists too; -1 stands for a class that nobody told."""
    if _type(feature) == "ClassLabel":
        names = feature.get("names") or []
        known = value is not None and 0 <= value < len(names)
        return names[value] if known else value if names == [] else None
    inner = feature[0] if isinstance(feature, list) and feature else feature.get("feature") if isinstance(feature, dict) else None
    if isinstance(value, list) and inner is not None:
        return [_decoded(one, inner) for one in value]
    return value


def _columns(path: Path) -> list[str]:
    import_pyarrow(path)
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            return list(pyarrow.parquet.read_schema(path).names)
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
            return list(reader.schema.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(path, error) from None


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """Record batches of these columns of one file, from the disk as they are needed."""
    import_pyarrow(path)
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            # read through a small buffer: by default a whole row group, which may be the whole file, is held twice
            with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
                yield from file.iter_batches(batch_size=BATCH_ROWS, columns=columns)
            return
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
            for batch in reader:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS).select(columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: object) -> DataError:
    kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
    return DataError(f"not a readable {kind} file: {error}", where=str(path), fix="write the file again")


def _media_files(part: Part, column: str) -> list[str | None]:
    """The file of every row's image or sound: written out of the column once, or where the row's path says it is."""
    folder = unpacked(part.files, f"column {column}", lambda into: _write_media(part, column, into))
    names: list[str | None] = json.loads((folder / "files.json").read_text(encoding="utf-8"))
    return [None if name is None else str(_found(folder, part.folder, name)) for name in names]


def _found(folder: Path, dataset: Path, name: str) -> Path:
    inside, _, named = name.partition(":")
    path = folder / inside if inside else dataset / named
    if not path.is_file():
        raise DataError(
            "the dataset names a file that is not there", where=str(path), fix="embed the files in the dataset, or put it there"
        )
    return path


def _write_media(part: Part, column: str, into: Path) -> None:
    """The column's bytes as files, and `files.json`: for each row "<file here>:", ":<path of the row's own>", or null."""
    names: list[str | None] = []
    for path in part.files:
        for batch in _batches(path, [column]):
            for value in batch.column(0).to_pylist():
                value = value if isinstance(value, dict) else {"bytes": value} if isinstance(value, bytes) else {}
                names.append(_write_one(value, f"{len(names):07d}", into))
    (into / "files.json").write_text(json.dumps(names), encoding="utf-8")


def _write_one(value: Mapping[str, Any], stem: str, into: Path) -> str | None:
    data, named = value.get("bytes"), value.get("path")
    if data is None:
        return f":{named}" if named else None
    suffix = next((suffix for magic, suffix in MAGIC.items() if data.startswith(magic)), Path(named or "").suffix)
    (into / f"{stem}{suffix}").write_bytes(data)
    return f"{stem}{suffix}:"
