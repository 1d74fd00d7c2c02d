"""Samples in their four roles, which never overlap: given file by file, or one file split by a fixed seed.

Unlabelled data is a file of its own, which only training reads.
"""

from __future__ import annotations

import hashlib
import random
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.artifact import canonical, digest, sha256_file
from edgepipe.dataset_folder import ROLES, Part, parts_of
from edgepipe.errors import DataError, nearest
from edgepipe.npz import read_npz_rows
from edgepipe.readers import MEDIA, Sample, read_folder, read_part, read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edgepipe.config import Data

Split = Literal["train", "calibration", "dev", "test", "unlabelled"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "dev", "test")
ALL_DATA: tuple[Split, ...] = (*SPLITS, "unlabelled")
LEARNED_FROM = frozenset({"train", "unlabelled"})  # may share samples: both only train
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
        return bool((self.config.file and split in SPLITS) or getattr(self.config, split))

    @property
    def to_look_at(self) -> Split | None:
        """The first split that is there of those which checks and choices may look at: never the test data."""
        return next((split for split in PROBE_SPLITS if self.has(split)), None)

    def __call__(self, split: Split) -> list[Sample]:
        """The samples of one split; `DataError` when there are none."""
        if split not in self._read:
            if path := getattr(self.config, split):
                self._read[split] = read_samples(path, *self._wanted(split))
                if split == "unlabelled":  # folders of images name a label all the same
                    self._read[split] = [{key: value for key, value in sample.items() if key != "label"} for sample in self._read[split]]
            elif self.config.file and split in SPLITS:
                dealt = deal(self.config.file, self.config, self.columns)
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

    def _wanted(self, split: Split) -> tuple[Data, tuple[str, ...]]:
        """What is read of a row. Without labels there is no pair to compare either: each text is a sample by itself."""
        if split != "unlabelled":
            return self.config, self.columns
        columns = tuple(column for column in self.columns if column not in ("label", "text_pair"))
        return (self.config.model_copy(update={"text_pair": None}) if "text_pair" in self.columns else self.config), columns

    def digest(self, split: Split) -> str:
        whole = hashlib.sha256()
        for sample in self(split):
            whole.update(canonical(_identity(sample)) + b"\n")
        return whole.hexdigest()

    def check_overlap(self) -> None:
        """Refuse splits that share samples, nearly or passages of them, unless the pair is allowed by name."""
        present = [split for split in ALL_DATA if self.has(split)]
        seen: dict[str, Split] = {}
        allowed = {LEARNED_FROM, *(frozenset(pair.split("/")) for pair in self.config.allow_overlap)}
        for split in present:
            for sample in self(split):
                key = normalised(sample)
                other = seen.setdefault(key, split)
                if other != split and frozenset((other, split)) not in allowed:
                    raise self._shared(other, split, key)
        if "text_pair" in self.columns and self.has("unlabelled"):  # where each text is a sample by itself
            alone = {normalised(sample) for sample in self("unlabelled")}
            for split in present:
                if frozenset((split, "unlabelled")) in allowed or split == "unlabelled":
                    continue
                for sample in self(split):
                    for text in (sample["text"], sample["text_pair"]):
                        if (key := normalised({"text": text})) in alone:
                            raise self._shared(split, "unlabelled", key)
        if len(present) > 1 and (self.config.near_duplicates or self.config.shared_passage):
            from edgepipe.near_duplicates.splits import refuse_near_duplicates

            refuse_near_duplicates({split: self(split) for split in present}, self.config, allowed)

    def _shared(self, one: Split, other: Split, key: str) -> DataError:
        return DataError(
            f"the {one} and {other} data share a sample: {key[:60]!r}",
            where=str(getattr(self.config, other) or self.config.file),
            fix=f'remove it from one of them, or say allow_overlap = ["{one}/{other}"] in [data]',
        )


def normalised(sample: Sample) -> str:
    """What the overlap rule compares: words in lower case for text, content for images, sounds and tensors."""
    for kind in MEDIA:
        if kind in sample:
            return _file_digest(str(sample[kind]))
    if "tensors" in sample:
        return digest(_tensors_identity(sample["tensors"]))
    words = " ".join(sample["tokens"]) if "tokens" in sample else f"{sample['text']} \t {sample.get('text_pair', '')}"
    return " ".join(re.findall(r"\w+", words.lower())) or words.strip()


def _identity(sample: Sample) -> Any:
    if "tensors" in sample:
        return {**sample, "tensors": _tensors_identity(sample["tensors"])}
    return {**sample, **{kind: _file_digest(str(sample[kind])) for kind in MEDIA if kind in sample}}


