"""A million short texts: indexed, searched, deduplicated, and what is found of what exact Jaccard similarity finds.

The texts follow the demo's: drawn word by word from the pairs of words in its reviews, and one in ten is an earlier one with
some words changed, left out or added. Indexing and deduplicating run as processes of their own.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from demo import write_result

from edgepipe.near_duplicates.index import Index, index_of
from edgepipe.near_duplicates.saved_index import open_index
from edgepipe.near_duplicates.tables import Columns
from edgepipe.near_duplicates.windows import WINDOW, window_sets, words_of
from edgepipe.store import cache_root

SPLITS = ("train", "calibration", "dev", "test")
TEXTS = 1_000_000
ASKED = 1000  # texts that are searched for, and compared with every other exactly


def made_texts(count: int) -> list[str]:
    """The same texts every time."""
    rng = random.Random(0)
    following: dict[str, list[str]] = {}
    for split in SPLITS:
        with (cache_root() / "downloads" / "sentiment" / f"{split}.csv").open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                words = ["", *row["text"].split(), ""]
                for word, after in pairwise(words):
                    following.setdefault(word, []).append(after)
    vocabulary = [word for word in following if word]
    texts: list[str] = []
    while len(texts) < count:
        if texts and rng.random() < 0.1:
            texts.append(_edited(rng.choice(texts), vocabulary, rng))
            continue
        words, word = [], ""
        while len(words) < 60 and (word := rng.choice(following[word])):
            words.append(word)
        texts.append(" ".join(words) or "nothing")
    return texts


def _edited(text: str, vocabulary: list[str], rng: random.Random) -> str:
    words = text.split()
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(words))
        words[at : at + 1] = rng.choice([[], [rng.choice(vocabulary)], [words[at], rng.choice(vocabulary)]])
        words = words or ["nothing"]
    return " ".join(words)


def in_a_process(*arguments: str) -> dict[str, float]:
    """Seconds and peak bytes of `edgepipe data …`, all of them CPU time of its own process and its threads'."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "edgepipe", "data", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"edgepipe data {' '.join(arguments)} failed")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def query_times(index: Index, asked: list[str]) -> dict[str, dict[str, float]]:
    """Milliseconds as they pass, and of this thread's CPU, which a machine that is busy with something else changes less."""
    taken = {"wall": [], "cpu": []}
    for text in asked:
        start, cpu = time.perf_counter(), time.thread_time()
        index.nearest(text, 10)
        taken["wall"].append((time.perf_counter() - start) * 1000)
        taken["cpu"].append((time.thread_time() - cpu) * 1000)
    return {name: {"median": statistics.median(one), "p95": sorted(one)[int(0.95 * len(one))]} for name, one in taken.items()}


def exact_neighbours(index: Index, asked: list[str], threshold: float) -> list[dict[int, float]]:
    """Of each asked text the rows at least this similar, and how much, by comparing it with every row."""
    sets = window_sets(asked, WINDOW)
    owners = np.repeat(np.arange(len(asked)), np.diff(sets.offsets))
    order = np.argsort(sets.hashes, kind="stable")
    windows, owners = sets.hashes[order], owners[order]
    sizes, found = np.diff(sets.offsets), [dict[int, float]() for _ in asked]
    for start in range(0, len(index), 5000):
        offsets = np.asarray(index.sets.offsets[start : start + 5001])
        hashes = np.asarray(index.sets.hashes[offsets[0] : offsets[-1]])
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        low, high = np.searchsorted(windows, hashes, "left"), np.searchsorted(windows, hashes, "right")
        times = high - low
        places = np.repeat(low, times) + np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        pairs, shared = np.unique(np.repeat(rows, times) * len(asked) + owners[places], return_counts=True)
        row, which = pairs // len(asked), pairs % len(asked)
        values = shared / (np.diff(offsets)[row] + sizes[which] - shared)
        alike = values >= threshold
        for one, other, value in zip(which[alike].tolist(), row[alike].tolist(), values[alike].tolist(), strict=True):
            found[one][start + other] = value
    return found


def similarity(one: str, other: str) -> float:
    """Jaccard similarity with Python's own sets of words themselves."""
    a, b = (_windows(text) for text in (one, other))
    return len(a & b) / len(a | b)


