"""The local runner: an agent in a process of its own, whose failures are told as such."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepipe.artifact import Artifact
from edgepipe.driver import driver_module
from edgepipe.errors import DeviceError, EdgepipeError, ResourceError
from edgepipe.profile import host_profile, load_profile
from edgepipe.runners import BUILT_IN, runner_for
from edgepipe.runners.agent import AgentModel
from edgepipe.store import Store


@pytest.fixture(scope="module")
def folder(onnx_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runner_for(host_profile()).push(Store(tmp_path_factory.mktemp("store")).put(onnx_artifact))


@pytest.fixture
def model(folder: Path) -> Any:
    opened = runner_for(host_profile()).open(folder, threads=1)
    yield opened
    opened.close()


def test_agent_predicts_what_the_driver_does(model: Any, folder: Path) -> None:
    samples = [{"text": "a good film", "label": "positive"}, {"text": "böse 👎"}]

    found = model.predict(samples)

    driver = driver_module().Driver(str(folder))
    for sample, prediction in zip(samples, found, strict=True):
        np.testing.assert_array_equal(prediction.outputs[0]["logits"], driver.predict(sample)[0]["logits"])
        assert 0 < prediction.model_ns <= prediction.total_ns


def test_batch_is_padded_to_the_length_asked_for(model: Any) -> None:
    samples = [{"text": "good"}, {"text": "a very bad film"}]

    np.testing.assert_allclose(model.batch(samples, 32)["logits"], model.batch(samples)["logits"], atol=1e-5)


def test_repeat_gives_a_time_for_each_run(model: Any) -> None:
    feeds = {name: np.ones((2, 8), np.int64) for name in ("input_ids", "attention_mask")}

    times = model.repeat(feeds, 5)

    assert len(times) == 5
    assert min(times) > 0


def test_usage_is_of_the_agents_process(model: Any) -> None:
    peak, seconds = model.usage()

    assert peak > 20_000_000
    assert seconds > 0


def test_input_that_does_not_fit_is_a_device_error_and_the_agent_lives(model: Any) -> None:
    with pytest.raises(DeviceError, match="could not predict"):
        model.predict([{"tokens": ["no", "text"]}])

    assert len(model.predict([{"text": "good"}])) == 1


def test_folder_that_holds_no_artifact_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="could not open"):
        runner_for(host_profile()).open(tmp_path, threads=1)


def test_agent_that_dies_is_a_device_error(model: Any) -> None:
    model._process.terminate()
    model._process.wait()

    with pytest.raises(DeviceError, match="the agent died"):
        model.predict([{"text": "good"}])


def test_agent_that_is_killed_ran_out_of_memory(model: Any) -> None:
    model._process.kill()

    with pytest.raises(ResourceError, match="want of memory"):
        model.predict([{"text": "good"}])


def agent(script: str, limit_s: float = 20.0) -> AgentModel:
    """An agent that is this Python script."""
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the model
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    return AgentModel(process, log, where="runner test", limit_s=limit_s)


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("input(); print('Welcome to Raspbian')", DeviceError, "rubbish: 'Welcome to Raspbian'"),
        ("input(); print('[1, 2]')", DeviceError, "rubbish"),
        ("import time; time.sleep(60)", ResourceError, "did not answer within 1 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", DeviceError, "instruction that this CPU lacks"),
        ("import sys; sys.exit(137)", ResourceError, "want of memory"),
        ("import sys; sys.exit('ModuleNotFoundError: No module named onnxruntime')", DeviceError, "No module named onnxruntime"),
        ("raise MemoryError", ResourceError, "want of memory"),
        ('input(); print(\'{"error": "RuntimeException: Failed to allocate memory for requested buffer"}\')', ResourceError, "memory"),
    ],
)
def test_every_way_an_agent_fails_is_an_error_for_a_person(script: str, kind: type[EdgepipeError], words: str) -> None:
    model = agent(script, 1.0 if "sleep" in script else 20.0)
    try:
        with pytest.raises(kind, match=re.escape(words)) as caught:
            model.ask({"do": "memory"})
    finally:
        model.close()

    assert caught.value.where == "runner test"
    assert caught.value.fix
    assert caught.value.exit_code in (5, 6)


def test_request_larger_than_a_pipe_and_its_answer_pass(tmp_path: Path) -> None:
    model = agent('import sys\nfor line in sys.stdin: print(\'{"length": %d, "x": "%s"}\' % (len(line), \'y\' * 300000), flush=True)')
    try:
        for _ in range(2):
            answer = model.ask({"do": "echo", "data": "z" * 500_000})

            assert answer["length"] > 500_000
            assert len(answer["x"]) == 300_000
    finally:
        model.close()


def test_this_machine_stands_in_where_no_runner_reaches_the_device() -> None:
    assert runner_for(load_profile("rpi4")).name == "local"


def test_every_runner_that_a_profile_may_name_is_there() -> None:
    assert set(BUILT_IN) == {"local", "emulated", "ssh", "adb", "browser"}
    for module in BUILT_IN.values():
        assert callable(import_module(module).make)


def test_browser_that_is_not_set_up_leaves_figures_unproven(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path))

    runner = runner_for(load_profile("browser-wasm"))

    assert runner.name == "local"
    assert runner.proof("accuracy").provenance == "host" and runner.proof("accuracy").doubt
