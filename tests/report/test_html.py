"""What report.html shows: verdicts in every state, user text as text, and pages for builds that miss things."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from edgepipe.report import charts, numbers
from edgepipe.report.html import render_html
from tests.report.page import Page


def test_page_shows_verdicts_before_the_evidence(manifest: dict[str, Any], measurements: dict[str, Any]) -> None:
    page = Page(render_html([manifest], [measurements]))
    assert "mini + films" in page.text and "A small board" in page.text and "edgepipe 0.1.0" in page.text
    parts = (
        "Every budget was kept",
        "Verdicts",
        "Size, pass by pass",
        "Fixed shapes",
        "By class",
        "Samples whose label changed",
        "Left out",
        "sha256",
    )
    order = [page.text.index(part) for part in parts]
    assert order == sorted(order)
    assert "90.00 → 89.50 points" in page.text and "100.00 → 25.00 MB" in page.text and "−0.10 to 1.10" in page.text
    assert all(f"Proof: {name}" in page.text for name in ("measured", "emulated", "predicted", "host"))
    assert "3.00 ×" in page.text  # 3 ms before, 1 ms after, at 1 × 16


def test_page_is_self_contained_and_accessible(manifest: dict[str, Any], measurements: dict[str, Any]) -> None:
    html = render_html([manifest], [measurements])
    page = Page(html)
    assert not page.named("script") and not page.named("link") and not page.named("img")
    assert "http://" not in html and "https://" not in html and "url(" not in html
    assert all(cell.get("scope") for cell in page.named("th"))
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert len(page.named("svg")) == 5
    for svg in page.named("svg"):
        assert svg["role"] == "img" and set((svg["aria-labelledby"] or "").split()) <= set(ids)


@pytest.mark.parametrize("verdict", ["held", "broken", "unproven"])
def test_each_verdict_is_told_in_words(manifest: dict[str, Any], change_row: Any, verdict: str) -> None:
    change_row(manifest, "component bytes", verdict=verdict, reason="because of this")
    manifest["verdict"] = verdict
    page = Page(render_html([manifest], [{}]))
    told = {"held": "Every budget was kept", "broken": "Over budget: size", "unproven": "these are not proven: size"}
    assert told[verdict] in page.text and "because of this" in page.text
    assert any(f"badge {verdict}" in (span.get("class") or "") for span in page.named("span"))


def test_worst_row_of_an_axis_leads_its_card(manifest: dict[str, Any]) -> None:
    manifest["results"][4].update(verdict="broken", reason="slower at 1 × 16")
    text = Page(render_html([manifest], [{}])).text
    verdicts = text[text.index("Verdicts") :]
    card = verdicts[verdicts.index("Latency") : verdicts.index("Memory")]
    assert card.startswith("Latency ✗ broken 3.00 → 1.00 ms") and "slower at 1 × 16" in card


def test_figure_without_budget_is_reported(manifest: dict[str, Any]) -> None:
    manifest["results"] = [entry for entry in manifest["results"] if entry["metric"] in ("batch invariance", "accuracy")]
    text = Page(render_html([manifest], [{}])).text
    assert "Parity · reported 98.00 %" in text and "Limit none set" in text and "Size · not measured" in text


def test_user_text_stays_text(manifest: dict[str, Any], measurements: dict[str, Any]) -> None:
    evil = '<script>alert("x")</script>&'
    manifest["source"]["model"] = manifest["profile_title"] = manifest["passes"][0]["name"] = manifest["left_out"][0] = evil
    manifest["results"][2]["reason"] = manifest["machine"]["cpu"] = evil
    measurements["changed"] = [{"input": evil, "label": evil, "before": evil, "after": "yes"}]
    measurements["classes"] = {evil: {"n": 1, "baseline": 1, "candidate": 0}}
    html = render_html([manifest], [measurements])
    page = Page(html)
    assert "<script" not in html and not page.named("script")
    assert page.text.count(evil) >= 9


def test_changed_samples_are_told_apart_and_collapse_beyond_twenty(manifest: dict[str, Any], measurements: dict[str, Any]) -> None:
    lost = [{"input": f"lost {n}", "label": "a", "before": "a", "after": "b"} for n in range(25)]
    measurements["changed"] = [
        *lost,
        {"input": "won", "label": "a", "before": "b", "after": "a"},
        {"input": "other", "label": "a", "before": "b", "after": "c"},
    ]
    text = Page(render_html([manifest], [measurements])).text
    assert "Right → wrong: 25" in text and "Wrong → right: 1" in text and "Wrong → wrong: 1" in text
    assert text.index("lost 19") < text.index("5 more") < text.index("lost 20")


def test_samples_without_a_true_label_only_changed(manifest: dict[str, Any], measurements: dict[str, Any]) -> None:
    measurements["changed"] = [{"input": "x", "label": None, "before": "b", "after": "a"}]
    text = Page(render_html([manifest], [measurements])).text
    assert "Label changed: 1" in text and "true" not in text[text.index("Label changed") : text.index("Passes")]


def test_more_than_thirty_classes_show_the_thirty_that_lost_most(manifest: dict[str, Any], measurements: dict[str, Any]) -> None:
    measurements["classes"] = {f"class-{n:02}": {"n": 50, "baseline": 40, "candidate": n} for n in range(40)}
    text = Page(render_html([manifest], [measurements])).text
    assert "30 classes that lost most, of 40" in text and "class-29" in text and "class-30" not in text


def test_page_without_measurements_passes_or_accuracy(manifest: dict[str, Any]) -> None:
    manifest.update(passes=[], verdict=None, left_out=[])
    manifest["results"] = [entry for entry in manifest["results"] if entry["axis"] != "accuracy"]
    for measured in ([], [{}], [{"timings": [], "classes": {}, "changed": []}]):
        text = Page(render_html([manifest], measured)).text
        assert "no verdict" in text and "No pass ran." in text and "No accuracy was measured." in text and "No times" in text
        assert "By class" not in text


def test_axis_values_that_are_missing_are_said_so(manifest: dict[str, Any], change_row: Any) -> None:
    change_row(manifest, "accuracy", baseline=None, interval=None)
    change_row(manifest, "peak of a fresh process", value=None, baseline=None, verdict="unproven")
    text = Page(render_html([manifest], [{}])).text
    assert "Memory ? unproven no figure" in text


def test_a_page_with_only_what_the_schema_requires(manifest: dict[str, Any]) -> None:
    del manifest["source"]
    manifest.update(results=[], components=[], versions={}, machine={}, passes=[])
    assert "not measured" in Page(render_html([manifest], [{}])).text


def test_several_profiles_stand_in_a_matrix(manifest: dict[str, Any], measurements: dict[str, Any]) -> None:
    other = copy.deepcopy(manifest)
    other.update(profile="phone", profile_title="A phone", verdict="broken")
    other["results"][2].update(verdict="broken")
    page = Page(render_html([manifest, other], [measurements, measurements]))
    matrix = page.text[page.text.index("Devices") : page.text.index("Verdicts")]
    assert "Axis pi phone" in matrix and "Overall ✓ held ✗ broken" in matrix
    assert "Over budget on phone." in page.text and "Every budget kept on pi." in page.text
    links = [link["href"] for link in page.named("a")]
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert links == ["#p0", "#p1"] and {"p0", "p1"} <= set(ids) and len(ids) == len(set(ids))


def test_a_check_without_a_limit_proves_nothing(manifest: dict[str, Any]) -> None:
    manifest["passes"][0]["checks"][0].update(name="batch-invariant", value=0.5, limit=None)
    assert "batch-invariant seen 0.5 – · reported" in Page(render_html([manifest], [{}])).text


def test_same_manifest_gives_the_same_page_and_is_left_alone(manifest: dict[str, Any], measurements: dict[str, Any]) -> None:
    before = copy.deepcopy((manifest, measurements))
    assert render_html([manifest], [measurements]) == render_html([manifest], [measurements])
    assert (manifest, measurements) == before


def test_numbers_have_true_minus_signs_and_no_negative_zero() -> None:
    assert numbers.number(-0.5) == "−0.50" and numbers.number(-0.001) == "0.00" and numbers.number(1234.5) == "1,234.50"
    assert numbers.number(3, 0, sign=True) == "+3" and numbers.number(0, 0, sign=True) == "0"
    assert numbers.number(None) == "–" and numbers.number(float("inf")) == "∞"


def test_limits_are_floors_where_more_is_better(manifest: dict[str, Any]) -> None:
    rows = {entry["metric"]: entry for entry in manifest["results"]}
    assert numbers.limit_text(rows["cosine to a plain session"]) == "≥ 0.99900"
    assert numbers.limit_text({**rows["cosine to a plain session"], "better": "lower"}) == "≤ 0.99900"
    assert numbers.limit_text(rows["component bytes"]) == "≤ 30.00 MB"


def test_slow_times_outside_the_axis_are_counted() -> None:
    before, after = [1.0] * 998 + [90.0, 95.0], [1.0] * 1000
    chart = charts.latency_chart(before, after, {"before": {"median": 1.0}, "after": {"median": 1.0}}, "Latency", "k")
    assert "slower than 1.00 ms, not drawn: 2 before, 0 after" in chart


def test_times_of_nothing_do_not_divide_by_zero() -> None:
    assert "<svg" in charts.latency_chart([0.0], [0.0], {"before": {}, "after": {}}, "Latency", "k")
    assert "<svg" in charts.interval_chart([("drop", 0.0, [0.0, 0.0], "after")], [(0.0, "limit 0.00", "limit")], "Drop", "k")


def test_size_chart_shows_growth_and_leaves_out_a_limit_it_cannot_place(manifest: dict[str, Any]) -> None:
    runs = [{"name": "grow", "size_bytes_before": 10_000_000, "size_bytes_after": 20_000_000}]
    chart = charts.size_chart(runs, 40_000_000, "k")
    assert 'class="added"' in chart and "limit" not in chart and "10.00 MB to 20.00 MB" in chart