def _windows(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[at : at + WINDOW]) for at in range(len(words) - WINDOW + 1)} or {tuple(words)}


def quality(index: Index, texts: list[str], asked: list[str], exact: list[dict[int, float]], threshold: float) -> dict[str, float]:
    """Of pairs that are at least this similar, the share that the index finds; of those it finds, the share that are."""
    truth = [{row for row, value in near.items() if value >= threshold} for near in exact]
    answers = [{row for row, value in index.nearest(text, 100_000) if value >= threshold} for text in asked]
    right = sum(similarity(text, texts[row]) >= threshold for text, rows in zip(asked, answers, strict=True) for row in rows)
    told, true = sum(map(len, answers)), sum(map(len, truth))
    both = sum(len(rows & there) for rows, there in zip(answers, truth, strict=True))
    others = true - len(asked)  # each finds itself
    return {"pairs": others, "recall": (both - len(asked)) / max(1, others), "precision": right / told}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=TEXTS)
    count = parser.parse_args().texts
    texts = made_texts(count)
    asked = [_edited(text, ["another"], random.Random(1)) for text in random.Random(2).sample(texts, ASKED)]
    inside = random.Random(3).sample(texts, ASKED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table, kept = folder / "texts.csv", folder / "index"
        with table.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["text"])
            writer.writerows([text] for text in texts)
        build = in_a_process("search", str(table), texts[0], "--index", str(kept))
        again = in_a_process("search", str(kept), texts[0])
        dedup = in_a_process("dedup", str(table), "--out", str(folder / "out.csv"))
        with (folder / "out.csv").open(encoding="utf-8", newline="") as handle:
            stay = sum(1 for _ in csv.reader(handle)) - 1
        saved = open_index(kept, Columns(), None)
        disk = sum(file.stat().st_size for file in kept.iterdir())
        query_times(saved.index, asked[:50])  # pages that were never read
        taken = query_times(saved.index, asked)
        exact = exact_neighbours(saved.index, inside, 0.5)
        judged = {f"search, at least {level}": quality(saved.index, texts, inside, exact, level) for level in (0.5, 0.8)}
        judged["stats, split, dedup, pipeline, at least 0.8"] = quality(index_of(texts, 0.8), texts, inside, exact, 0.8)
    data = {
        "texts": count, "build": build, "search_process": again, "dedup": dedup, "kept": stay, "disk_bytes": disk,
        "query_ms": taken, "quality": judged,
    }  # fmt: skip
    command = "python benchmarks/near_duplicates.py" + (f" --texts {count}" if count != TEXTS else "")
    write_result("near_duplicates", command, as_table(data), data)


def as_table(data: dict) -> str:
    query, count = data["query_ms"], data["texts"]
    rows = [
        ("index written", f"{data['build']['seconds']:.0f} s ({data['build']['cpu_seconds']:.0f} s of CPU)", "≤ 600 s"),
        ("… peak memory", f"{data['build']['peak_bytes'] / 1e9:.2f} GB", "≤ 2 GB"),
        ("… on disk", f"{data['disk_bytes'] / 1e6:.0f} MB", ""),
        (f"query, index open, {ASKED:,} texts: median", _query(query, "median"), "≤ 10 ms"),
        ("… 95 % within", _query(query, "p95"), "≤ 10 ms"),
        ("`edgepipe data search INDEX TEXT`, whole process", f"{data['search_process']['seconds']:.2f} s", ""),
        (f"`edgepipe data dedup`: {count - data['kept']:,} rows dropped", f"{data['dedup']['seconds']:.0f} s ({data['dedup']['cpu_seconds']:.0f} s of CPU)", ""),
        ("… peak memory", f"{data['dedup']['peak_bytes'] / 1e9:.2f} GB", ""),
    ]  # fmt: skip
    lines = [f"| {count:,} short texts | figure | goal |", "|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    lines += ["", "| against exact Jaccard similarity | pairs | recall | precision |", "|---|---|---|---|"]
    lines += [f"| {name} | {one['pairs']:,} | {one['recall']:.4f} | {one['precision']:.4f} |" for name, one in data["quality"].items()]
    return "\n".join(lines)


def _query(taken: dict, which: str) -> str:
    return f"{taken['wall'][which]:.2f} ms ({taken['cpu'][which]:.2f} ms of CPU)"


if __name__ == "__main__":
    main()
