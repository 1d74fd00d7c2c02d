"""`edgepipe data` as a user runs it, on every format, and a near-duplicate planted across splits that a build refuses."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from tests.e2e.command import Project, listing
from tests.e2e.conftest import write_onnx_project
from tests.models import sentences, write_csv

LONG = "the old farmer looks on from his wooden porch while the quick brown fox jumps over the lazy dog again"
NEARLY = LONG.replace("again", "twice")
ROWS = [*sentences(120), (LONG, "positive"), (NEARLY, "positive"), (LONG.upper(), "positive"), ('quo"ted,\n"', "negative")]


@pytest.fixture
def here(tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project", tmp_path / "cache")


def write_rows(path: Path, rows: list[tuple[str, str]] = ROWS) -> Path:
    named = [{"id": number, "text": text, "label": label} for number, (text, label) in enumerate(rows)]
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(named), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in named))
    else:
        with path.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["id", "text", "label"], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(named)
    return path


def read_rows(path: Path) -> list[tuple[int, str, str]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(path).to_pylist()
    elif path.suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        with path.open(newline="") as handle:
            found = list(csv.DictReader(handle, delimiter="\t" if path.suffix == ".tsv" else ","))
    return [(int(row["id"]), row["text"], row["label"]) for row in found]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_split_then_dedup_lose_nothing_else_in_any_format(here: Project, suffix: str) -> None:
    write_rows(here.folder / f"all{suffix}")

    here.passes("data", "split", f"all{suffix}", "--out", "splits")
    here.passes("data", "dedup", f"all{suffix}", "--out", f"kept{suffix}", "--report", "report.jsonl")

    dealt = {split: read_rows(here.folder / "splits" / f"{split}{suffix}") for split in ("train", "calibration", "dev", "test")}
    whole = [(number, *row) for number, row in enumerate(ROWS)]
    assert sorted(row for rows in dealt.values() for row in rows) == whole
    assert sum(any(number in (120, 121, 122) for number, *_ in rows) for rows in dealt.values()) == 1
    assert read_rows(here.folder / f"kept{suffix}") == [row for row in whole if row[0] not in (121, 122)]
    dropped = [json.loads(line) for line in (here.folder / "report.jsonl").read_text().splitlines()]
    assert [(one["row"], one["kept"]["row"], round(one["similarity"], 2)) for one in dropped] == [(122, 121, 0.9), (123, 121, 1.0)]


def test_dedup_again_drops_nothing(here: Project) -> None:
    write_rows(here.folder / "all.csv")
    here.passes("data", "dedup", "all.csv", "--out", "once.csv")

    told = json.loads(here.passes("data", "dedup", "once.csv", "--out", "twice.csv", "--json").stdout)

    assert (told["dropped"], told["kept"]) == (0, len(ROWS) - 2)
    assert (here.folder / "once.csv").read_bytes() == (here.folder / "twice.csv").read_bytes()


def test_stats_tell_rows_repeats_labels_and_what_files_share(here: Project, classifier: Path) -> None:
    write_csv(here.folder / "train.csv", [*ROWS[:121], ("", "positive"), ROWS[0]])
    write_csv(here.folder / "test.csv", [ROWS[121], ("else", "negative")])

    told = json.loads(here.passes("data", "stats", "train.csv", "test.csv", "--tokenizer", classifier, "--json").stdout)
    shown = here.passes("data", "stats", "train.csv", "test.csv").stdout

    train = told["files"]["train.csv"]
    assert (train["rows"], train["empty"], train["exact_repeats"], train["near_duplicates"]) == (123, 1, 1, 0)
    assert sum(train["labels"].values()) == 123 and 0.9 < train["balance"] <= 1
    assert train["words"]["most"] == 20 and train["tokens"]["most"] > 20
    assert told["shared"] == [{"files": ["train.csv", "test.csv"], "rows": [1, 1]}]
    assert told["examples"][0]["similarity"] == pytest.approx(18 / 20)
    assert "1 and 1 rows have something alike in the other" in shown and NEARLY in shown


def test_stats_find_a_passage_in_another_file(here: Project) -> None:
    words = [f"w{number}" for number in range(200)]
    write_csv(here.folder / "train.csv", [(" ".join(words), "a")])
    write_csv(here.folder / "test.csv", [(" ".join(["own", *words[60:90], "end"]), "b")])

    assert "nothing alike" in here.passes("data", "stats", "train.csv", "test.csv").stdout
    assert "30 words in a row" in here.passes("data", "stats", "train.csv", "test.csv", "--sequences", "30").stdout


def test_search_gives_the_nearest_and_keeps_its_index(here: Project) -> None:
    write_rows(here.folder / "all.csv")

    first = json.loads(here.passes("data", "search", "all.csv", LONG, "--top", "3", "--json").stdout)
    assert [(one["row"], round(one["similarity"], 2)) for one in first["found"]] == [(121, 1.0), (123, 1.0), (122, 0.9)]
    kept = listing(here.cache)
    assert json.loads(here.passes("data", "search", "all.csv", LONG, "--top", "3", "--json").stdout) == first
    assert listing(here.cache) == kept

    here.passes("data", "search", "all.csv", LONG, "--index", "index")
    assert json.loads(here.passes("data", "search", "index", LONG, "--top", "3", "--json").stdout) == first
    assert "nothing alike" in here.passes("data", "search", "index", "unheard of").stdout
    write_rows(here.folder / "all.csv", ROWS[:9])
    here.refuses("data", "search", "all.csv", LONG, "--index", "index", code=2, says=("another table",))


def test_planted_near_duplicate_is_refused_by_a_build_and_mended_by_dedup(here: Project) -> None:
    write_onnx_project(here.folder)
    rows = sentences(200)
    write_csv(here.folder / "train.csv", [*rows[:100], (LONG, "positive")])
    write_csv(here.folder / "test.csv", [*rows[100:], (NEARLY, "positive")])
    toml = here.toml().read_text().replace('file = "samples.csv"', 'train = "train.csv"\ntest = "test.csv"')
    here.toml().write_text(toml)
    run = ("compress", "--profile", "host", "--dry-run")

    says = (
        "test.csv",
        "train and test data",
        "nearly the same (similarity 0.90)",
        "dog again",
        "dog twice",
        "edgepipe data dedup",
        "allow_overlap",
    )
    here.refuses(*run, code=3, says=says)

    here.passes("data", "dedup", "train.csv", "--against", "test.csv", "--out", "clean.csv", "--report", "report.jsonl")
    dropped = json.loads((here.folder / "report.jsonl").read_text())
    assert (dropped["row"], dropped["kept"]) == (101, {"file": "test.csv", "row": 101})
    here.toml().write_text(toml.replace("train.csv", "clean.csv"))
    here.passes(*run)
    here.toml().write_text(toml.replace("[data]", "[data]\nnear_duplicates = 0.95"))
    here.passes(*run)
    here.toml().write_text(toml.replace("[data]", "[data]\nnear_duplicates = 0.01"))
    here.refuses(*run, code=2, says=("edgepipe.toml", "near_duplicates"))


def broken(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("stats", "none.csv"), 3, ("none.csv", "no such file")),
        (("stats", "all.csv", "all.csv"), 2, ("named twice",)),
        (("stats", "."), 2, ("folder",)),
        (("stats", "all.xlsx"), 2, (".xlsx", ".csv, .jsonl, .parquet, .tsv")),
        (("stats", "all.csv", "--text", "txt"), 3, ('column "txt" is missing', 'did you mean "text"?', "--text")),
        (("stats", "all.csv", "--text-pair", "other"), 3, ('column "other" is missing', "--text-pair")),
        (("stats", "all.csv", "--tokenizer", "nowhere"), 3, ("tokenizer.json",)),
        (("stats", "all.csv", "--tokenizer", "all.csv"), 3, ("not a readable tokenizer",)),
        (("stats", "all.csv", "--threshold", "0.1"), 2, ("--threshold",)),
        (("stats", "all.csv", "--sequences", "3"), 2, ("--sequences",)),
        (("stats", "all.csv", "--encoding", "utf-99"), 2, ("utf-99",)),
        (("stats", "bad.csv"), 3, ("bad.csv:2", "more fields")),
        (("stats", "bad.jsonl"), 3, ("bad.jsonl:1", "not valid JSON")),
        (("stats", "bad.parquet"), 3, ("not a readable Parquet",)),
        (("stats", "empty.csv"), 3, ("no rows",)),
        (("stats", "latin.csv"), 3, ("not utf-8",)),
        (("split", "all.csv", "--out", "there"), 2, ("train.csv", "--force")),
        (("split", "all.csv", "--out", "all.csv"), 2, ("all.csv",)),
        (("split", "all.csv", "--out", "new", "--shares", "tset=1"), 2, ("--shares", 'did you mean "test"?')),
        (("split", "two.csv", "--out", "new"), 3, ("no rows are left for",)),
        (("dedup", "all.csv", "--out", "kept.jsonl"), 2, ("format", ".csv")),
        (("dedup", "all.csv", "--out", "all.csv"), 2, ("--force",)),
        (("dedup", "all.csv", "--out", "new.csv", "--report", "all.csv"), 2, ("--force",)),
        (("search", "none", "x"), 3, ("no such file",)),
        (("search", "there", "x"), 3, ("no index",)),
        (("search", "all.csv", "x", "--index", "there"), 3, ("no index",)),
        (("search", "all.csv", "  "), 2, ("nothing to search for",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_told_and_leaves_nothing(
    here: Project, arguments: tuple[str, ...], code: int, says: tuple[str, ...]
) -> None:
    write_rows(here.folder / "all.csv")
    write_rows(here.folder / "two.csv", ROWS[:2])
    broken(here.folder, "bad.csv", b"text,label\na,b,c\n")
    broken(here.folder, "bad.jsonl", b'{"text": \n')
    broken(here.folder, "bad.parquet", b"rubbish")
    broken(here.folder, "empty.csv", b"text,label\n")
    broken(here.folder, "latin.csv", "text,label\ncafé,a\n".encode("latin-1"))
    (here.folder / "there").mkdir()
    broken(here.folder / "there", "train.csv", b"mine\n")

    here.refuses("data", *arguments, code=code, says=says)


def test_force_replaces_and_encoding_stays(here: Project) -> None:
    rng = random.Random(0)
    lines = "".join(f"café {rng.random()} {number},{'yes' if number % 2 else 'no'}\n" for number in range(100))
    (here.folder / "all.csv").write_bytes(("text,label\n" + lines).encode("latin-1"))

    for extra in ((), ("--force",)):
        here.passes("data", "split", "all.csv", "--out", "splits", "--encoding", "latin-1", "--shares", "train=.8,test=.2", *extra)

    found = [(here.folder / "splits" / f"{split}.csv").read_bytes().decode("latin-1").splitlines() for split in ("train", "test")]
    assert [len(one) - 1 for one in found] == [80, 20]
    assert sorted(line for one in found for line in one[1:]) == sorted(lines.splitlines())
    assert sorted(path.name for path in (here.folder / "splits").iterdir()) == ["test.csv", "train.csv"]
