"""`diff` compares two builds; a regression exits with its axis's code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.command import manifest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.command import Project


def changed(project: Project, change: Callable[[dict[str, Any]], object], name: str = "new.json") -> str:
    """The built manifest with a change, as a file; as if nothing else, no other test, had used the machine."""
    manifest = manifest_of(project.folder / "build")
    for row in manifest["results"]:
        row["verdict"] = row["verdict"] and "held"
    change(manifest)
    (project.folder / name).write_text(json.dumps(manifest))
    return name


def scaled(axis: str, factor: float, *, metric: str = "") -> Callable[[dict[str, Any]], None]:
    """Multiply an axis's figures and their intervals."""

    def change(manifest: dict[str, Any]) -> None:
        for row in manifest["results"]:
            if row["axis"] == axis and metric in row["metric"] and row["value"] is not None:
                row["value"] *= factor
                row["interval"] = row["interval"] and [bound * factor for bound in row["interval"]]

    return change


def broken(manifest: dict[str, Any]) -> None:
    manifest["verdict"] = "broken"
    row = next(row for row in manifest["results"] if row["axis"] == "memory")
    row["verdict"] = "broken"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda manifest: None, 0),
        (scaled("accuracy", 0.9, metric="accuracy"), 10),
        (scaled("size", 1.05), 11),
        (scaled("latency", 3.0, metric="median"), 12),
        (scaled("memory", 1.5), 13),
        (scaled("parity", 0.9, metric="agreement"), 14),
        (broken, 13),
        (scaled("size", 0.5), 0),
        (scaled("latency", 0.2, metric="median"), 0),
        (scaled("latency", 1.02, metric="median"), 0),
    ],
)
def test_regression_exits_with_its_axis_code(bundled: Project, change: Callable[[dict[str, Any]], None], code: int) -> None:
    before, after = changed(bundled, lambda manifest: None, "old.json"), changed(bundled, change)

    assert bundled.run("diff", before, after).returncode == code


def test_several_regressions_exit_with_the_lowest_code(bundled: Project) -> None:
    name = changed(bundled, lambda manifest: [scaled("memory", 2)(manifest), scaled("size", 2)(manifest)])

    done = bundled.run("diff", "build/manifest.json", name, "--json")

    found = json.loads(done.stdout)
    assert done.returncode == found["exit_code"] == 11
    assert {row["axis"] for row in found["rows"] if row["outcome"] == "worse"} == {"size", "memory"}


def test_slower_within_the_noise_is_no_regression(bundled: Project) -> None:
    def noisy(manifest: dict[str, Any]) -> None:
        for row in manifest["results"]:
            if row["axis"] == "latency" and row["interval"]:
                row["value"] *= 1.3
                row["interval"] = [row["interval"][0], row["interval"][1] * 1.6]

    assert bundled.run("diff", "build", changed(bundled, noisy)).returncode == 0


def test_tolerance_is_the_users(bundled: Project) -> None:
    name = changed(bundled, scaled("size", 1.05))

    assert bundled.run("diff", "build", name, "--tolerance", "size=0.1").returncode == 0
    assert bundled.run("diff", "build", name, "--tolerance", "size=0.02").returncode == 11


def test_times_of_another_kind_of_cpu_are_not_compared(bundled: Project) -> None:
    def elsewhere(manifest: dict[str, Any]) -> None:
        manifest["machine"]["flags"] = ["neon"]
        scaled("latency", 5.0)(manifest)

    done = bundled.passes("diff", "build", changed(bundled, elsewhere))

    assert "other features" in done.stdout


def test_figure_that_is_no_longer_measured_is_shown(bundled: Project) -> None:
    name = changed(bundled, lambda manifest: manifest["results"].pop(1))

    assert "no longer measured" in bundled.passes("diff", "build", name).stdout


def test_unlike_profiles_are_refused(bundled: Project) -> None:
    name = changed(bundled, lambda manifest: manifest.update(profile="rpi4"))

    bundled.refuses("diff", "build", name, code=2, says=("different profiles", "host", "rpi4"))


@pytest.mark.parametrize("content", ["{}", "[]", "nonsense", '{"profile": "host", "results": 5}'])
def test_file_that_is_no_manifest_is_refused(bundled: Project, content: str) -> None:
    (bundled.folder / "new.json").write_text(content)

    bundled.refuses("diff", "build", "new.json", code=3, says=("new.json",))
    bundled.refuses("diff", "new.json", "build", code=3, says=("new.json",))


@pytest.mark.parametrize("tolerance", ["sise=0.1", "size=much", "size"])
def test_wrong_tolerance_is_refused(bundled: Project, tolerance: str) -> None:
    bundled.refuses("diff", "build", "build", "--tolerance", tolerance, code=2, says=("--tolerance", "size"))
