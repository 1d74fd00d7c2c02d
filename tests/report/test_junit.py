"""JUnit XML: counts, outcomes and properties as CI systems read them."""

from __future__ import annotations

import copy
from typing import Any
from xml.etree import ElementTree as ET

from edgepipe.report.junit import junit_xml
from tests.report import devices


def suites(text: str) -> list[ET.Element]:
    assert text.startswith("<?xml")
    root = ET.fromstring(text.encode("utf-8"))
    assert root.tag == "testsuites"
    for suite in [root, *root]:
        assert int(suite.get("tests", "-1")) == len(list(suite.iter("testcase")))
        assert int(suite.get("failures", "-1")) == len(list(suite.iter("failure")))
        assert int(suite.get("skipped", "-1")) == len(list(suite.iter("skipped")))
        assert suite.get("errors") == "0"
    return list(root)


def case(suite: ET.Element, axis: str, name: str = "") -> ET.Element:
    return next(
        c for c in suite.iter("testcase") if (c.get("classname") or "").endswith(f".{axis}") and (c.get("name") or "").startswith(name)
    )


def test_every_budget_and_every_check_is_a_test_case(manifest: dict[str, Any]) -> None:
    (suite,) = suites(junit_xml([manifest]))
    assert suite.get("name") == "edgepipe.pi" and suite.get("tests") == "9"  # 7 rows with a budget, 2 checks
    assert suite.get("time") == "3.000" and suite.get("timestamp") == "2026-01-02T03:04:05"
    names = [(c.get("classname"), c.get("name")) for c in suite.iter("testcase")]
    assert len(names) == len(set(names))
    assert ("edgepipe.pi.latency", "median [1 × 16, 2 threads]") in names
    assert ("edgepipe.pi.passes.1-merge-lora", "equal-outputs") in names


def test_provenance_is_a_property(manifest: dict[str, Any]) -> None:
    (suite,) = suites(junit_xml([manifest]))
    found = {p.get("name"): p.get("value") for p in case(suite, "size").iter("property")}
    assert found["provenance"] == "measured" and found["budget"] == "30000000" and "n" not in found


def test_broken_budget_is_a_failure_with_value_limit_and_reason(manifest: dict[str, Any], change_row: Any) -> None:
    change_row(manifest, "component bytes", value=40_000_000, verdict="broken", reason="2.50 × smaller")
    (suite,) = suites(junit_xml([manifest]))
    failure = case(suite, "size").find("failure")
    assert failure is not None and failure.get("message") == "component bytes is 40.00 MB, limit ≤ 30.00 MB (measured): 2.50 × smaller"
    assert suite.get("failures") == "1"


def test_unproven_is_skipped_and_fails_under_strict(manifest: dict[str, Any], change_row: Any) -> None:
    change_row(manifest, "median", verdict="unproven", provenance="host", reason="this machine stood in")
    (lenient,) = suites(junit_xml([manifest]))
    (strict,) = suites(junit_xml([manifest], strict=True))
    skipped = case(lenient, "latency", "median [task").find("skipped")
    assert skipped is not None and "this machine stood in" in (skipped.get("message") or "")
    assert (lenient.get("failures"), lenient.get("skipped")) == ("0", "1")
    assert (strict.get("failures"), strict.get("skipped")) == ("1", "0")


def test_budget_without_a_verdict_is_not_passed(manifest: dict[str, Any], change_row: Any) -> None:
    change_row(manifest, "peak of a fresh process", value=None, verdict=None)
    (suite,) = suites(junit_xml([manifest]))
    assert case(suite, "memory").find("skipped") is not None


def test_check_that_did_not_hold_is_a_failure(manifest: dict[str, Any]) -> None:
    manifest["passes"][0]["checks"][0].update(held=False, value=0.5)
    (suite,) = suites(junit_xml([manifest]))
    failure = case(suite, "passes.1-merge-lora").find("failure")
    assert failure is not None and failure.get("message") == "equal-outputs did not hold after merge-lora: 0.5, limit 0.0001"


def test_two_profiles_are_two_suites(manifest: dict[str, Any]) -> None:
    other = copy.deepcopy(manifest)
    other["profile"] = "phone"
    assert [suite.get("name") for suite in suites(junit_xml([manifest, other]))] == ["edgepipe.pi", "edgepipe.phone"]


def test_pass_that_runs_twice_keeps_names_apart(manifest: dict[str, Any]) -> None:
    manifest["passes"].append(copy.deepcopy(manifest["passes"][0]))
    (suite,) = suites(junit_xml([manifest]))
    names = [(c.get("classname"), c.get("name")) for c in suite.iter("testcase")]
    assert len(names) == len(set(names))


def test_text_that_xml_cannot_hold_is_replaced(manifest: dict[str, Any], change_row: Any) -> None:
    change_row(manifest, "component bytes", verdict="broken", reason='bad \x00 <b> & "quote" \ud800')
    (suite,) = suites(junit_xml([manifest]))
    failure = case(suite, "size").find("failure")
    assert failure is not None and 'bad � <b> & "quote" �' in (failure.get("message") or "")


def test_no_manifests_give_an_empty_document() -> None:
    assert suites(junit_xml([])) == []


def test_axis_without_a_figure_is_skipped_not_missing(manifest: dict[str, Any]) -> None:
    found, _ = devices.phone(manifest)
    (suite,) = suites(junit_xml([found]))
    skipped = case(suite, "latency").find("skipped")
    assert skipped is not None and skipped.get("message") == "no median latency was taken: emulated times are no latencies"
    assert not [c for c in suite.iter("testcase") if "share of arithmetic" in (c.get("name") or "")]  # no limit, no verdict, no test
    (strict,) = suites(junit_xml([found], strict=True))
    assert case(strict, "latency").find("failure") is not None


def test_prediction_names_its_own_interval(manifest: dict[str, Any]) -> None:
    (suite,) = suites(junit_xml([devices.rpi4(manifest)[0]]))
    skipped = case(suite, "latency", "median [1 × 128").find("skipped")
    assert skipped is not None and "90 % interval: 241 to 377" in (skipped.text or "")
