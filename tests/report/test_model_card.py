"""The model card: front matter, licences, tables that stay tables, and honest limits."""

from __future__ import annotations

import re
from typing import Any

import pytest

from edgepipe.report.model_card import render_model_card
from tests.report import devices


def front_matter(card: str) -> str:
    start, matter, _ = card.split("---\n", 2)
    assert start == ""
    return matter


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def tables(card: str) -> list[list[list[str]]]:
    """Every pipe table as rows of cells, split at pipes that are not escaped."""
    found: list[list[list[str]]] = [[]]
    for line in card.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [rows for rows in found if rows]


def test_card_has_its_sections_in_order(manifest: dict[str, Any]) -> None:
    card = render_model_card(manifest)
    places = [
        card.index(f"## {title}") for title in ("Intended device", "Made from", "What was done", "Evaluation", "Limits", "How to run")
    ]
    assert places == sorted(places) and "# mini + films for A small board" in card
    assert "from 100.00 MB to 25.00 MB. It keeps every budget." in card
    assert 'python run.py "some text"' in card and "onnxruntime==1.20.0" in card


def test_licence_that_is_not_stated_is_said_so_and_left_out_of_the_front_matter(manifest: dict[str, Any]) -> None:
    card = render_model_card(manifest)
    assert "license" not in front_matter(card)
    assert section(card, "Made from").count("not stated") == 3


@pytest.mark.parametrize(
    ("licences", "stated"),
    [
        ({"model": "Apache-2.0", "adapter": "Apache-2.0"}, True),
        ({"model": "Apache-2.0"}, False),
        ({"model": "Apache-2.0", "adapter": "MIT"}, False),
        ({"model": "ask: me\nx: y", "adapter": "ask: me\nx: y"}, False),
    ],
)
def test_front_matter_states_a_licence_only_when_it_covers_all_weights(
    manifest: dict[str, Any], licences: dict[str, str], stated: bool
) -> None:
    manifest["source"]["licences"] = licences
    assert ('license: "apache-2.0"' in front_matter(render_model_card(manifest))) == stated


def test_licences_stand_beside_their_parts(manifest: dict[str, Any]) -> None:
    manifest["source"]["licences"] = {"model": "MIT", "data": "CC-BY-4.0"}
    rows = tables(render_model_card(manifest))[0][2:]
    assert rows == [["Base model", "mini", "MIT"], ["Adapter", "films", "not stated"], ["Data", "samples: test 1,000", "CC-BY-4.0"]]


def test_evaluation_table_holds_every_figure_with_proof_and_verdict(manifest: dict[str, Any]) -> None:
    rows = tables(section(render_model_card(manifest), "Evaluation"))[0]
    assert len(rows) == 2 + len(manifest["results"])
    assert rows[3] == [
        "accuracy",
        "accuracy drop, task lengths, batch 1, 2 threads",
        "0.50 points",
        "−0.10 to 1.10",
        "≤ 1.00 points",
        "measured",
        "held",
    ]
    assert rows[9][-1] == "reported"


def test_tables_stay_tables_whatever_the_text(manifest: dict[str, Any]) -> None:
    evil = "a | b\n| c\\| <script>x</script> `d"
    manifest["source"].update(model=evil, adapters=[evil], licences={"data": evil})
    manifest["passes"][0]["reason"] = manifest["machine"]["cpu"] = evil
    manifest["results"][0]["metric"] = evil
    card = render_model_card(manifest)
    assert "<script>" not in card.replace("\\<script\\>", "")
    for rows in tables(card.replace("\\\\", "")):
        assert len({len(row) for row in rows}) == 1
    assert len(tables(card)) == 3


def test_unproven_and_broken_axes_are_limits(manifest: dict[str, Any], change_row: Any) -> None:
    manifest["verdict"] = "broken"
    change_row(manifest, "component bytes", verdict="broken", reason="too big")
    for row in manifest["results"][3:5]:
        row.update(verdict="unproven", provenance="host", reason="this machine stood in")
    card = render_model_card(manifest)
    limits = section(card, "Limits")
    assert "It breaks a budget" in card and "**Broken**: size" in limits and "too big" in limits
    assert limits.count("**Unproven**: latency") == 1


def test_batch_invariance_and_int8_are_limits_only_where_they_apply(manifest: dict[str, Any]) -> None:
    limits = section(render_model_card(manifest), "Limits")
    assert (
        "98.00 % of 200 samples keep their label; outputs move by up to 0.97" in limits
        and "int8" in limits
        and "longer than 64 tokens" in limits
    )
    manifest["passes"] = []
    manifest["results"] = []
    manifest["program"] = {}
    limits = section(render_model_card(manifest), "Limits")
    assert "int8" not in limits and "nvariance" not in limits and "tokens" not in limits


@pytest.mark.parametrize(("reduce_range", "words"), [(False, "all 8 bits"), (True, "7 bits")])
def test_range_of_int8_weights_is_told(manifest: dict[str, Any], reduce_range: bool, words: str) -> None:
    manifest["passes"][1]["options"]["reduce_range"] = reduce_range
    assert words in section(render_model_card(manifest), "Limits")


def test_image_models_run_on_a_file(manifest: dict[str, Any]) -> None:
    manifest["program"]["preprocess"] = {"kind": "image"}
    how = section(render_model_card(manifest), "How to run")
    assert "python run.py photo.jpg" in how and "pillow" in how and "tokenizers" not in how


def test_card_of_a_model_that_no_pass_changed_and_nothing_is_known_of(manifest: dict[str, Any]) -> None:
    del manifest["source"]
    manifest.update(passes=[], verdict=None, machine={}, versions={}, program={})
    card = render_model_card(manifest)
    assert "# model for A small board" in card and "no verdict" in card and "as it came" in card


def test_card_of_a_device_that_was_predicted_or_not_timed_at_all(manifest: dict[str, Any]) -> None:
    predicted = section(render_model_card(devices.rpi4(manifest)[0]), "Evaluation")
    assert "60.1 → 41.3 ms | 33.0 to 51.6 (90 %) | ≤ 60.1 ms | predicted | held" in predicted
    card = render_model_card(devices.phone(manifest)[0])
    assert "**Unproven**: latency (no figure): emulated times are no latencies." in section(card, "Limits")
    assert "| no figure | – | – | host | unproven |" in card and "CoreML share of arithmetic" in card
