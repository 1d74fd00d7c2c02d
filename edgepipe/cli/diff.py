"""`edgepipe diff A B`: what changed between two builds; a regression fails with its axis's exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepipe.cli.options import json_option
from edgepipe.errors import AXIS_EXIT_CODES, ModelError, UsageError, nearest
from edgepipe.latency_verdict import disturbance

if TYPE_CHECKING:
    from collections.abc import Mapping

# How much worse each axis may be: points for accuracy, else a share of the old figure.
TOLERANCES = {"accuracy": 0.5, "size": 0.01, "latency": 0.10, "memory": 0.10, "parity": 0.001, "operators": 0.0}


@click.command("diff")
@click.argument("old")
@click.argument("new")
@click.option(
    "--tolerance",
    "tolerances",
    multiple=True,
    metavar="AXIS=VALUE",
    help="How much worse an axis may be: points for accuracy, else a share.",
)
@json_option
def command(old: str, new: str, tolerances: tuple[str, ...], as_json: bool) -> int:
    """Compare NEW with OLD: two bundles, or two manifest.json files (this build's and the last release's).

    Latency and memory are compared only when both were taken on the same kind of CPU; latency as a ratio to its float32
    baseline, so that two machines' clocks do not matter, only where the intervals do not overlap, and only where neither
    build was disturbed while its times were taken.
    """
    from edgepipe.cli.report import read_manifest

    allowed = {**TOLERANCES, **_parsed(tolerances)}
    before, after = read_manifest(Path(old)), read_manifest(Path(new))
    for path, manifest in ((old, before), (new, after)):
        if not isinstance(manifest.get("results"), list):
            raise ModelError("the file is no manifest", where=path, fix="name a bundle, or its manifest.json")
    if before.get("profile") != after.get("profile"):
        raise UsageError(
            f"the builds are for different profiles ({before.get('profile')} and {after.get('profile')})",
            where=f"{old}, {new}",
            fix="compare builds for one profile",
        )
    rows = compare(before, after, allowed)
    if before.get("source", {}).get("sha256") != after.get("source", {}).get("sha256"):
        click.echo("note: the builds were made from different models", err=True)
    if as_json:
        click.echo(json.dumps({"profile": after["profile"], "rows": rows, "exit_code": _code(rows)}, ensure_ascii=False))
    else:
        for row in rows:
            mark = {"worse": "✗ worse", "better": "✓ better", "same": "  same", "not comparable": "  not comparable"}[row["outcome"]]
            click.echo(
                f"{row['axis']:<10} {row['metric']:<34} {_shown(row['old']):>14} → {_shown(row['new']):>14}  {mark}{'  ' + row['note'] if row['note'] else ''}"
            )
    return _code(rows)


def compare(before: Mapping[str, Any], after: Mapping[str, Any], allowed: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row per figure that both builds have: old, new and better | same | worse | not comparable."""
    old_rows = {_key(row): row for row in before["results"]}
    disturbed = disturbance(before["results"]) or disturbance(after["results"])
    same_machine = before.get("machine", {}).get("flags") == after.get("machine", {}).get("flags")
    rows = []
    for row in after["results"]:
        old = old_rows.get(_key(row))
        if old is None or row["value"] is None or old["value"] is None:
            continue
        timed = row["axis"] == "latency"
        note, outcome = "", "not comparable"
        a, b = (_ratio(old), _ratio(row)) if timed else (old["value"], row["value"])
        if row["axis"] in ("latency", "memory") and not same_machine:
            note = "taken on CPUs with other features"
        elif a is not None and b is not None:
            worse = (a - b) if row.get("better") == "higher" else (b - a)
            limit = allowed[row["axis"]] * (1.0 if row["axis"] in ("accuracy", "parity") else abs(a) or 1.0)
            outcome = "worse" if worse > limit + 1e-12 else "better" if -worse > limit else "same"
            note = f"ratio to float32 {a:.3f} → {b:.3f}" if timed else ""
            if timed and outcome != "same" and not _apart(old, row):
                outcome, note = "same", f"{note}, within the noise"
            elif timed and outcome != "same" and disturbed:
                outcome, note = "not comparable", f"{note}; {disturbed}"
        rows.append(
            {
                "axis": row["axis"],
                "metric": row["metric"] + _length(row),
                "old": old["value"],
                "new": row["value"],
                "outcome": outcome,
                "note": note,
            }
        )
    lost = {_key(row) for row in before["results"]} - {_key(row) for row in after["results"]}
    rows += [
        {
            "axis": key[0],
            "metric": key[1],
            "old": old_rows[key]["value"],
            "new": None,
            "outcome": "not comparable",
            "note": "no longer measured",
        }
        for key in sorted(lost)
    ]
    if after.get("verdict") == "broken" and before.get("verdict") != "broken":
        axes = sorted({row["axis"] for row in after["results"] if row["verdict"] == "broken"})
        rows += [
            {"axis": axis, "metric": "verdict", "old": None, "new": None, "outcome": "worse", "note": "the budget broke"} for axis in axes
        ]
    return rows


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["axis"], row["metric"], json.dumps({k: row["conditions"].get(k) for k in ("batch", "length")})


def _length(row: Mapping[str, Any]) -> str:
    from edgepipe.report.terminal import conditions

    return conditions(row["conditions"])


def _ratio(row: Mapping[str, Any]) -> float | None:
    return row["value"] / row["baseline"] if row["baseline"] else None


def _apart(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two timings differ by more than noise: their intervals, as ratios to float32, do not overlap."""
    if not old["interval"] or not new["interval"]:
        return False
    (low, high), (new_low, new_high) = ([bound / row["baseline"] for bound in row["interval"]] for row in (old, new))
    return bool(new_low > high or new_high < low)


def _code(rows: list[dict[str, Any]]) -> int:
    return min((AXIS_EXIT_CODES[row["axis"]] for row in rows if row["outcome"] == "worse"), default=0)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"


def _parsed(settings: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for setting in settings:
        axis, _, value = setting.partition("=")
        if axis not in TOLERANCES:
            raise UsageError(f'unknown axis "{axis}"', where="--tolerance", fix=nearest(axis, TOLERANCES))
        try:
            found[axis] = float(value)
        except ValueError:
            raise UsageError(f'"{setting}" is not AXIS=NUMBER', where="--tolerance", fix="for example --tolerance latency=0.2") from None
    return found
