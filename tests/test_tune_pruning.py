"""Widths are found from budgets: as wide as they may be, by candidates that were really built, cut and timed; and planned for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgepipe.artifact import Artifact
from edgepipe.build import baseline_of
from edgepipe.config import Budget, Data, Recipe
from edgepipe.data import Splits
from edgepipe.pipeline import Setting, run_recipe
from edgepipe.plan import plan
from edgepipe.profile import host_profile, load_profile
from edgepipe.progress import Silent
from edgepipe.recipe_check import check_recipe
from edgepipe.store import Store
from edgepipe.tune_pruning import with_widths
from edgepipe.worker_process import WorkerProcess
from tests.models import sentences, write_classifier, write_csv
from tests.passes.running import artifact_of

STEPS = ("prune-heads", "prune-ffn", "export-onnx", "optimize-graph", "quantize-dynamic")
EVERYTHING = ("train", "calibration", "dev", "test")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("widths")
    data = Data(calibration=str(write_csv(folder / "calibration.csv", sentences(40))))
    with WorkerProcess(folder / "run.log", Silent()) as worker:
        yield Setting(Store(folder / "store"), worker, Silent(), host_profile(), data, Splits(data, ("text", "label")), 1)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, setting: Setting) -> Artifact:
    """Wide enough that its layers are most of it."""
    folder = write_classifier(tmp_path_factory.mktemp("model") / "wide", hidden_size=64, intermediate_size=1024, num_attention_heads=4)
    return setting.store.put(artifact_of(folder))


def recipe(*names: str) -> Recipe:
    return Recipe.model_validate({"step": [{"pass": name} for name in names], "tune": True})


def test_size_budget_is_held_by_the_widest_layers_that_do(setting: Setting, wide: Artifact) -> None:
    steps = check_recipe(recipe(*STEPS), wide)
    baseline = baseline_of(recipe(*STEPS), wide, setting)
    limit = 0.16 * baseline.model.size_bytes  # int8 alone is at 0.25

    filled, report = with_widths(steps, wide, baseline, setting, Budget(max_latency_ratio=1000), limit)
    done, _ = run_recipe(check_recipe(Recipe(step=tuple(step for step, _, _ in filled)), wide), wide, setting)

    assert report["held"]
    assert 0.75 * limit < done.model.size_bytes <= 1.05 * limit  # the table goes to 4 bits when layers are tuned
    assert all(layer["ffn"] % 16 == 0 and layer["heads"] >= 1 for layer in report["widths"])
    assert 2 <= len(report["candidates"]) <= 5


def test_budgets_that_hold_without_cut_nothing(setting: Setting, wide: Artifact) -> None:
    steps = check_recipe(recipe(*STEPS), wide)
    baseline = baseline_of(recipe(*STEPS), wide, setting)

    filled, report = with_widths(steps, wide, baseline, setting, Budget(max_latency_ratio=1000), baseline.model.size_bytes)

    assert [step.name for step, _, _ in filled] == ["export-onnx", "optimize-graph", "quantize-dynamic"]
    assert report["share_of_time"] == 1.0


def test_recipe_that_says_how_much_is_left_alone(setting: Setting, wide: Artifact) -> None:
    said = Recipe.model_validate({"step": [{"pass": "prune-ffn", "options": {"ratio": 0.5}}, {"pass": "export-onnx"}]})
    steps = check_recipe(said, wide)

    assert with_widths(steps, wide, wide, setting, Budget(), 1.0) == (steps, {})


def planned(artifact: Artifact, splits: tuple[str, ...] = EVERYTHING, **budget: float) -> Recipe:
    return plan(artifact, load_profile("rpi4"), splits=splits, budget=Budget(**budget))  # type: ignore[arg-type]


def test_plan_prunes_and_recovers_where_quantization_cannot_hold_the_budget(wide: Artifact) -> None:
    found = planned(wide, max_size_ratio=0.08, max_latency_ratio=0.25)

    names = [step.name for step in found.steps]
    assert names[:2] == ["prune-layers", "prune-vocab"] or names[0] == "prune-layers"
    assert names.index("prune-ffn") < names.index("recover") < names.index("export-onnx")
    assert "asks for more than" in found.steps[0].reason
    check_recipe(found, wide)


@pytest.mark.parametrize(
    ("splits", "budget", "says"),
    [
        (EVERYTHING, {}, "the budgets hold without"),
        (("calibration", "test"), {"max_size_ratio": 0.05}, "no train and no dev data"),
        (("calibration", "train", "test"), {"max_size_ratio": 0.05}, "no dev data"),
    ],
)
def test_plan_says_why_nothing_is_pruned(wide: Artifact, splits: tuple[str, ...], budget: dict[str, float], says: str) -> None:
    found = planned(wide, splits, **budget)

    assert not any(step.name.startswith("prune") for step in found.steps)
    assert any(says in line for line in found.left_out)
