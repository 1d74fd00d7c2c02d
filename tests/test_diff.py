"""`edgepipe diff`: better, same or worse, by axis; a regression fails with its axis's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgepipe.cli import run
from edgepipe.cli.diff import TOLERANCES, compare
from edgepipe.errors import AXIS_EXIT_CODES

FIGURES: dict[str, tuple[str, str, float, float | None]] = {
    # metric: axis, which way is better, value, baseline
    "accuracy": ("accuracy", "higher", 90.0, 91.0), "accuracy drop": ("accuracy", "lower", 1.0, None), "component bytes": ("size", "lower", 1000.0, 4000.0),
    "median": ("latency", "lower", 10.0, 20.0), "throughput": ("latency", "higher", 100.0, 50.0), "peak of a fresh process": ("memory", "lower", 1e8, 2e8),
    "cosine to a plain session": ("parity", "higher", 0.9999, None), "without a kernel": ("operators", "lower", 0.0, None),
}  # fmt: skip


def result(metric: str, *, noise: float = 0.005, **changes: Any) -> dict[str, Any]:
    """A row of a manifest; medians have an interval of a share of `noise` around them."""
    axis, better, value, baseline = FIGURES[metric]
    row = {
        "axis": axis,
        "metric": metric,
        "better": better,
        "value": value,
        "baseline": baseline,
        "conditions": {"batch": 1, "length": "task"},
        "verdict": "held",
    }
    row |= changes
    row["interval"] = [row["value"] * (1 - noise), row["value"] * (1 + noise)] if metric == "median" else None
    return row


def manifest(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "profile": "rpi4",
        "verdict": "held",
        "source": {"model": "m"},
        "machine": {"flags": ["avx2"]},
        "results": list(rows),
        **changes,
    }


def outcome(metric: str, value: float, **changes: Any) -> str:
    """The outcome when one figure of a build changes to this value."""
    rows = compare(manifest(result(metric)), manifest(result(metric, value=value, **changes)), TOLERANCES)
    assert len(rows) == 1
    return str(rows[0]["outcome"])


def write(path: Path, data: object) -> str:
    path.write_text(json.dumps(data))
    return str(path)


@pytest.mark.parametrize("metric", FIGURES)
def test_build_is_the_same_as_itself(metric: str) -> None:
    assert outcome(metric, FIGURES[metric][2]) == "same"


@pytest.mark.parametrize(
    ("metric", "worse", "same", "better"),
    [
        ("accuracy", 89.4, 89.6, 90.6), ("accuracy drop", 1.6, 1.4, 0.4), ("component bytes", 1011, 1009, 980), ("median", 11.1, 10.9, 8.9),
        ("peak of a fresh process", 1.11e8, 1.09e8, 0.8e8), ("cosine to a plain session", 0.9988, 0.9990, 1.1),
    ],
)  # fmt: skip
def test_figure_is_worse_or_better_beyond_its_axis_tolerance(metric: str, worse: float, same: float, better: float) -> None:
    assert [outcome(metric, value) for value in (worse, same, better)] == ["worse", "same", "better"]


@pytest.mark.parametrize(("noise", "found"), [(0.01, "worse"), (0.2, "same")])
def test_times_whose_intervals_overlap_are_the_same(noise: float, found: str) -> None:
    before, after = (manifest(result("median", value=value, noise=noise)) for value in (10.0, 12.0))

    assert compare(before, after, TOLERANCES)[0]["outcome"] == found


@pytest.mark.parametrize(
    "reason", ["other programs used 42% of the machine meanwhile; 2 × as fast", "the device slowed itself down meanwhile (heat)"]
)
@pytest.mark.parametrize("disturbed", ["before", "after"])
def test_times_of_a_disturbed_build_prove_no_regression(disturbed: str, reason: str) -> None:
    told = {"verdict": "unproven", "reason": reason}
    before = manifest(result("median", **(told if disturbed == "before" else {})))
    after = manifest(result("median", value=20.0, **(told if disturbed == "after" else {})))

    row = compare(before, after, TOLERANCES)[0]

    assert row["outcome"] == "not comparable" and reason.split(";")[0] in row["note"]


def test_times_unproven_for_another_reason_are_compared() -> None:
    """A prediction whose interval reaches over the limit is still the same prediction as last time."""
    doubtful = {"verdict": "unproven", "reason": "the interval reaches over the limit"}

    rows = compare(manifest(result("median")), manifest(result("median", value=20.0, **doubtful)), TOLERANCES)

    assert rows[0]["outcome"] == "worse"


def test_times_without_an_interval_are_no_regression() -> None:
    assert outcome("throughput", 10) == "same"


def test_operator_without_a_kernel_is_always_worse() -> None:
    assert outcome("without a kernel", 1) == "worse"


def test_latency_is_compared_as_a_ratio_to_its_own_baseline() -> None:
    assert outcome("median", 20.0, baseline=40.0) == "same"
    assert outcome("median", 10.0, baseline=10.0) == "worse"


@pytest.mark.parametrize(
    ("metric", "comparable"), [("median", False), ("peak of a fresh process", False), ("accuracy", True), ("component bytes", True)]
)
def test_times_and_memory_of_another_cpu_are_not_comparable(metric: str, comparable: bool) -> None:
    after = manifest(result(metric, value=1e12 if metric != "accuracy" else 0.0), machine={"flags": ["avx2", "avx512f"]})

    rows = compare(manifest(result(metric)), after, TOLERANCES)

    assert rows[0]["outcome"] == ("worse" if comparable else "not comparable")


def test_same_figure_under_other_conditions_is_another_figure() -> None:
    fixed = result("median", value=50.0, conditions={"batch": 1, "length": "128"})

    rows = compare(
        manifest(result("median"), fixed),
        manifest(result("median", value=100.0, conditions=fixed["conditions"]), result("median")),
        TOLERANCES,
    )

    assert [(row["old"], row["outcome"]) for row in rows] == [(50.0, "worse"), (10.0, "same")]


def test_threads_are_no_condition_of_their_own() -> None:
    rows = compare(
        manifest(result("median", conditions={"batch": 1, "length": "task", "threads": 1})), manifest(result("median")), TOLERANCES
    )

    assert rows[0]["outcome"] == "same"


def test_figure_that_is_no_longer_measured_is_told() -> None:
    rows = compare(manifest(result("accuracy"), result("median")), manifest(result("accuracy")), TOLERANCES)

    assert [(row["metric"], row["outcome"], row["note"]) for row in rows] == [
        ("accuracy", "same", ""),
        ("median", "not comparable", "no longer measured"),
    ]


def test_budget_that_newly_broke_is_worse() -> None:
    after = manifest(result("component bytes", verdict="broken"), verdict="broken")

    assert [(row["axis"], row["outcome"]) for row in compare(manifest(result("component bytes")), after, TOLERANCES)] == [
        ("size", "same"),
        ("size", "worse"),
    ]
    assert [row["outcome"] for row in compare(after, after, TOLERANCES)] == ["same"]


@pytest.mark.parametrize(
    "metric", ["accuracy", "component bytes", "median", "peak of a fresh process", "cosine to a plain session", "without a kernel"]
)
def test_regression_exits_with_the_code_of_its_axis(tmp_path: Path, metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    axis, better, value, _ = FIGURES[metric]
    old = write(tmp_path / "old.json", manifest(result(metric)))
    new = write(tmp_path / "new.json", manifest(result(metric, value=value * 2 + 1 if better == "lower" else value / 2)))

    assert run(["diff", old, new]) == AXIS_EXIT_CODES[axis]
    assert "worse" in capsys.readouterr().out


def test_several_regressions_exit_with_the_lowest_code(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", manifest(result("median"), result("component bytes")))
    new = write(tmp_path / "new.json", manifest(result("median", value=30), result("component bytes", value=3000)))

    assert run(["diff", old, new]) == 11


def test_improvement_exits_with_nothing(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", manifest(result("median")))
    new = write(tmp_path / "new.json", manifest(result("median", value=1)))

    assert run(["diff", old, new]) == 0


def test_tolerance_flag_allows_more_or_less(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", manifest(result("median")))
    new = write(tmp_path / "new.json", manifest(result("median", value=11.5)))

    assert run(["diff", old, new]) == 12
    assert run(["diff", old, new, "--tolerance", "latency=0.2"]) == 0


@pytest.mark.parametrize("tolerance", ["latencey=0.2", "latency=much", "latency"])
def test_tolerance_that_is_none_is_a_usage_error(tmp_path: Path, tolerance: str) -> None:
    path = write(tmp_path / "old.json", manifest(result("median")))

    assert run(["diff", path, path, "--tolerance", tolerance]) == 2


def test_bundle_folders_are_compared_by_their_manifests(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "manifest.json", manifest(result("accuracy")))

    assert run(["diff", str(tmp_path / "old"), str(tmp_path / "new")]) == 0


def test_builds_for_different_profiles_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (write(tmp_path / f"{name}.json", manifest(result("accuracy"), profile=name)) for name in ("rpi4", "rpi5"))

    assert run(["diff", old, new]) == 2
    assert "rpi4 and rpi5" in capsys.readouterr().err


@pytest.mark.parametrize("data", [{}, [], {"results": None}, {"results": []}, {"name": "web app"}])
def test_file_that_is_no_manifest_is_a_model_error(tmp_path: Path, data: object) -> None:
    path = write(tmp_path / "x.json", data)

    assert run(["diff", path, path]) == 3


def test_json_output_is_all_there_is_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.json", manifest(result("median")))

    run(["diff", path, path, "--json"])

    found = json.loads(capsys.readouterr().out)
    assert (found["profile"], found["exit_code"], found["rows"][0]["outcome"]) == ("rpi4", 0, "same")
