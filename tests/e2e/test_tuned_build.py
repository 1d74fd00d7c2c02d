"""A build that chooses every layer's scheme, and its recipe, which gives the same model without choosing anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import edgepipe
from edgepipe.config import load_recipe
from tests.test_tune import samples, small_encoder

BUDGET = {"max_size_ratio": 0.3, "max_latency_ratio": 20.0, "max_accuracy_drop": 25}


def test_recipe_in_the_bundle_gives_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    onnx.save_model(small_encoder(), tmp_path / "model" / "model.onnx")
    for seed, split in enumerate(("calibration", "dev", "test")):
        np.savez(tmp_path / f"{split}.npz", **samples(12, seed))
    files = {split: tmp_path / f"{split}.npz" for split in ("calibration", "dev", "test")}

    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "first"))
    tuned = edgepipe.compress(
        tmp_path / "model",
        profile="host",
        task="fidelity",
        budget=BUDGET,
        out=tmp_path / "tuned",
        **files,  # type: ignore[arg-type]
    )
    recipe = load_recipe(tuned.bundle / "recipe.toml")
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "second"))
    pinned = edgepipe.compress(
        tmp_path / "model", profile="host", task="fidelity", budget=BUDGET, recipe=tuned.bundle / "recipe.toml", out=tmp_path / "pinned",
        **files,  # type: ignore[arg-type]
    )  # fmt: skip

    rows = tuned.manifest["tuning"]["sites"]
    named = {name for step in recipe.steps for name in step.options.get("include", ())}
    assert {row["node"] for row in rows if row["scheme"] != "float32"} == named
    assert recipe.steps[0].name == "optimize-graph" and recipe.steps[0].options["fusions"]  # which pay, timing decided
    assert not recipe.tune
    assert "tuning" not in pinned.manifest
    assert pinned.manifest["artifact"] == tuned.manifest["artifact"]
    assert [run["name"] for run in pinned.manifest["passes"]] == [run["name"] for run in tuned.manifest["passes"]]
    size = next(result for result in tuned.manifest["results"] if result["axis"] == "size")
    assert size["verdict"] == "held"
