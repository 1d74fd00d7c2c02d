"""Layer by layer on the page and on the terminal: schemes with their times, steps of accuracy, outlier channels, neighbours."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from edgepipe.report.html import render_html
from edgepipe.report.layers import accuracy_curve, layer_lines, layers_view
from edgepipe.report.model_card import render_model_card
from edgepipe.report.terminal_layers import print_layers
from tests.report.page import Page

KERNELS = {"int8-static": 0.5, "float32": 1.0, "int4": 0.9}


def site(number: int, scheme: str = "int8-static", **more: Any) -> dict[str, Any]:
    ms = {kernel: number * factor for kernel, factor in KERNELS.items()}
    return {
        "node": f"/encoder/{number}/MatMul", "operator": "MatMul", "shape": [384, 1536], "parameters": 589_824, "scheme": scheme,
        "reason": f"reason {number}", "bytes": 1000 * number, "ms": ms, "divergence": {}, **more,
    }  # fmt: skip


def picture(ratio: float, outliers: list[list[float]]) -> dict[str, Any]:
    return {
        "tensor": "x", "channels": 384, "zero_channels": 1, "median": 1.0, "ratio": ratio, "curve": [ratio, 2.0, 1.0, 0.0],
        "outlier_count": len(outliers), "outliers": outliers, "row_spread": 3.25,
    }  # fmt: skip


@pytest.fixture
def tuned(manifest: dict[str, Any]) -> dict[str, Any]:
    manifest["tuning"] = {
        "costs": "counted",
        "costs_reason": "no board is attached",
        "sites": [
            site(1),
            site(2, "int8-static, stored in 4 bits", divergence={"int8-static, stored in 4 bits": 0.0125}),
            site(3, "float32, stored in 8 bits", reason="its region lost"),
            site(4, "table, 4 bits", operator="Gather", ms={}, node="words"),
        ],
        "put_back": [{"nodes": ["/encoder/3/MatMul"], "float32_ms": 3.0, "quantized_ms": 3.5}],
        "steps": [
            {"what": "all that pays", "drop": 1.75, "size_bytes": 17_000_000, "ms": 3.0},
            {"what": "1 layer left out", "drop": 0.5, "size_bytes": 18_000_000, "ms": 3.5},
        ],
        "outliers": {"calm": picture(3.0, []), "loud": picture(50.0, [[17, 50.0]])},
    }
    return manifest


def section(manifest: dict[str, Any]) -> str:
    text = Page(render_html([manifest], [{}])).text
    return text[text.index("Layer by layer") : text.index("No times at the task's own lengths")]


def test_every_layer_is_shown_with_its_times_and_the_kernel_that_runs(tuned: dict[str, Any]) -> None:
    text = section(tuned)
    assert "counted under emulation; no board is attached" in text
    assert "MatMul 384 × 1,536" in text and "int8-static 1.0 1.00 ✓ runs: 0.50 0.90 reason 1" in text
    assert "int8-static, stored in 4 bits 2.0 2.00 ✓ runs: 1.00" in text  # it runs as int8-static
    assert "float32, stored in 8 bits 3.0 ✓ runs: 3.00 1.50 2.70 its region lost" in text
    assert "table, 4 bits 4.0 – – –" in text
    assert "0.0125 (1 − cosine)" in text
    assert text.index("float32, ms") < text.index("int8-static, ms")


def test_what_was_put_back_and_what_accuracy_allowed_are_told(tuned: dict[str, Any]) -> None:
    text = section(tuned)
    assert "Put back" in text and "3.00 3.50" in text
    assert "1 · all that pays 1.75 17.00 3.00 2 · 1 layer left out 0.50 18.00 3.50" in text
    assert "limit 1.00 points" in text


def test_channels_with_the_widest_spread_come_first_and_outliers_are_marked(tuned: dict[str, Any]) -> None:
    html = render_html([tuned], [{}])
    assert html.index("loud") < html.index("calm")
    loud = html[html.index("Channels of what loud takes") :]
    loud, calm = loud[: loud.index("</svg>")], html[html.index("Channels of what calm takes") :]
    assert loud.count('class="added"') == 1 and calm[: calm.index("</svg>")].count('class="added"') == 0
    assert "50.0 × the median one; 1 beyond 20 ×: 17; the largest row of a sample 3.2 × the median row" in Page(html).text


def test_nodes_of_seven_bits_and_of_float32_are_named(manifest: dict[str, Any]) -> None:
    manifest["program"] |= {"reduced_range": {"classify": "12 % leave 16 bits"}, "left_in_float32": {"pooler": "no sample reaches it"}}
    text = section(manifest)
    assert "classify : 12 % leave 16 bits" in text and "pooler : no sample reaches it" in text
    assert "Weights of 1 layers use 7 bits" in render_model_card(manifest)


def test_neighbours_and_padding_are_shown_for_every_quantized_model(manifest: dict[str, Any]) -> None:
    assert "Batch invariance: 98.00 % of 200 samples keep their label · reported outputs move by up to 0.97" in section(manifest)
    manifest["passes"] = manifest["passes"][:1]
    assert "Layer by layer" not in Page(render_html([manifest], [{}])).text


def test_a_model_that_was_not_quantized_has_no_such_section(manifest: dict[str, Any]) -> None:
    manifest["passes"] = []
    assert layers_view(manifest, "p0") is None


def test_many_layers_show_the_costliest_first_and_all_of_them_below(tuned: dict[str, Any]) -> None:
    tuned["tuning"]["sites"] = [site(number) for number in range(1, 41)]
    text = section(tuned)
    assert "The 12 that take longest" in text and "All 40 layers" in text
    first, everything = text.split("All 40 layers")
    assert "reason 40" in first and "reason 28" not in first.split()
    assert everything.index("reason 1 ") < everything.index("reason 40")


def test_pages_stay_accessible_and_user_text_stays_text(tuned: dict[str, Any]) -> None:
    evil = '<script>alert("x")</script>'
    tuned["tuning"]["sites"][0] |= {"node": evil, "reason": evil}
    tuned["tuning"]["outliers"][evil] = picture(2.0, [])
    other = copy.deepcopy(tuned)
    other["profile"] = "phone"
    html = render_html([tuned, other], [{}, {}])
    page = Page(html)
    assert "<script" not in html
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for drawing in page.named("svg"):
        assert drawing.get("aria-hidden") or set((drawing["aria-labelledby"] or "").split()) <= set(ids)


def test_a_tuning_of_nothing_but_its_source_is_no_error(manifest: dict[str, Any]) -> None:
    manifest["tuning"] = {"costs": "host", "costs_reason": ""}
    assert "Layer by layer" in Page(render_html([manifest], [{}])).text
    assert layer_lines(manifest) == []


@pytest.mark.parametrize("drops", [[0.0, 0.0], [-0.5, -0.25, -1.0], [30.0, 0.1]])
@pytest.mark.parametrize("limit", [None, 0.0, 1.0])
def test_accuracy_curve_holds_whatever_the_drops_are(drops: list[float], limit: float | None) -> None:
    steps = [{"what": "w", "drop": drop, "size_bytes": 1, "ms": 1.0} for drop in drops]
    chart = accuracy_curve(steps, limit, "k")
    assert chart.count("<circle") == len(drops) and "nan" not in chart


def test_terminal_shows_the_longest_layers_and_sums_the_rest(tuned: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    tuned["tuning"]["sites"] = [site(number) for number in range(1, 13)]
    tuned["program"]["reduced_range"] = {"classify": "12 % leave 16 bits"}
    print_layers(tuned)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["/encoder/12/MatMul", "MatMul", "384", "×", "1,536", "int8-static", "12.0", "6.00"]
    assert next(line for line in lines if line.startswith("2 more")).split()[-2:] == ["3.00", "1.50"]
    assert any("weights of 7 bits: classify: 12 % leave 16 bits" in line for line in lines)


def test_terminal_is_silent_without_layers(manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_layers(manifest)
    assert capsys.readouterr().out == ""
