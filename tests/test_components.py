"""Views of one component: what passes see of a program with state or of several components, and how it goes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgepipe.artifact import Artifact
from edgepipe.component_recipes import check_components, plan_components
from edgepipe.components import inputs_of, put_back, record, view
from edgepipe.config import Data, Recipe, Task
from edgepipe.driver import driver_module
from edgepipe.errors import PassError, UsageError
from edgepipe.intake import find_source, make_artifact
from edgepipe.parts import Stream
from edgepipe.probes import probe_feeds
from edgepipe.profile import host_profile
from edgepipe.readers import read_folder
from edgepipe.store import Store
from edgepipe.tasks import load_task
from tests.stateful_models import WIDTH, recurrent

STEPS = np.random.default_rng(0).standard_normal((3, 20, 1, WIDTH)).astype(np.float32)
SAMPLES: list[dict[str, Any]] = [{"tensors": {"x": steps}} for steps in STEPS]


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("stream")
    onnx.save_model(recurrent(gain=True), folder / "model.onnx")
    settings = Stream(constants={"gain": 1.0})
    artifact = make_artifact(find_source(str(folder)), (), load_task(Task(name="fidelity")), (), Data(), None, settings)
    return Store(folder / "cache").put(artifact)


def recipe(*steps: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"step": list(steps)})


def test_recorded_inputs_give_what_the_stream_gave(stream: Artifact, tmp_path: Path) -> None:
    record(stream, SAMPLES, {"model": tmp_path / "model"}, 1)
    recorded = list(read_folder(tmp_path / "model", "label"))
    session = driver_module().open_session(str(stream.model.main_file))
    driver = driver_module().Driver(str(stream.root))

    found = [session.run(["y"], {name: sample["tensors"][name] for name in ("x", "state", "gain")})[0] for sample in recorded]

    expected = np.concatenate([driver.predict(sample)[0]["y"] for sample in SAMPLES])
    assert len(recorded) == 60
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-6)


def test_only_so_many_inputs_are_recorded_and_they_are_spread(stream: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepipe.components.INPUTS", 12)

    record(stream, SAMPLES, {"model": tmp_path / "model"}, 1)

    recorded = [sample["tensors"]["x"] for sample in read_folder(tmp_path / "model", "label")]
    wanted = [steps[index] for steps in STEPS for index in (0, 6, 13, 19)]
    np.testing.assert_array_equal(np.stack(recorded), np.stack(wanted))


def test_recording_ends_with_the_block(stream: Artifact) -> None:
    driver = driver_module().Driver(str(stream.root))
    calls = inputs_of(stream, SAMPLES[0], driver)

    assert [len(found) for found in calls.values()] == [20]
    assert driver.executor.observe is None


def test_view_is_a_single_model_of_tensors_that_probes_take(stream: Artifact, tmp_path: Path) -> None:
    alone = view(stream, "model")
    record(stream, SAMPLES, {"model": tmp_path / "model"}, 1)

    feeds = probe_feeds(alone, list(read_folder(tmp_path / "model", "label")))

    assert alone.program["kind"] == "single" and alone.model.state == ()
    assert [{name: value.shape for name, value in one.items()} for one in feeds] == [{"x": (1, 40), "state": (1, 8), "gain": ()}] * len(
        feeds
    )


def test_what_passes_made_goes_back_with_its_state_and_session(stream: Artifact) -> None:
    done = view(stream, "model").with_program(session={"disabled_optimizers": ["GemmFusion"]})

    whole = put_back(stream, "model", done)

    assert whole.model.state == stream.model.state
    assert whole.program == {**stream.program, "session": {"disabled_optimizers": ["GemmFusion"]}}
    assert view(whole, "model").program["session"] == {"disabled_optimizers": ["GemmFusion"]}


def test_model_that_lost_its_state_does_not_go_back(stream: Artifact) -> None:
    done = view(stream, "model")
    signature = {**done.model.signature, "outputs": [entry for entry in done.model.signature["outputs"] if entry["name"] == "y"]}

    with pytest.raises(PassError, match="no longer carries its state"):
        put_back(stream, "model", done.with_component("model", replace(done.model, signature=signature)))


def test_settings_of_a_stage_go_back_to_that_stage() -> None:
    stream = {"component": "a", "session": {"x": 1}}
    whole = Artifact(
        {"a": _component(), "b": _component()},
        (),
        {"kind": "pipeline", "task": "ocr", "stages": [stream, {"component": "b", "height": 48}]},
    )

    back = put_back(whole, "b", view(whole, "b").with_program(session={"y": 2}))

    assert back.program["stages"] == [stream, {"component": "b", "height": 48, "session": {"y": 2}}]
    assert back.roles == ("a", "b")


def _component() -> Any:
    from edgepipe.artifact import Component

    return Component("onnx", (), {"inputs": [], "outputs": []}, 0)


def test_planned_recipe_fixes_what_never_changes(stream: Artifact) -> None:
    found = plan_components(stream, host_profile(), ())

    assert found.steps[0].name == "fix-inputs" and found.steps[0].options == {"values": {"gain": 1.0}}
    assert "gain = 1.0" in found.steps[0].reason


@pytest.mark.parametrize(
    ("step", "compress", "says"),
    [
        ({"pass": "optimize-graph", "on": ["recognizer"]}, (), '"recognizer", which is no component'),
        ({"pass": "optimize-graph"}, ("decoder",), 'no component "decoder"'),
        ({"pass": "optimise-graph"}, (), 'unknown pass "optimise-graph"'),
    ],
)
def test_recipe_that_names_what_is_not_there_is_a_usage_error(
    stream: Artifact, step: dict[str, Any], compress: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        check_components(recipe(step), stream, compress)


def test_roles_mean_nothing_to_a_single_model(stream: Artifact) -> None:
    with pytest.raises(UsageError, match="one component only"):
        check_components(recipe({"pass": "optimize-graph", "on": ["model"]}), view(stream, "model"))
