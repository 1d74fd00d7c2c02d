"""Samples: reads CSV, TSV, JSON Lines, Parquet, image folders and .npz into the four splits, which never overlap.

A sample is a plain dict: `text` (+ `text_pair`), `tokens`, `image` (a path) or `tensors` ({name: array}), with
`label` when the data has one.
"""

from __future__ import annotations

import csv
import json
import random
import re
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from edgepipe.artifact import digest, sha256_file
from edgepipe.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgepipe.config import Data

Split = Literal["train", "calibration", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
PROBE_SPLITS: tuple[Split, ...] = ("calibration", "dev", "train")  # the first that is there gives what checks compare on
SHARES: dict[Split, float] = {"train": 0.5, "calibration": 0.1, "dev": 0.1, "test": 0.3}
SEED = 20240101
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}
Sample = dict[str, Any]


class Splits:
    """The four splits of a build, read when asked for, checked against each other once."""

    def __init__(self, config: Data, columns: tuple[str, ...]) -> None:
        """`columns`: what the task needs of `text`, `text_pair`, `tokens`, `label`; images and tensors find themselves."""
        self.config, self.columns = config, columns
        self._read: dict[Split, list[Sample]] = {}

    def has(self, split: Split) -> bool:
        return bool(self.config.file or getattr(self.config, split))

    def __call__(self, split: Split) -> list[Sample]:
        """The samples of one split; `DataError` when there are none."""
        if split not in self._read:
            if path := getattr(self.config, split):
                self._read[split] = read_samples(path, self.config, self.columns)
            elif self.config.file:
                dealt = split_samples(read_samples(self.config.file, self.config, self.columns))
                self._read |= {role: samples for role, samples in dealt.items() if not getattr(self.config, role)}
            else:
                raise DataError(f"no {split} data is given", where="[data]", fix=f"name it with --{split} FILE, or give --data FILE for all four roles")
        if not self._read[split]:
            raise DataError(f"the {split} data has no rows", where=str(getattr(self.config, split) or self.config.file), fix="give it samples")
        return self._read[split]

    def digest(self, split: Split) -> str:
        return digest([_identity(sample) for sample in self(split)])

    def check_overlap(self) -> None:
        """Refuse splits that share samples (exact match after normalisation) unless the pair is allowed by name."""
        present = [split for split in SPLITS if self.has(split)]
        seen: dict[str, Split] = {}
        allowed = {frozenset(pair.split("/")) for pair in self.config.allow_overlap}
        for split in present:
            for sample in self(split):
                key = normalised(sample)
                other = seen.setdefault(key, split)
                if other != split and frozenset((other, split)) not in allowed:
                    raise DataError(
                        f"the {other} and {split} data share a sample: {key[:60]!r}",
                        where=str(getattr(self.config, split) or self.config.file),
                        fix=f'remove it from one of them, or say allow_overlap = ["{other}/{split}"] in [data]',
                    )


def normalised(sample: Sample) -> str:
    """What the overlap rule compares: words in lower case for text, content for images and tensors."""
    if "image" in sample:
        return _file_digest(str(sample["image"]))
    if "tensors" in sample:
        return digest(_identity(sample))
    words = " ".join(sample["tokens"]) if "tokens" in sample else f"{sample['text']} \t {sample.get('text_pair', '')}"
    return " ".join(re.findall(r"\w+", words.lower())) or words.strip()


def _identity(sample: Sample) -> Any:
    if "image" in sample:
        return {**sample, "image": _file_digest(str(sample["image"]))}
    if "tensors" in sample:
        import hashlib

        return {name: [str(a.dtype), list(a.shape), hashlib.sha256(a.tobytes()).hexdigest()] for name, a in sample["tensors"].items()}
    return sample


@cache
def _file_digest(path: str) -> str:
    return sha256_file(Path(path))


