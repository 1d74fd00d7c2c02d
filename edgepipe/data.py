"""Samples in their four roles, which never overlap: given file by file, or one file split by a fixed seed."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgepipe.artifact import digest, sha256_file
from edgepipe.errors import DataError, nearest
from edgepipe.readers import Sample, read_folder, read_npz_rows, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.config import Data

Split = Literal["train", "calibration", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
PROBE_SPLITS: tuple[Split, ...] = ("calibration", "dev", "train")  # the first that is there gives what checks compare on
SHARES: dict[Split, float] = {"train": 0.5, "calibration": 0.1, "dev": 0.1, "test": 0.3}
SEED = 20240101


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
                raise DataError(
                    f"no {split} data is given",
                    where="[data]",
                    fix=f"name it in the project file's [data], or with a flag: --{split} FILE where there is one, else --data FILE",
                )
        if not self._read[split]:
            raise DataError(
                f"the {split} data has no rows", where=str(getattr(self.config, split) or self.config.file), fix="give it samples"
            )
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
            fix = {
                "text": "give it a table",
                "images": "give it a folder of images",
                "arrays": f"give it a .npz file with {names}, row i for sample i",
            }[wanted]
            raise DataError(f"the model takes {wanted}, and these samples are none", where=where, fix=fix)
        if kind == "image":
            _check_image(sample["image"])
        for entry in inputs if kind == "tensors" else ():
            _check_tensor(sample["tensors"], entry, f"{where}, sample {number}")


def _check_image(path: str) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise DataError(f"not a readable image: {error}", where=path, fix="mend or remove it") from None


def _check_tensor(tensors: Mapping[str, Any], entry: Mapping[str, Any], where: str) -> None:
    name, shape = entry["name"], entry["shape"]
    if name not in tensors:
        raise DataError(f'the model\'s input "{name}" is missing', where=where, fix=nearest(name, tensors))
    array = tensors[name]
    fits = len(shape) == array.ndim and all(want == have for want, have in zip(shape, array.shape, strict=True) if isinstance(want, int))
    if not fits or entry["dtype"] not in (array.dtype.name, "unknown"):
        wanted = f"{entry['dtype']} [{', '.join(map(str, shape))}]"
        raise DataError(
            f'"{name}" is {array.dtype.name} {list(array.shape)}, but the model takes {wanted}',
            where=where,
            fix="a sample is what one run of the model takes, batch axis included",
        )


def split_samples(samples: list[Sample]) -> dict[Split, list[Sample]]:
    """Deal one list into four splits by a fixed seed, each label in its share; exact repeats are kept once.

    Labels too rare to be dealt in shares (scores, mostly) are dealt together.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in {normalised(sample): sample for sample in samples}.values():
        groups.setdefault(str(sample["label"]) if isinstance(sample.get("label"), str) else "", []).append(sample)
    enough = round(1 / min(SHARES.values()))
    ordered = [group for _, group in sorted(groups.items())]
    rare = [sample for group in ordered if len(group) < enough for sample in group]
    result: dict[Split, list[Sample]] = {split: [] for split in SPLITS}
    rng = random.Random(SEED)
    for group in [*(group for group in ordered if len(group) >= enough), rare]:
        rng.shuffle(group)
        start, reached = 0, 0.0
        for split in SPLITS:
            reached += SHARES[split]
            end = round(reached * len(group))
            result[split] += group[start:end]
            start = end
    for split in SPLITS:
        rng.shuffle(result[split])  # a part of it, which parity looks at, has every label too
    return result


def read_samples(path: str, config: Data, columns: tuple[str, ...]) -> list[Sample]:
    """Samples of one file or folder. Raises `DataError` naming the file, line and column at fault."""
    source = Path(path)
    if not source.exists():
        raise DataError("no such file", where=path, fix="check the path")
    if source.is_dir():
        samples = list(read_folder(source))
    elif source.suffix == ".npz":
        samples = list(read_npz_rows(source))
    else:
        samples = list(read_table(source, config, columns))
    if not samples:
        raise DataError("there are no samples", where=path, fix="give it samples: rows, images in a folder per label, or .npz files")
    for sample in samples:
        if "label" in sample and config.label_map:
            sample["label"] = _mapped(sample["label"], config.label_map)
    return samples


def _mapped(label: Any, names: dict[str, str]) -> Any:
    return [names.get(str(one), one) for one in label] if isinstance(label, list) else names.get(str(label), label)
