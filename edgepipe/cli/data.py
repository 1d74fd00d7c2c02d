"""`edgepipe data stats|split|dedup|search`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgepipe.cli.console import progress
from edgepipe.cli.options import json_option
from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepipe.near_duplicates.clusters import Clusters
    from edgepipe.near_duplicates.tables import Columns, TextTable
    from edgepipe.near_duplicates.windows import Text

F = TypeVar("F", bound="Callable[..., Any]")


def column_options(function: F) -> F:
    """What the columns of a table are called."""
    for option in (
        click.option("--encoding", default="utf-8", show_default=True, help="Of CSV, TSV and JSON Lines."),
        click.option("--label", default="label", show_default=True, metavar="COLUMN", help="Column with the label."),
        click.option("--text-pair", metavar="COLUMN", help="Column with the second text, where each row is a pair."),
        click.option("--text", default="text", show_default=True, metavar="COLUMN", help="Column with the text."),
    ):
        function = option(function)
    return function


def alike_options(function: F) -> F:
    """What counts as alike; the defaults are those of a build."""
    for option in (
        click.option(
            "--sequences", type=click.IntRange(0), default=50, show_default=True, metavar="WORDS",
            help="Texts that share so many words in a row are alike too; 0 looks for none.",
        ),
        click.option(
            "--threshold", type=click.FloatRange(0.3, 1), default=0.8, show_default=True, help="Texts at least this similar (Jaccard of word pairs) are alike.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


@click.group("data", help="Look at data, deal it into splits, drop near-duplicates, search it.")
def command() -> None: ...


@command.command("stats")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@column_options
@alike_options
@click.option("--tokenizer", metavar="FILE|DIR", help="Count tokens too: tokenizer.json, or a model folder that has one.")
@json_option
def stats(files: tuple[str, ...], threshold: float, sequences: int, tokenizer: str | None, as_json: bool, **columns: Any) -> None:
    """Rows, repeats, lengths and labels of each FILE (a split, say), and what the files share."""
    from edgepipe.near_duplicates.statistics import statistics, token_counter

    if len(set(files)) < len(files):
        raise UsageError("a file is named twice", where=" ".join(files), fix="name each once")
    counter = token_counter(Path(tokenizer)) if tokenizer else None
    tables = {file: _table(file, columns) for file in files}
    read = {file: (table.texts(), table.labels()) for file, table in tables.items()}
    clusters = _clusters([text for texts, _ in read.values() for text in texts], threshold, sequences, quiet=as_json)
    found = statistics(read, clusters, counter)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for name, one in found["files"].items():
        click.echo(
            f"{name}: {one['rows']:,} rows, {one['empty']:,} empty, {one['exact_repeats']:,} exact repeats, {one['near_duplicates']:,} near-duplicates"
        )
        for unit in ("words", "tokens"):
            if unit in one:
                click.echo(
                    "  {:<8} {least:,} to {most:,}, median {median:,.0f}, 95 % up to {p95:,.0f}, {total:,} in all".format(unit, **one[unit])
                )
        click.echo(f"  labels   {_labels(one)}")
    for pair in found["shared"]:
        (one_file, other), (ours, theirs) = pair["files"], pair["rows"]
        click.echo(
            f"{one_file} and {other}: " + (f"{ours:,} and {theirs:,} rows have something alike in the other" if ours else "nothing alike")
        )
    for example in found["examples"]:
        click.echo("  " + _reason(example["similarity"], example["passage_words"]))
        for text in example["texts"]:
            click.echo(f"    {text['file']}: {_short(text['text'])}")


@command.command("split")
@click.argument("file")
@click.option("--out", required=True, metavar="DIR", help="Where train, calibration, dev and test go, in FILE's format.")
@click.option("--shares", metavar="ROLE=SHARE,…", help="Default: train=0.5,calibration=0.1,dev=0.1,test=0.3.")
@click.option("--force", is_flag=True, help="Replace the files that are there.")
@column_options
@alike_options
@json_option
def split(file: str, out: str, shares: str | None, force: bool, threshold: float, sequences: int, as_json: bool, **columns: Any) -> None:
    """Deal FILE into the four roles by a fixed seed: each label in its share, what is alike in one role, every row once."""
    from edgepipe.data import SHARES, SPLITS
    from edgepipe.near_duplicates.dealing import check_dealt, dealt_rows, parsed_shares
    from edgepipe.near_duplicates.tables import write_tables

    wanted: dict[str, float] = parsed_shares(shares, SPLITS) if shares else {str(role): share for role, share in SHARES.items()}
    table = _table(file, columns)
    clusters = _clusters(table.texts(), threshold, sequences, quiet=as_json)
    dealt = dealt_rows(clusters.first.tolist(), table.labels(), wanted)
    check_dealt(dealt, file)
    targets = {role: Path(out) / f"{role}{table.path.suffix}" for role in dealt}
    write_tables({targets[role]: table.encoded(rows) for role, rows in dealt.items()}, force=force)
    if as_json:
        found = {role: {"file": str(targets[role]), "rows": len(rows)} for role, rows in dealt.items()}
        click.echo(json.dumps({"splits": found, "clusters": len(clusters.members())}, ensure_ascii=False))
        return
    for role, rows in dealt.items():
        click.echo(f"{targets[role]}: {len(rows):,} rows")
    click.echo(f"{len(clusters.members()):,} groups of rows that are alike were kept together")


@command.command("dedup")
@click.argument("file")
@click.option("--out", required=True, metavar="FILE", help="Where the rows that stay go, in FILE's format.")
@click.option(
    "--against", multiple=True, metavar="FILE", help="Drop what is like a row of this file too, which stays as it is: another split, say."
)
@click.option("--report", metavar="FILE.jsonl", help="Write which rows were dropped, for which, and how similar they are.")
@click.option("--force", is_flag=True, help="Replace the files that are there.")
@column_options
@alike_options
@json_option
def dedup(
    file: str,
    out: str,
    against: tuple[str, ...],
    report: str | None,
    force: bool,
    threshold: float,
    sequences: int,
    as_json: bool,
    **columns: Any,
) -> None:
    """Keep the first of all rows of FILE that are alike, and drop the others."""
    from edgepipe.near_duplicates.dropped import Sources, dropped_rows
    from edgepipe.near_duplicates.tables import write_tables

    table, target = _table(file, columns), Path(out)
    if target.suffix.lower() != table.path.suffix.lower():
        fix = f"name a file of type {table.path.suffix}"
        raise UsageError("the rows that stay are written in the format they came in", where=out, fix=fix)
    if file in against:
        raise UsageError(
            "a file is not compared with itself by --against", where=file, fix="leave --against out: its rows are compared anyhow"
        )
    sources = Sources({**{name: _table(name, columns).texts() for name in against}, file: table.texts()})
    clusters = _clusters(sources.texts, threshold, sequences, quiet=as_json)
    kept = sources.kept(clusters)
    files = {target: table.encoded(kept)}
    if report:
        files[Path(report)] = "".join(json.dumps(line) + "\n" for line in dropped_rows(sources, clusters)).encode()
    write_tables(files, force=force)
    dropped = len(table) - len(kept)
    if as_json:
        found = {"rows": len(table), "kept": len(kept), "dropped": dropped, "file": out, "report": report}
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    click.echo(f"{out}: {len(kept):,} of {len(table):,} rows; {dropped:,} dropped")


@command.command("search")
@click.argument("source", metavar="FILE|INDEX")
@click.argument("query", metavar="TEXT")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="How many at most.")
@click.option("--index", "folder", metavar="DIR", help="Keep the index there (default: in EDGEPIPE_CACHE).")
@column_options
@json_option
def search(source: str, query: str, top: int, folder: str | None, as_json: bool, **columns: Any) -> None:
    """The texts of FILE most like TEXT, with their exact similarity. Below 0.5, some may be missed.

    The first search builds an index; the next ones take milliseconds. A folder that --index wrote can be named for FILE.
    """
    from edgepipe.near_duplicates.saved_index import open_index

    if not query.strip():
        raise UsageError("there is nothing to search for", where="TEXT", fix="give it words")
    with progress(quiet=as_json) as display:
        saved = open_index(Path(source), _columns(columns), Path(folder) if folder else None, display)
    found = [{"row": row + 1, "similarity": value, "text": saved.text(row)} for row, value in saved.index.nearest(query, top)]
    if as_json:
        click.echo(json.dumps({"texts": len(saved.index), "found": found}, ensure_ascii=False))
        return
    for one in found:
        click.echo(f"{one['similarity']:.3f}  row {one['row']:<8} {_short(str(one['text']))}")
    if not found:
        click.echo(f"nothing alike in {len(saved.index):,} texts")


def _columns(columns: dict[str, Any]) -> Columns:
    from edgepipe.near_duplicates.tables import Columns

    return Columns(**columns)


def _table(file: str, columns: dict[str, Any]) -> TextTable:
    from edgepipe.near_duplicates.tables import read_text_table

    return read_text_table(Path(file), _columns(columns))


def _clusters(texts: Sequence[Text], threshold: float, sequences: int, *, quiet: bool) -> Clusters:
    from edgepipe.near_duplicates.clusters import clusters_of

    with progress(quiet=quiet) as display:
        return clusters_of(texts, threshold, _words(sequences), display)


def _words(sequences: int) -> int:
    if 0 < sequences < 8:
        raise UsageError(
            "a phrase of fewer than 8 words is no passage", where="--sequences", fix="ask for 8 or more, or 0 to look for none"
        )
    return sequences


def _labels(one: dict[str, Any]) -> str:
    if not one["distinct_labels"]:
        return "none"
    counts = one["labels"]
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items()) if counts else f"{one['distinct_labels']:,} different values"
    balance = f"; balance {one['balance']:.2f} of 1" if counts and one["balance"] is not None else ""
    return listed + balance + (f"; {one['unlabelled']:,} rows have none" if one["unlabelled"] else "")


def _reason(similarity: float | None, passage_words: int | None) -> str:
    return f"similarity {similarity:.2f}" if similarity is not None else f"{passage_words} words in a row"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else line[:119] + "…"
