"""What the terminal shows: one target with every figure, several side by side with each reason once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepipe.report.terminal import print_result
from edgepipe.report.terminal_matrix import print_matrix
from tests.report import devices


def test_one_target_shows_every_figure_and_names_a_prediction_s_interval(
    manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(devices.rpi4(manifest)[0])
    out = capsys.readouterr().out
    assert "33.0 … 51.6 (90 %)" in out and "-0.10 … 1.10  " in out
    assert out.count("predicted") == 3 and "latency: the interval reaches over the limit" in out


def test_latency_without_a_figure_and_accelerators_have_their_lines(manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_result(devices.phone(manifest)[0])
    out = capsys.readouterr().out
    assert "latency: emulated times are no latencies" in out
    assert "CoreML share (fixed, 6 partitions)" in " ".join(out.split())


def test_several_targets_are_one_table_with_reasons_once(manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = [devices.rpi4(manifest)[0], devices.rpi5(manifest)[0], devices.browser(manifest)[0], devices.phone(manifest)[0]]
    print_matrix(found[:3], places=[("report", Path("page.html"))])
    out = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert lines["accuracy drop"].split() == [
        "accuracy",
        "drop",
        *(["✓", "E", "0.50", "points", "✓", "E", "0.50", "points", "✓", "M", "0.50", "points"]),
    ]
    assert "? P 325 → 301 ms (1.08 ×)" in lines["latency"] and "✓ P 26.4 → 9.10 ms (2.90 ×)" in lines["latency"]
    assert "1 × 128: [241, 377] ≤ 325" in out and "? H 14.2" in out and "✗ M 0.97000" in out and "cosine ≥ 0.99900" in out
    assert lines["verdict"].split() == ["verdict", "?", "unproven", "✓", "held", "✗", "broken"]
    assert out.count("the interval reaches over the limit") == 1 and "latency on rpi4: the interval" in out
    assert "report  page.html" in out and "P predicted, 90 % interval" in out
    assert max(map(len, out.splitlines())) <= 130

    print_matrix(found)
    assert "?   no figure" in capsys.readouterr().out


def test_a_reason_of_all_targets_names_none(manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = [devices.rpi4(manifest)[0], {**devices.rpi4(manifest)[0], "profile": "mine"}]
    print_matrix(found)
    assert "  latency: the interval reaches over the limit" in capsys.readouterr().out
