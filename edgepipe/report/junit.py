"""JUnit XML of a build: a test suite per profile, a test case per budget and per check of a pass."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from edgepipe.report.numbers import conditions_text, interval_text, level, limit_text, named, short, with_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters XML 1.0 cannot hold


def junit_xml(manifests: Sequence[Mapping[str, Any]], *, strict: bool = False) -> str:
    """The verdicts as test results. Broken is a failure, unproven is skipped, or a failure too under `strict`."""
    root = ET.Element("testsuites", name="edgepipe")
    suites = [_suite(manifest, strict) for manifest in manifests]
    root.extend(suites)
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    root.set("time", f"{sum(float(suite.get('time', '0')) for suite in suites):.3f}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(manifest: Mapping[str, Any], strict: bool) -> ET.Element:
    profile = str(manifest["profile"])
    passes = manifest.get("passes") or ()
    cases = [_budget_case(row, profile, strict) for row in manifest.get("results") or () if _judged(row)]
    for position, run in enumerate(passes, 1):
        cases += [
            _check_case(run, check, profile, f"{position}-{run['name']}", first=index == 0)
            for index, check in enumerate(run.get("checks") or ())
        ]
    suite = _element(
        "testsuite",
        name=f"edgepipe.{profile}",
        timestamp=str(manifest.get("created", ""))[:19],
        hostname="localhost",
        tests=len(cases),
        errors=0,
    )
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")
    source = manifest.get("source") or {}
    facts = {
        "profile": profile, "model": source.get("model"), "task": source.get("task"), "verdict": manifest.get("verdict"),
        "edgepipe": manifest.get("edgepipe"), "artifact": manifest.get("artifact"), "cpu": (manifest.get("machine") or {}).get("cpu"),
    }  # fmt: skip
    suite.append(_properties(facts))
    suite.extend(cases)
    return suite


def _judged(row: Mapping[str, Any]) -> bool:
    """Also what has no figure to hold against a limit: an axis that is unproven must not be missing."""
    return row.get("budget") is not None or row.get("verdict") in ("broken", "unproven")


def _budget_case(row: Mapping[str, Any], profile: str, strict: bool) -> ET.Element:
    conditions = conditions_text(row.get("conditions") or {})
    case = _element(
        "testcase",
        classname=f"edgepipe.{profile}.{row['axis']}",
        name=named(row) + (f" [{conditions}]" if conditions else ""),
        time="0.000",
    )
    keys = ("provenance", "verdict", "value", "baseline", "budget", "unit", "n")
    case.append(_properties({key: row.get(key) for key in keys}))
    message = f"{row['metric']} is {with_unit(row.get('value'), row['unit'])}, limit {limit_text(row)} ({row['provenance']})"
    if row.get("value") is None:
        message = f"no {row['metric']} {row['axis']} was taken"
    message += f": {row['reason']}" if row.get("reason") else ""
    detail = f"{message}\n{level(row)} % interval: {interval_text(row)}; n: {row.get('n') or 'not counted'}"
    if row.get("verdict") == "broken":
        _outcome(case, "failure", message, detail, "broken")
    elif row.get("verdict") != "held":
        _outcome(case, "failure" if strict else "skipped", message, detail, "unproven")
    return case


def _check_case(run: Mapping[str, Any], check: Mapping[str, Any], profile: str, where: str, *, first: bool) -> ET.Element:
    """The first check of a pass carries the pass's seconds, so that the suite's time is the build's."""
    seconds = float(run.get("seconds") or 0) if first else 0.0
    case = _element("testcase", classname=f"edgepipe.{profile}.passes.{where}", name=check["name"], time=f"{seconds:.3f}")
    case.append(_properties({"value": check.get("value"), "limit": check.get("limit"), "on": run.get("on")}))
    if not check["held"]:
        message = f"{check['name']} did not hold after {run['name']}: {short(check.get('value'))}, limit {short(check.get('limit'))}"
        _outcome(case, "failure", message, str(check.get("detail") or message), "check")
    return case


def _outcome(case: ET.Element, tag: str, message: str, detail: str, kind: str) -> None:
    outcome = _element(tag, message=message) if tag == "skipped" else _element(tag, message=message, type=kind)
    outcome.text = _clean(detail)
    case.append(outcome)


def _properties(facts: Mapping[str, Any]) -> ET.Element:
    properties = ET.Element("properties")
    properties.extend(_element("property", name=name, value=value) for name, value in facts.items() if value not in (None, ""))
    return properties


def _element(tag: str, **attributes: object) -> ET.Element:
    return ET.Element(tag, {name: _clean(str(value)) for name, value in attributes.items()})


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\ufffd", text)