def _tensors_identity(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A digest for each array; no more than one array is in memory at a time."""
    return {name: [str(a.dtype), list(a.shape), hashlib.sha256(a.tobytes()).hexdigest()] for name, a in tensors.items()}


@cache
def _file_digest(path: str) -> str:
    return sha256_file(Path(path))


def given_as_arrays(config: Data) -> bool:
    """Whether the samples are what the model takes already, in .npz files, so that nothing is to be made of them."""
    path = Path(config.file or config.test or config.calibration or config.dev or config.train or "")
    return path.suffix == ".npz" or (path.is_dir() and any(path.glob("*.npz")))


def check_fit(samples: Sequence[Sample], kind: str, inputs: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuse samples that are not of the kind the model takes, and tensors unlike the inputs of its signature."""
    keys, wanted = {
        "text": (("text", "tokens"), "text"),
        "image": (("image",), "images"),
        "pixels": (("image",), "images"),
        "audio": (("audio", "tensors"), "audio"),
        "tensors": (("tensors",), "arrays"),
    }[kind]
    for number, sample in enumerate(samples, start=1):
        if not any(key in sample for key in keys):
            names = ", ".join(f'"{entry["name"]}"' for entry in inputs)
            fix = {
                "text": "give it a table",
                "images": "give it a folder of images",
                "audio": 'give it a .jsonl table with the path of a .wav file in the column "audio"',
                "arrays": f"give it a .npz file with {names}, row i for sample i",
            }[wanted]
            raise DataError(f"the model takes {wanted}, and these samples are none", where=where, fix=fix)
        if kind in ("image", "pixels"):
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


def split_samples(samples: list[Sample], roles: Sequence[Split] = SPLITS) -> dict[Split, list[Sample]]:
    """Deal one list into the roles by a fixed seed, each label in its share; exact repeats are kept once.

    Labels too rare to be dealt in shares (scores, mostly) are dealt together.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in {normalised(sample): sample for sample in samples}.values():
        groups.setdefault(str(sample["label"]) if isinstance(sample.get("label"), (str, int)) else "", []).append(sample)
    shares = {role: SHARES[role] / sum(SHARES[other] for other in roles) for role in roles}
    enough = round(1 / min(shares.values()))
    ordered = [group for _, group in sorted(groups.items())]
    rare = [sample for group in ordered if len(group) < enough for sample in group]
    result: dict[Split, list[Sample]] = {role: [] for role in roles}
    rng = random.Random(SEED)
    for group in [*(group for group in ordered if len(group) >= enough), rare]:
        rng.shuffle(group)
        start, reached = 0, 0.0
        for role in roles:
            reached += shares[role]
            end = round(reached * len(group))
            result[role] += group[start:end]
            start = end
    for role in roles:
        rng.shuffle(result[role])  # a part of it, which parity looks at, has every label too
    return result


def deal(path: str, config: Data, columns: tuple[str, ...]) -> dict[Split, list[Sample]]:
    """All four roles out of one file or folder: its own splits where it has some, and the others dealt from the first of
    train, dev and test that it has. Near-duplicates are dealt to the same role."""
    from edgepipe.near_duplicates.splits import dealt_together

    own = {role: source for name, source in _splits_of(Path(path)).items() if (role := _role(name))}
    if not own:
        return dealt_together(split_samples(read_samples(path, config, columns)), config)
    found = {role: _renamed(_read(source, config, columns), config, f"{path}, {role}") for role, source in own.items()}
    giver = next(role for role in ("train", "dev", "test", "calibration") if role in found)
    return found | dealt_together(split_samples(found[giver], [role for role in SPLITS if role == giver or role not in found]), config)


def _role(name: str) -> Split | None:
    return next((role for role in SPLITS if role == ROLES.get(name)), None)


def _splits_of(source: Path) -> dict[str, Path | Part]:
    """The splits that a folder has by name, as the datasets library or as folders of images or arrays lay them out."""
    if not source.is_dir():
        return {}
    parts: dict[str, Path | Part] = {name: part for name, part in parts_of(source).items() if name}
    if parts or parts_of(source):
        return parts
    folders = [sub for sub in source.iterdir() if sub.is_dir()]
    nested = [sub for sub in folders if any(inner.is_dir() for inner in sub.iterdir()) or any(sub.glob("*.npz"))]
    return {sub.name: sub for sub in nested} if nested == folders and all(sub.name in ROLES for sub in folders) else {}


def read_samples(path: str, config: Data, columns: tuple[str, ...]) -> list[Sample]:
    """Samples of one file or folder. Raises `DataError` naming the file, line and column at fault."""
    source = Path(path)
    if not source.exists():
        raise DataError("no such file", where=path, fix="check the path")
    splits = _splits_of(source)
    if len(splits) > 1:
        raise DataError(
            f"the folder has several splits: {', '.join(sorted(splits))}",
            where=path,
            fix="name it as [data] file (--data), which gives each its role, or name one split's folder or file here",
        )
    return _renamed(_read(next(iter(splits.values()), source), config, columns), config, path)


def _read(source: Path | Part, config: Data, columns: tuple[str, ...]) -> Iterable[Sample]:
    if isinstance(source, Part):
        return read_part(source, config, columns)
    if source.is_dir():
        part = parts_of(source).get("")
        return read_part(part, config, columns) if part else read_folder(source, config.label)
    return read_npz_rows(source, config.label) if source.suffix == ".npz" else read_table(source, config, columns)


def _renamed(found: Iterable[Sample], config: Data, where: str) -> list[Sample]:
    """The samples with the labels that the model knows."""
    samples = list(found)
    if not samples:
        raise DataError("there are no samples", where=where, fix="give it samples: rows, images in a folder per label, or .npz files")
    for sample in samples:
        if "label" in sample and config.label_map:
            sample["label"] = _mapped(sample["label"], config.label_map)
    return samples


def _mapped(label: Any, names: dict[str, str]) -> Any:
    return [names.get(str(one), one) for one in label] if isinstance(label, list) else names.get(str(label), label)