def check_fit(samples: Sequence[Sample], kind: str, inputs: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuse samples that are not of the kind the model takes, and tensors unlike the inputs of its signature."""
    keys, wanted = {"text": (("text", "tokens"), "text"), "image": (("image",), "images"), "tensors": (("tensors",), "arrays")}[kind]
    for number, sample in enumerate(samples, start=1):
        if not any(key in sample for key in keys):
            names = ", ".join(f'"{entry["name"]}"' for entry in inputs)
            fix = {"text": "give it a table", "images": "give it a folder of images", "arrays": f"give it a .npz file with {names}, row i for sample i"}[wanted]
            raise DataError(f"the model takes {wanted}, and these samples are none", where=where, fix=fix)
        for entry in inputs if kind == "tensors" else ():
            _check_tensor(sample["tensors"], entry, f"{where}, sample {number}")


def _check_tensor(tensors: Mapping[str, Any], entry: Mapping[str, Any], where: str) -> None:
    name, shape = entry["name"], entry["shape"]
    if name not in tensors:
        raise DataError(f'the model\'s input "{name}" is missing', where=where, fix=nearest(name, tensors))
    array = tensors[name]
    fits = len(shape) == array.ndim and all(want == have for want, have in zip(shape, array.shape, strict=True) if isinstance(want, int))
    if not fits or entry["dtype"] not in (array.dtype.name, "unknown"):
        wanted = f"{entry['dtype']} [{', '.join(map(str, shape))}]"
        raise DataError(f'"{name}" is {array.dtype.name} {list(array.shape)}, but the model takes {wanted}', where=where, fix="a sample is what one run of the model takes, batch axis included")


def split_samples(samples: list[Sample]) -> dict[Split, list[Sample]]:
    """Deal one list into four splits by a fixed seed, each label in its share; exact repeats are kept once."""
    groups: dict[str, list[Sample]] = {}
    for sample in {normalised(sample): sample for sample in samples}.values():
        groups.setdefault(str(sample["label"]) if isinstance(sample.get("label"), str) else "", []).append(sample)
    result: dict[Split, list[Sample]] = {split: [] for split in SPLITS}
    rng = random.Random(SEED)
    for _, group in sorted(groups.items()):
        rng.shuffle(group)
        start, reached = 0, 0.0
        for split in SPLITS:
            reached += SHARES[split]
            end = round(reached * len(group))
            result[split] += group[start:end]
            start = end
    return result


def read_samples(path: str, config: Data, columns: tuple[str, ...]) -> list[Sample]:
    """Samples of one file or folder. Raises `DataError` naming the file, line and column at fault."""
    source = Path(path)
    if not source.exists():
        raise DataError("no such file", where=path, fix="check the path")
    if source.is_dir():
        samples = list(_read_folder(source))
    elif source.suffix == ".npz":
        samples = list(_read_npz_rows(source))
    else:
        samples = list(_read_table(source, config, columns))
    if not samples:
        raise DataError("there are no samples", where=path, fix="give it samples: rows, images in a folder per label, or .npz files")
    for sample in samples:
        if "label" in sample and config.label_map:
            sample["label"] = _mapped(sample["label"], config.label_map)
    return samples


def _mapped(label: Any, names: dict[str, str]) -> Any:
    return [names.get(str(one), one) for one in label] if isinstance(label, list) else names.get(str(label), label)


def _read_folder(folder: Path) -> Iterator[Sample]:
    tensors = sorted(folder.glob("*.npz"))
    if tensors:
        for path in tensors:
            yield {"tensors": _load_npz(path)}
        return
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    for path in images:
        label = path.parent.name if path.parent != folder else None
        yield {"image": str(path), **({"label": label} if label else {})}


def _load_npz(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"not a readable .npz file: {error}", where=str(path), fix="write it with numpy.savez, without pickled objects") from None


def _read_npz_rows(path: Path) -> Iterator[Sample]:
    """Row i of every array is what the model takes for sample i."""
    import numpy as np

    arrays = _load_npz(path)
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"the arrays have unlike numbers of rows: {lengths}", where=str(path), fix="row i of every array belongs to sample i")
    for index in range(next(iter(lengths.values()))):
        yield {"tensors": {name: np.asarray(array[index]) for name, array in arrays.items()}}


def _read_table(path: Path, config: Data, columns: tuple[str, ...]) -> Iterator[Sample]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f'data files of type "{path.suffix}" are not known', where=str(path), fix=f"use {', '.join(sorted(READERS))}, .npz or a folder")
    if not {"text", "tokens"} & set(columns):
        raise DataError("a table holds no images", where=str(path), fix="name a folder that has a folder of images for each label")
    names = {"text": config.text, "text_pair": config.text_pair or "text_pair", "label": config.label}
    names["tokens"] = config.text if config.text != "text" else "tokens"
    for line, row in reader(path, config.encoding):
        sample: Sample = {}
        for column in columns:
            name = names[column]
            if row.get(name) is None or row[name] == "":
                present = [key for key in row if key]
                what = f'column "{name}" is missing' if name not in row else f'column "{name}" is empty'
                option = {"tokens": "text"}.get(column, column)
                raise DataError(what, where=f"{path}:{line}", fix=f'{nearest(name, present)} Name the column with [data] {option} = "…"')
            sample[column] = row[name]
        if "text" in sample and config.text_pair and "text_pair" not in sample:
            if row.get(config.text_pair) is None:
                raise DataError(f'column "{config.text_pair}" is missing', where=f"{path}:{line}", fix=nearest(config.text_pair, row))
            sample["text_pair"] = str(row[config.text_pair])
        if "tokens" in sample and isinstance(sample["tokens"], str):
            sample["tokens"] = sample["tokens"].split()
        if "tokens" in sample and isinstance(sample.get("label"), str):
            sample["label"] = sample["label"].split()
        for column in ("text", "text_pair"):
            if column in sample:
                sample[column] = str(sample[column])
        yield sample


def _open(path: Path, encoding: str) -> TextIO:
    """The file as text, without the byte-order mark that spreadsheets write."""
    plain = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    try:
        return path.open(encoding="utf-8-sig" if plain else encoding, newline="")
    except LookupError:
        raise UsageError(f'there is no encoding "{encoding}"', where="[data] encoding", fix="name one that Python knows: utf-8, latin-1, …") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), fix="check the path and its permissions") from None


def _read_delimited(delimiter: str) -> Callable[[Path, str], Iterator[tuple[int, dict[str, Any]]]]:
    def read(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with _open(path, encoding) as handle:
                csv.field_size_limit(2**31 - 1)  # a whole document may stand in one field; the default is 128 KiB
                rows = csv.DictReader(handle, delimiter=delimiter, strict=True)
                for row in rows:
                    if None in row:
                        raise DataError("the row has more fields than the header", where=f"{path}:{rows.line_num}", fix="quote fields that hold the delimiter")
                    yield rows.line_num, row
        except UnicodeDecodeError as error:
            raise _wrong_encoding(path, encoding, error) from None
        except csv.Error as error:
            raise DataError(f"not valid CSV: {error}", where=str(path), fix="mend the quoting") from None

    return read


def _read_jsonl(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with _open(path, encoding) as handle:
            for line, text in enumerate(handle, start=1):
                if not text.strip():
                    continue
                row = json.loads(text)
                if not isinstance(row, dict):
                    raise DataError("the line is no JSON object", where=f"{path}:{line}", fix='write one {"column": value, …} a line')
                yield line, row
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, encoding, error) from None
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", where=f"{path}:{line}", fix="write one JSON object a line") from None


def _read_parquet(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("reading Parquet needs pyarrow", where=str(path), fix="pip install 'edgepipe[parquet]'") from None
    try:
        yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
    except pyarrow.ArrowException as error:
        raise DataError(f"not a readable Parquet file: {error}", where=str(path), fix="write the file again") from None


def _wrong_encoding(path: Path, encoding: str, error: UnicodeDecodeError) -> DataError:
    return DataError(f"not {encoding} text (byte {error.start})", where=str(path), fix='save it as UTF-8, or name its encoding with [data] encoding = "…"')


READERS: dict[str, Callable[[Path, str], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": _read_delimited(","),
    ".tsv": _read_delimited("\t"),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
