"""Every layer's scheme is chosen for the target and for the budgets, said in a recipe, and that recipe gives the same again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgepipe.artifact import Artifact
from edgepipe.config import Budget, Data, Recipe, Task, dump_recipe, load_recipe
from edgepipe.data import Splits
from edgepipe.pipeline import Setting, run_recipe
from edgepipe.profile import host_profile
from edgepipe.progress import Silent
from edgepipe.recipe_check import check_recipe
from edgepipe.store import Store
from edgepipe.tasks import load_task
from edgepipe.tune import Tuned, tune
from edgepipe.tuned_runs import run_tuned
from edgepipe.tuning.evaluation import dev_points
from edgepipe.worker_process import WorkerProcess
from tests.onnx_models import make_model
from tests.passes.running import artifact_of
from tests.quantization.graphs import inputs_of

WIDTH, VOCABULARY, TOKENS = 128, 256, 96


def small_encoder(*, wild: float = 1.0) -> Any:
    """x [batch, tokens, 128] and ids [batch, tokens] → y [batch, tokens, 4]: a table, two products and a head. `wild` is how
    much larger one of 128 inputs of each product is than the rest, which it drowns in 8 bits."""
    rng = np.random.default_rng(0)
    factor = np.ones(WIDTH, np.float32)
    factor[0] = wild
    weights = {
        "table": rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32), "factor": factor,
        "up": (rng.standard_normal((WIDTH, WIDTH)) / 8).astype(np.float32), "down": (rng.standard_normal((WIDTH, WIDTH)) / 8).astype(np.float32),
        "head": rng.standard_normal((WIDTH, 4)).astype(np.float32),
    }  # fmt: skip
    if wild > 1:  # what is wild says nothing of the label
        weights["up"][0], weights["down"][0] = 0, 0
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="words"),
        helper.make_node("Add", ["words", "x"], ["sum"], name="sum"),
        helper.make_node("Mul", ["sum", "factor"], ["a"], name="first-factor"),
        helper.make_node("MatMul", ["a", "up"], ["u"], name="up"),
        helper.make_node("Tanh", ["u"], ["t"], name="tanh"),
        helper.make_node("Mul", ["t", "factor"], ["b"], name="second-factor"),
        helper.make_node("MatMul", ["b", "down"], ["d"], name="down"),
        helper.make_node("Relu", ["d"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "head"], ["y"], name="head"),
    ]
    inputs = [helper.make_tensor_value_info("ids", 7, ["batch", "tokens"]), inputs_of("x", ("batch", "tokens", WIDTH))]
    return make_model(nodes, inputs, [inputs_of("y", ("batch", "tokens", 4))], weights)


def samples(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"ids": rng.integers(0, VOCABULARY, (count, 1, TOKENS)), "x": rng.standard_normal((count, 1, TOKENS, WIDTH)).astype(np.float32)}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path_factory.mktemp("worker") / "run.log", Silent()) as process:
        yield process


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    for seed, split in enumerate(("calibration", "dev")):
        np.savez(folder / f"{split}.npz", **samples(24, seed))
    return Data(**{split: str(folder / f"{split}.npz") for split in ("calibration", "dev")})


@pytest.fixture(scope="module")
def setting(worker: WorkerProcess, store: Store, data: Data) -> Setting:
    return Setting(store, worker, Silent(), host_profile(), data, Splits(data, ("text", "label")), 1, ())


def artifact(folder: Path, store: Store, **options: Any) -> Artifact:
    onnx.save_model(small_encoder(**options), folder / "model.onnx")
    return store.put(artifact_of(folder, "fidelity"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Artifact:
    return artifact(tmp_path_factory.mktemp("plain"), store)


@pytest.fixture(scope="module")
def tuned(plain: Artifact, setting: Setting) -> Tuned:
    """Where float32 for all is too large."""
    return tune(plain, setting, Budget(), 0.3 * plain.model.size_bytes, None)


def schemes(found: Tuned) -> dict[str, str]:
    return {row["node"]: row["scheme"] for row in found.report["sites"]}


def test_every_layer_is_named_with_its_scheme_and_its_costs(tuned: Tuned) -> None:
    rows = {row["node"]: row for row in tuned.report["sites"]}

    assert list(rows) == ["words", "up", "down", "head"]
    assert all(row["reason"] and row["bytes"] > 0 for row in rows.values())
    assert all({"float32", "int8-static", "int8-dynamic", "int4"} <= set(rows[name]["ms"]) for name in ("up", "down"))
    included = [name for step in tuned.steps for name in step.options["include"]]
    assert sorted(included) == sorted(name for name, scheme in schemes(tuned).items() if scheme != "float32")
    assert all(step.reason for step in tuned.steps)


def test_no_layer_gets_a_kernel_that_was_slower_than_float32(plain: Artifact, setting: Setting) -> None:
    found = tune(plain, setting, Budget(), 10**9, None)

    for row in found.report["sites"]:
        kernel = row["scheme"].partition(",")[0]
        if kernel in row["ms"]:
            assert row["ms"][kernel] <= row["ms"]["float32"]


def test_pinned_recipe_gives_the_same_model(tuned: Tuned, plain: Artifact, setting: Setting, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(Recipe(step=tuned.steps)), encoding="utf-8")

    again, _ = run_recipe(check_recipe(load_recipe(path), plain), plain, setting)

    assert again.digest == tuned.artifact.digest


def test_pinned_recipe_gives_the_same_model_in_a_cache_of_its_own(
    tuned: Tuned, plain: Artifact, worker: WorkerProcess, data: Data, tmp_path: Path
) -> None:
    fresh = Setting(Store(tmp_path / "store"), worker, Silent(), host_profile(), data, Splits(data, ("text", "label")), 1, ())

    again, runs = run_recipe(check_recipe(Recipe(step=tuned.steps), plain), fresh.store.put(plain), fresh)

    assert not any(run.cached for run in runs)
    assert again.digest == tuned.artifact.digest


def test_asking_again_chooses_the_same(tuned: Tuned, plain: Artifact, setting: Setting) -> None:
    again = tune(plain, setting, Budget(), 0.3 * plain.model.size_bytes, None)

    assert (again.artifact.digest, again.steps) == (tuned.artifact.digest, tuned.steps)


@pytest.mark.parametrize("share", [0.32, 0.21])
def test_size_budget_is_held(share: float, plain: Artifact, setting: Setting) -> None:
    found = tune(plain, setting, Budget(), share * plain.model.size_bytes, None)

    assert found.artifact.model.size_bytes <= share * plain.model.size_bytes
    assert share > 0.25 or any("4" in scheme for scheme in schemes(found).values())


def test_budget_that_nothing_holds_gives_the_smallest(plain: Artifact, setting: Setting) -> None:
    found = tune(plain, setting, Budget(), 10, None)

    small = {name: scheme for name, scheme in schemes(found).items() if name != "head"}
    assert all("4" in scheme for scheme in small.values())
    assert found.artifact.model.size_bytes < 0.25 * plain.model.size_bytes


def test_without_calibration_data_nothing_gets_static_scales(plain: Artifact, worker: WorkerProcess, store: Store) -> None:
    bare = Setting(store, worker, Silent(), host_profile(), Data(), Splits(Data(), ("text", "label")), 1, ())

    found = tune(plain, bare, Budget(), 0.3 * plain.model.size_bytes, None)

    assert "quantize-static" not in [step.name for step in found.steps]
    assert found.artifact.model.size_bytes <= 0.3 * plain.model.size_bytes


def test_weights_that_layers_share_are_counted_once(tmp_path: Path, worker: WorkerProcess, store: Store) -> None:
    nodes = [helper.make_node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"], name=f"n{i}") for i in range(6)]
    weights = {"w": (np.random.default_rng(0).standard_normal((256, 256)) / 16).astype(np.float32)}
    onnx.save_model(
        make_model(nodes, [inputs_of("h0", ("batch", 256))], [inputs_of("h6", ("batch", 256))], weights), tmp_path / "model.onnx"
    )
    np.savez(tmp_path / "calibration.npz", h0=np.random.default_rng(1).standard_normal((8, 1, 256)).astype(np.float32))
    data = Data(calibration=str(tmp_path / "calibration.npz"))
    start = store.put(artifact_of(tmp_path / "model.onnx", "fidelity", data=data))
    setting = Setting(store, worker, Silent(), host_profile(), data, Splits(data, ("text", "label")), 1, ())

    found = tune(start, setting, Budget(), 0.3 * start.model.size_bytes, None)

    assert found.artifact.model.size_bytes <= 0.3 * start.model.size_bytes
    assert not any(scheme.endswith("stored in 4 bits") for scheme in schemes(found).values())


# --- accuracy


def judge(baseline: Artifact, setting: Setting) -> Callable[[Artifact], float]:
    task = load_task(Task(name="fidelity"))
    return lambda candidate: dev_points(candidate, baseline, setting, task).drop


def test_layers_that_cost_too_much_accuracy_are_left_out(tmp_path: Path, store: Store, setting: Setting) -> None:
    """One activation is thousands of times larger than the rest: whatever the kernels cost, 8 bits of it hold nothing else."""
    start = artifact(tmp_path, store, wild=5000.0)
    free = tune(start, setting, Budget(max_accuracy_drop=100), 10**9, judge(start, setting))

    strict = tune(start, setting, Budget(max_accuracy_drop=0.5), 10**9, judge(start, setting))

    steps = strict.report["steps"]
    assert judge(start, setting)(strict.artifact) == steps[-1]["drop"] <= 0.5
    assert steps[0] == free.report["steps"][0]
    held_at_once = steps[0]["drop"] <= 0.5
    assert held_at_once is (len(steps) == 1)
    if not held_at_once:  # int8 kernels paid here
        assert "left out" in steps[-1]["what"]
        assert sum("int8" in scheme for scheme in schemes(strict).values()) < sum("int8" in scheme for scheme in schemes(free).values())


def test_layers_that_four_bits_cost_too_much_get_eight_back(plain: Artifact, setting: Setting) -> None:
    limit = 0.21 * plain.model.size_bytes
    free = tune(plain, setting, Budget(), limit, None)

    strict = tune(plain, setting, Budget(max_accuracy_drop=0.0), limit, judge(plain, setting))

    curve = [step["drop"] for step in strict.report["steps"]]
    assert len(curve) > 1
    assert judge(plain, setting)(strict.artifact) == min(curve) < curve[0]
    more_bits = [name for name, scheme in schemes(strict).items() if "4" in schemes(free)[name] and "4" not in scheme]
    assert more_bits


def test_accuracy_that_nothing_holds_gives_the_best_and_its_curve(plain: Artifact, setting: Setting) -> None:
    drops: list[float] = []

    def worse(candidate: Artifact) -> float:
        drops.append(5.0 + candidate.model.size_bytes / 1e9)
        return drops[-1]

    found = tune(plain, setting, Budget(max_accuracy_drop=0.0), 0.3 * plain.model.size_bytes, worse)

    assert [step["drop"] for step in found.report["steps"]] == drops
    assert len(drops) > 1
    assert 5.0 + found.artifact.model.size_bytes / 1e9 == min(drops)


def test_tuned_run_keeps_the_steps_around_it(plain: Artifact, setting: Setting) -> None:
    recipe = Recipe.model_validate(
        {"step": [{"pass": "optimize-graph"}, {"pass": "quantize-static", "options": {"operators": ["MatMul"]}}, {"pass": "convert-float16"}], "tune": True}
    )  # fmt: skip

    found = run_tuned(check_recipe(recipe, plain), plain, plain, setting, load_task(Task(name="fidelity")), Budget())

    names = [step.name for step in found.steps]
    assert names[0] == "optimize-graph"
    assert names[-1] == "convert-float16"
    assert all(name.startswith("quantize-") for name in names[1:-1])
    assert {row["node"] for row in found.tuning["sites"]} == {"words", "up", "down", "head"}
    again, _ = run_recipe(check_recipe(Recipe(step=found.steps), plain), plain, setting)
    assert again.digest == found.artifact.digest
