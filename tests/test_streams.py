"""Models with state: found at intake, and run step by step by the driver as one long run would."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.artifact import Artifact
from edgepipe.config import Data, Task
from edgepipe.driver import driver_module
from edgepipe.errors import DataError, ModelError, UsageError
from edgepipe.intake import find_source, make_artifact
from edgepipe.parts import Stream
from edgepipe.runners.agent import arrays
from edgepipe.runners.link import RemoteModel
from edgepipe.runners.local import LocalRunner
from edgepipe.store import Store
from edgepipe.streams import check_audio, find_state, sample_inputs, stem
from edgepipe.tasks import load_task
from tests.stateful_models import WIDTH, recurrent, run_by_hand, write_wav

RATE = 16000


def signature(inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], dtype: str = "float32") -> dict[str, Any]:
    sides = (("inputs", inputs), ("outputs", outputs))
    return {side: [{"name": name, "dtype": dtype, "shape": shape} for name, shape in entries.items()] for side, entries in sides}


def pairs(found: tuple[dict[str, Any], ...]) -> dict[str, str]:
    return {entry["input"]: entry["output"] for entry in found}


def opened(folder: Path, model: Any, *, task: str = "fidelity", stream: Stream | None = None) -> tuple[Artifact, Any]:
    """The artifact that enters a build, and a driver that has it opened."""
    folder.mkdir(exist_ok=True)
    onnx.save_model(model, folder / "model.onnx")
    artifact = make_artifact(find_source(str(folder)), (), load_task(Task(name=task)), (), Data(), None, stream)
    kept = Store(folder / "cache").put(artifact)
    return kept, driver_module().Driver(str(kept.root))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("state", "stateN"), ("h", "hn"), ("h0", "hn"), ("c_0", "c_n"), ("h_in", "h_out"), ("hidden_state", "new_hidden_state"),
        ("past_key_values.3.key", "present.3.key"), ("past_0", "present_0"), ("cacheIn", "cacheOut"), ("prev_memory", "next_memory"),
    ],
)  # fmt: skip
def test_state_is_found_by_its_names(before: str, after: str) -> None:
    model = signature({"x": [1, 4], before: [1, 8]}, {"y": [1, 2], after: [1, 8]})

    assert pairs(find_state(model, {}, "m.onnx")) == {before: after}


def test_layers_are_paired_with_themselves() -> None:
    names = {f"h{i}": f"h{i}_out" for i in range(3)}
    model = signature({"x": [1], **{name: [1, 8] for name in names}}, {"y": [1], **{name: [1, 8] for name in names.values()}})

    assert pairs(find_state(model, {}, "m.onnx")) == names


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"x": [1, 4]}, {"x_out": [1, 4]}),  # no word for state in it
        ({"x": [1], "state": [1, 8]}, {"y": [1], "stateN": [1, 9]}),  # another size
        ({"x": [1], "state": [8]}, {"y": [1], "stateN": [1, 8]}),  # another rank
        ({"x": [1], "state": [1, 8]}, {"y": [1]}),
    ],
)
def test_what_is_no_state_is_not_taken_for_one(inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> None:
    assert find_state(signature(inputs, outputs), {}, "m.onnx") == ()


def test_named_state_may_have_any_names() -> None:
    model = signature({"x": [1, 4], "a": ["b", 8]}, {"y": [1, 4], "z": ["b", 8]})

    assert find_state(model, {"a": "z"}, "m.onnx") == ({"input": "a", "output": "z", "initial": 0, "grows_along": None},)


@pytest.mark.parametrize(
    ("named", "says"), [({"stat": "stateN"}, 'no input "stat"'), ({"state": "y"}, "cannot go in as"), ({"state": "q"}, 'no output "q"')]
)
def test_wrongly_named_state_is_an_error(named: dict[str, str], says: str) -> None:
    model = signature({"x": [1, 4], "state": [1, 8]}, {"y": [1, 2], "stateN": [1, 8]})

    with pytest.raises(UsageError, match=says):
        find_state(model, named, "m.onnx")


def test_cache_that_grows_names_the_axis() -> None:
    model = signature({"x": [1, 1], "past": ["b", 4, "past_length", 16]}, {"y": [1, 1], "present": ["b", 4, "length", 16]})

    assert find_state(model, {}, "m.onnx")[0]["grows_along"] == 2


def test_model_that_gives_nothing_but_state_is_refused() -> None:
    with pytest.raises(ModelError, match="gives nothing"):
        find_state(signature({"x": [1], "h": [1, 8]}, {"hn": [1, 8]}), {}, "m.onnx")


@given(st.sampled_from(["state", "h", "hidden", "cache"]), st.sampled_from(["", "3", "12"]))
def test_what_tells_in_from_out_leaves_the_stem_alone(word: str, number: str) -> None:
    base = f"{word}_{number}" if number else word

    assert stem(f"{base}_in") == stem(f"{base}_out") == stem(f"prev_{base}") == stem(f"new_{base}")


def test_stream_equals_one_long_run(tmp_path: Path) -> None:
    artifact, driver = opened(tmp_path / "m", recurrent())
    steps = np.random.default_rng(0).standard_normal((50, 1, WIDTH)).astype(np.float32)

    (found,) = driver.predict({"tensors": {"x": steps}})

    assert artifact.program["kind"] == "stream" and pairs(artifact.model.state) == {"state": "stateN"}
    assert list(found) == ["y"]
    np.testing.assert_allclose(found["y"], run_by_hand(steps), atol=1e-5)


def test_every_sample_starts_with_a_fresh_state(tmp_path: Path) -> None:
    _, driver = opened(tmp_path / "m", recurrent())
    steps = np.random.default_rng(0).standard_normal((9, 1, WIDTH)).astype(np.float32)

    first, second = (driver.predict({"tensors": {"x": steps}})[0]["y"] for _ in range(2))

    np.testing.assert_array_equal(first, second)


def test_constants_are_given_at_every_step(tmp_path: Path) -> None:
    artifact, driver = opened(tmp_path / "m", recurrent(gain=True), stream=Stream(constants={"gain": 0.5}))
    steps = np.random.default_rng(0).standard_normal((9, 1, WIDTH)).astype(np.float32)

    np.testing.assert_allclose(driver.predict({"tensors": {"x": steps}})[0]["y"], run_by_hand(steps, 0.5), atol=1e-5)
    assert [entry["name"] for entry in sample_inputs(artifact)] == ["x"]


def test_inputs_of_unlike_lengths_are_refused(tmp_path: Path) -> None:
    _, driver = opened(tmp_path / "m", recurrent(gain=True))

    with pytest.raises(ValueError, match="unlike numbers of steps"):
        driver.predict({"tensors": {"x": np.zeros((3, 1, WIDTH), np.float32), "gain": np.zeros(2, np.float32)}})


def test_audio_is_cut_into_steps_and_read_as_the_arrays_would_be(tmp_path: Path) -> None:
    stream = Stream(chunk=32, context=8)
    artifact, driver = opened(tmp_path / "m", recurrent(), stream=stream)
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 1000)
    path = write_wav(tmp_path / "a.wav", sound)

    (heard,) = driver.predict({"audio": str(path)})

    assert artifact.program["preprocess"] == {"kind": "audio", "rate": RATE, "chunk": 32, "context": 8, "batch": 1}
    exact = np.round(sound * 32767) / 32768
    padded = np.concatenate([np.zeros(8), exact, np.zeros(24)]).astype(np.float32)
    np.testing.assert_allclose(heard["y"], run_by_hand(np.stack([padded[i * 32 : i * 32 + 40] for i in range(32)])[:, None]), atol=1e-5)


@given(st.integers(1, 400), st.integers(1, 64), st.integers(0, 64))
def test_chunks_hold_the_sound_once_and_its_past_before_it(length: int, chunk: int, context: int) -> None:
    module = driver_module().neighbour("stream")
    sound = np.arange(1, length + 1, dtype=np.float32)

    steps = module.chunks(sound, {"chunk": chunk, "context": context})[:, 0]

    assert steps.shape[1] == chunk + context
    whole = steps[:, context:].ravel()
    np.testing.assert_array_equal(whole[:length], sound)
    assert not whole[length:].any() and len(whole) - length < chunk
    past = np.concatenate([np.zeros(context, np.float32), whole])
    for index, step in enumerate(steps):
        np.testing.assert_array_equal(step[:context], past[index * chunk : index * chunk + context])


@given(st.lists(st.booleans(), max_size=40))
def test_spans_say_which_steps_are_active(active: list[bool]) -> None:
    spans = driver_module().neighbour("stream").spans(np.array(active, bool), 0.5)

    again = [any(start <= 0.5 * index < end for start, end in spans) for index in range(len(active))]
    assert again == active
    assert all(end < start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rate": 8000}, "8000 samples a second, and the model takes 16000"),
        ({"channels": 2}, "2 channels of 16 bits"),
        ({"width": 1}, "1 channels of 8 bits"),
    ],
)
def test_audio_that_the_model_does_not_take_is_a_data_error(tmp_path: Path, settings: dict[str, int], says: str) -> None:
    artifact, _ = opened(tmp_path / "m", recurrent(), stream=Stream(chunk=32, context=8))
    path = write_wav(tmp_path / "a.wav", np.zeros(400), **settings)

    with pytest.raises(DataError, match=says) as caught:
        check_audio(artifact, [{"audio": str(path)}])
    assert "ffmpeg" in (caught.value.fix or "") and caught.value.where == str(path)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not a sound at all, but text of some length"])
def test_file_that_is_no_sound_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    artifact, _ = opened(tmp_path / "m", recurrent(), stream=Stream(chunk=32, context=8))
    (tmp_path / "a.wav").write_bytes(content)

    with pytest.raises(DataError, match="not a readable"):
        check_audio(artifact, [{"audio": str(tmp_path / "a.wav")}])


def test_sound_that_is_not_there_is_a_data_error(tmp_path: Path) -> None:
    artifact, _ = opened(tmp_path / "m", recurrent(), stream=Stream(chunk=32, context=8))

    with pytest.raises(DataError, match="No such file"):
        check_audio(artifact, [{"audio": str(tmp_path / "nowhere.wav")}])


@pytest.mark.parametrize(
    ("model", "task", "stream", "says"),
    [
        (recurrent(after="y2"), "voice-activity", Stream(), "no state was found"),
        (recurrent(after="y2"), "fidelity", Stream(chunk=32), "no state was found"),
        (recurrent(), "voice-activity", Stream(), "nothing says how much audio"),
        (recurrent(gain=True), "fidelity", Stream(chunk=32), "audio goes into one input, and the model has x, gain"),
        (recurrent(), "fidelity", Stream(constants={"gian": 1}), '"gian" is no input'),
    ],
)
def test_stream_that_cannot_be_is_a_usage_error(tmp_path: Path, model: Any, task: str, stream: Stream, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        opened(tmp_path / "m", model, task=task, stream=stream)


def test_sound_goes_to_a_device_as_bytes_and_is_heard_the_same(tmp_path: Path) -> None:
    artifact, driver = opened(tmp_path / "m", recurrent(), stream=Stream(chunk=32, context=8))
    path = write_wav(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 500))
    sent = RemoteModel._wire(RemoteModel.__new__(RemoteModel), {"audio": str(path), "label": "none"})
    path.rename(tmp_path / "elsewhere.wav")  # what was sent must do
    model = LocalRunner().open(artifact.root, threads=1)

    try:
        (answer,) = model.ask({"do": "predict", "samples": [sent]})["results"]
    finally:
        model.close()

    (expected,) = driver.predict({"audio": str(tmp_path / "elsewhere.wav")})
    np.testing.assert_array_equal(arrays(answer["outputs"][0])["y"], expected["y"])
    assert answer["step_seconds"] == 32 / 16000
