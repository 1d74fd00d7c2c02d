"""How `compress`, `validate` and `report` end: one table or several targets side by side, and the page asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgepipe.build import CompressResult
from edgepipe.cli import run
from edgepipe.cli.outcome import show_outcome
from tests.report import devices


def result(build: tuple[dict[str, Any], dict[str, Any]]) -> CompressResult:
    manifest, measured = build
    bundle = Path("out") / manifest["profile"]
    return CompressResult(
        manifest["profile"], manifest["verdict"], manifest["exit_code"], bundle, bundle / "report.html", manifest, measured
    )


def test_several_results_end_in_one_table_and_one_page(
    manifest: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [result(devices.rpi4(manifest)), result(devices.rpi5(manifest))]
    page = tmp_path / "page.html"
    code = show_outcome(results, junit=None, strict=False, as_json=False, quiet=False, bundles=False, page=str(page))
    out = capsys.readouterr().out
    assert code == 0 and out.count("accuracy drop") == 1 and f"report  {page}" in out and out.count("bundle  ") == 1
    assert "What would prove the rest" in page.read_text()


def test_bundles_of_several_profiles_are_named_each(manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    results = [result(devices.rpi4(manifest)), result(devices.rpi5(manifest))]
    show_outcome(results, junit=None, strict=False, as_json=False, quiet=False, bundles=True)
    out = capsys.readouterr().out
    assert "bundle for rpi4  out/rpi4" in out and "bundle for rpi5  out/rpi5" in out


def test_one_result_keeps_its_table(manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    show_outcome([result(devices.rpi4(manifest))], junit=None, strict=False, as_json=False, quiet=False, bundles=True)
    out = capsys.readouterr().out
    assert "component bytes" in out and "report  out/rpi4/report.html" in out


def test_page_inside_the_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", str(tmp_path), "--report", str(tmp_path / "page.html")]) == 2
    assert "checksums" in capsys.readouterr().err


def test_report_of_several_bundles_shows_them_side_by_side(
    manifest: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, build in (("a", devices.rpi4(manifest)), ("b", devices.browser(manifest))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(build[0]))
        (tmp_path / name / "measurements.json").write_text(json.dumps(build[1]))
    assert run(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert out.count("component bytes") == 2 and "mini on rpi4, browser-wasm" in out
    assert "Roofline of rpi4" in (tmp_path / "page.html").read_text()
