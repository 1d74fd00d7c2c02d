"""The page of devices that are not here: which proof each axis has, predicted times, costliest nodes, roofline."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from edgepipe.report.html import commands, render_html
from edgepipe.report.matrix import cards_of, reasons, target_names
from edgepipe.report.prediction import faster_text, scaling_chart
from edgepipe.report.roofline import roofline_view
from tests.report import devices
from tests.report.page import Page

QUANTIZED = [{"name": "quantize-dynamic"}]


def card(manifest: dict[str, Any], axis: str) -> Any:
    return next(card for card in cards_of(manifest) if card.axis == axis)


def test_matrix_marks_each_axis_under_its_own_proof(manifest: dict[str, Any]) -> None:
    found, measured = devices.rpi4(manifest)
    page = Page(render_html([found], [measured]))
    text = page.text[page.text.index("What is proven, and how") : page.text.index("Proof: measured")]
    assert "Axis Figure Limit measured emulated predicted host Verdict" in text
    assert {one.axis: dict(one.proofs) for one in cards_of(found)} == {
        "accuracy": {"emulated": "held"}, "size": {"measured": "held"}, "latency": {"predicted": "unproven"},
        "memory": {"emulated": "held"}, "parity": {"emulated": "held"}, "operators": {"emulated": "held"},
    }  # fmt: skip
    assert "the interval reaches over the limit" in text and "To prove it: times from the device: --device rpi4=USER@HOST" in text
    assert "90 % interval 241 to 377" in text


def test_page_of_a_device_is_self_contained_and_accessible(manifest: dict[str, Any]) -> None:
    builds = [devices.rpi4(manifest), devices.rpi5(manifest), devices.browser(manifest), devices.phone(manifest)]
    html = render_html([found for found, _ in builds], [measured for _, measured in builds])
    page = Page(html)
    assert not page.named("script") and "http://" not in html and "https://" not in html and "url(" not in html
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for svg in page.named("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and set((svg["aria-labelledby"] or "").split()) <= set(ids))


def test_several_devices_stand_side_by_side_and_what_they_share_is_told_once(manifest: dict[str, Any]) -> None:
    builds = [devices.rpi4(manifest), devices.rpi5(manifest), devices.browser(manifest)]
    text = Page(render_html([found for found, _ in builds], [measured for _, measured in builds])).text
    matrix = text[text.index("Devices") : text.index("What would prove the rest")]
    assert "Axis rpi4 rpi5 browser-wasm Overall ? unproven ✓ held ✗ broken" in matrix
    assert "✓ held predicted 26.4 → 9.10 ms (2.90 ×)" in matrix and "✗ broken measured 0.97000" in matrix and "? unproven host" in matrix
    assert text.count("Size, pass by pass") == 1 and text.count("one for all devices") == 1
    builds[1][0]["artifact"] = "b" * 64
    assert Page(render_html([found for found, _ in builds], [{}] * 3)).text.count("Size, pass by pass") == 3


def test_predicted_latency_shows_intervals_limit_and_speed_up(manifest: dict[str, Any]) -> None:
    found, measured = devices.rpi4(manifest)
    html = render_html([found], [measured])
    page = Page(html)
    assert "before 60.1 ms, 90 % interval 48.1 to 75.1; after 41.3 ms, 90 % interval 33.0 to 51.6; limit 60.1 ms" in page.text
    assert "1.46 × as fast [1.30, 1.63], limit ≤ 60.1 ms ✓ held" in page.text
    assert "Task lengths, batch 1, 4 threads (median 23 tokens)" in page.text
    assert "1: 219 to 140 ms" in page.text and "4: 60.1 to 41.3 ms" in page.text
    assert "95 % interval 48.1" not in page.text
    assert html.count("Predicted latency as a table") == 1 and "Fixed shapes" not in page.text


def test_reasons_of_wide_intervals_stand_where_they_hold(manifest: dict[str, Any]) -> None:
    found, measured = devices.rpi4(manifest)
    text = Page(render_html([found], [measured])).text
    assert text.count("What widens the intervals: 4% of the time") == 1 and "What widens the interval: " not in text
    measured["predicted"][2]["reasons"] = ["66% of the time is in operators that no published figure has checked"]
    text = Page(render_html([found], [measured])).text
    assert text.count("What widens the interval: 4% of the time") == 2 and text.count("What widens the interval: 66%") == 1


def test_costliest_nodes_stand_before_and_after(manifest: dict[str, Any]) -> None:
    text = Page(render_html(*([one] for one in devices.rpi4(manifest))).replace("<wbr>", "")).text
    part = text[text.index("Costliest nodes on rpi4") : text.index("Roofline of rpi4")]
    assert "Predicted at 1 × 128, 4 threads" in part
    assert "Before: 92 % of the time in 10 nodes" in part and "After: 85 % of the time in 10 nodes" in part
    assert part.count("/encoder/layer.0/attention/Attention") == 2 and "36.1 11.1 % compute" in part


def test_roofline_says_what_bounds_each_model() -> None:
    measured = devices.emulated_measurements(60.1, 41.3)
    view = roofline_view(measured, QUANTIZED, "k")
    assert view is not None
    before, after = view.sentences
    assert "float32 arithmetic can do 57.6 GOP/s, and it reaches 17.0 (30\u00a0%): not bound by that roof alone" in before
    assert "int8 arithmetic can do 115.2" in after and "arithmetic 71\u00a0%, memory and caches 29\u00a0%" in after
    measured["roofline"]["points"]["baseline"].update(dram_bytes=5_530_000_000, gop_s=11.5)
    measured["roofline"]["points"]["candidate"].update(gop_s=100.0)
    view = roofline_view(measured, QUANTIZED, "k")
    assert view is not None
    assert view.sentences[0].endswith("main memory lets it do 12.8 GOP/s, and it reaches 11.5 (90\u00a0%): bound by main memory.")
    assert view.sentences[1].endswith("(87\u00a0%): bound by arithmetic.")


@pytest.mark.parametrize(
    "change",
    [
        {"bandwidth_gb_s": None},
        {"points": {"baseline": {"operations": 10, "dram_bytes": 0, "gop_s": 1.0}}},
        {"points": {side: {"operations": 10, "dram_bytes": 64, "gop_s": 1e-4} for side in ("baseline", "candidate")}},
    ],
)
def test_roofline_draws_what_it_can(change: dict[str, Any]) -> None:
    measured = devices.emulated_measurements(60.1, 41.3)
    measured["roofline"].update(change)
    view = roofline_view({**measured, "costliest": {}}, [], "k")
    assert view is not None and "nan" not in view.chart and "inf%" not in view.chart
    assert {point.kind for point in view.points} == {"float32"}


@pytest.mark.parametrize(
    "data", [{}, {"points": {}, "peaks_gop_s": {"float32": 1.0}}, {"points": {"baseline": {"operations": 0, "gop_s": 0}}}]
)
def test_no_roofline_without_figures(data: dict[str, Any]) -> None:
    assert roofline_view({"roofline": data}, [], "k") is None


def test_target_s_part_in_accuracy_is_told(manifest: dict[str, Any]) -> None:
    found, measured = devices.rpi4(manifest)
    text = Page(render_html([found], [measured])).text
    assert "rpi4's own kernels ran 200 random test samples and the 50 nearest to a tie besides (3 of the random ones are as near)" in text
    assert "differ from this machine's on 0 of the 200 random ones and on 3 of the 50 nearest" in text
    assert "gave the same there and here on 16 samples" in text
    measured["transfer"].update(nearest=[], near=[])
    measured["transfer"]["agreement"].update(of=200.0, nearest=0.0, differ=9.0)
    measured["transfer"]["baseline_agreement"].update(differ=1.0)
    text = Page(render_html([found], [measured])).text
    assert "ran all 200 test samples. Their answers differ from this machine's on 9 of the 200;" in text and "so it ran there too" in text


def test_missing_latency_says_why_and_breaks_nothing(manifest: dict[str, Any]) -> None:
    found, measured = devices.phone(manifest)
    text = Page(render_html([found], [measured])).text
    assert "Latency no figure median" in text and "emulated times are no latencies" in text
    assert "No times at the task's own lengths were taken: no C compiler" in text
    assert card(found, "latency").provenance == "" and card(found, "latency").proofs == {}


def test_accelerators_are_a_table_of_their_own(manifest: dict[str, Any]) -> None:
    found, measured = devices.phone(manifest)
    text = Page(render_html([found], [measured])).text
    assert card(found, "operators").verdict == "held" and "0 of 16 operator types" in text
    part = text[text.index("What accelerators would take") :]
    assert "CoreML fixed 93.00 % 6 predicted" in part and "XNNPACK as exported 0.00 %" in part


@pytest.mark.parametrize(
    ("axis", "change", "fix"),
    [
        ("accuracy", {"verdict": "unproven", "reason": "the drop's 95 % bound 2.10 is over the limit plus margin: 90 samples are too few"}, "more test samples"),
        ("latency", {"provenance": "measured", "reason": "over the limit by less than the noise"}, "`edgepipe validate` again while the machine does nothing else"),
        ("latency", {"provenance": "measured", "reason": "the device slowed itself down meanwhile (heat)"}, "cooling or a better power supply, then `edgepipe validate` again"),
        ("memory", {"provenance": "host", "reason": "edgepipe devices setup rpi4"}, "`edgepipe devices setup rpi4`, or the device itself: `--device rpi4=USER@HOST`"),
    ],
)  # fmt: skip
def test_remedy_fits_the_reason(manifest: dict[str, Any], axis: str, change: dict[str, Any], fix: str) -> None:
    found, _ = devices.rpi4(manifest)
    row = next(row for row in found["results"] if row["axis"] == axis and row["verdict"] in ("held", "unproven"))
    row.update({"verdict": "unproven", **change})
    assert card(found, axis).fix == fix


def test_reasons_are_told_once_with_where_they_hold(manifest: dict[str, Any]) -> None:
    found, _ = devices.phone(manifest)
    told = reasons({"a": cards_of(found), "b": cards_of(found)})
    by_text = {one.text: (one.axes, one.targets) for one in told}
    assert by_text["nothing here can stand for iPhone 15 and later"] == (("accuracy", "memory", "parity"), ("a", "b"))
    assert len(by_text) == len(told)


def test_one_profile_twice_is_numbered(manifest: dict[str, Any]) -> None:
    other = {**copy.deepcopy(manifest), "profile": "phone"}
    assert target_names([manifest, other, manifest]) == ["pi (1)", "phone", "pi (2)"]


def test_commands_are_code_and_text_stays_text() -> None:
    assert commands("run `a <b>` & go") == "run <code>a &lt;b&gt;</code> &amp; go"


def test_slower_candidate_is_told_as_it_is() -> None:
    assert faster_text({"value": 1.25, "low": 1.0, "high": 1.6}) == "0.80 × as fast [0.62, 1.00]"
    chart = scaling_chart([{"threads": 1, "baseline": 2.0, "candidate": 3.0}, {"threads": 2, "baseline": 0.0, "candidate": 0.0}], "k")
    assert "1: 2.00 to 3.00 ms" in chart and "nan" not in chart
