"""The browser runner: what its figures are worth, what it needs, and how its failures are told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from edgepipe import browser_setup, chromium
from edgepipe.artifact import Artifact
from edgepipe.browser_page import browser_files, has_page
from edgepipe.browser_setup import missing, runtime_folder, setup, wrong_file
from edgepipe.chromium import Page
from edgepipe.driver import driver_module
from edgepipe.errors import DeviceError, ResourceError
from edgepipe.machine import cpu_model
from edgepipe.profile import Profile, load_profile
from edgepipe.progress import Silent
from edgepipe.runners.browser import BrowserModel, BrowserRunner
from edgepipe.store import Store
from tests.browser import give_runtime


@pytest.fixture(scope="module")
def runtime(user_cache: Path) -> Path:
    return give_runtime(user_cache)


@pytest.fixture(scope="module")
def folder(onnx_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory, runtime: Path) -> Path:
    return Store(tmp_path_factory.mktemp("store")).put(onnx_artifact).model.folder.parent


@pytest.fixture
def page(runtime: Path) -> Iterator[Page]:
    opened = Page()
    yield opened
    opened.close()


def profile_with(**cpu: Any) -> Profile:
    plain = load_profile("browser-wasm")
    return plain.model_copy(update={"cpu": plain.cpu.model_copy(update=cpu)})


def laid_out(folder: Path, nodes: list[Any], opset: str = "") -> Path:
    """A model of tensors, {x: int64 [n]} → y, as it lies on a device."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(opset, 1)] if opset else [])]
    (folder / "model").mkdir(parents=True)
    path = folder / "model" / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    component = {
        "format": "onnx",
        "files": [{"path": "model.onnx", "bytes": path.stat().st_size}],
        "signature": {"inputs": [{"name": "x"}]},
    }
    program = {"kind": "single", "component": "model", "preprocess": {"kind": "tensors"}}
    (folder / "artifact.json").write_text(json.dumps({"components": {"model": component}, "assets": [], "program": program}))
    return folder


def leftovers(opened: Page) -> list[Any]:
    """What still lives of a browser that should be gone: processes (but dead ones nobody has waited for) and its folder."""
    alive = [p for p in psutil.process_iter(["cmdline", "status"]) if str(opened.folder) in " ".join(p.info["cmdline"] or [])]
    return [p for p in alive if p.info["status"] != psutil.STATUS_ZOMBIE] + ([opened.folder] if opened.folder.exists() else [])


# What figures are worth


def test_outputs_are_measured_and_times_are_not_on_another_cpu() -> None:
    runner = BrowserRunner(profile_with(model="i5-8250U"))

    assert {axis: runner.proof(axis).provenance for axis in ("accuracy", "parity", "operators", "memory", "latency")} == {
        "accuracy": "measured",
        "parity": "measured",
        "operators": "measured",
        "memory": "measured",
        "latency": "host",
    }
    assert "i5-8250U" in runner.proof("latency").doubt


def test_times_are_measured_on_the_cpu_that_the_profile_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepipe.runners.browser.cpu_model", lambda: "Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz")
    monkeypatch.setattr("edgepipe.runners.browser.usable_cores", lambda: 8)

    assert BrowserRunner(profile_with(model="Intel Core i5-8250U")).proof("latency").provenance == "measured"


def test_fewer_threads_than_the_profile_names_prove_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepipe.runners.browser.usable_cores", lambda: 1)

    assert BrowserRunner(profile_with(model=cpu_model())).proof("latency").doubt == "taken with 1 of 4 threads"


def test_another_runtime_than_the_profile_names_proves_nothing() -> None:
    plain = load_profile("browser-wasm")
    runner = BrowserRunner(plain.model_copy(update={"runtime": plain.runtime.model_copy(update={"version": "1.19.0"})}))

    assert runner.proof("accuracy").provenance == "host"
    assert "1.19.0" in runner.proof("accuracy").doubt


# What it does


def test_threads_are_those_asked_for(folder: Path) -> None:
    model = BrowserRunner(load_profile("browser-wasm")).open(folder, threads=2)
    try:
        one, two = model.predict([{"text": "a good film"}, {"text": "böse 👎"}])
        assert one.outputs[0]["logits"].shape == two.outputs[0]["logits"].shape
        feeds = {name: np.ones((2, 8), np.int64) for name in ("input_ids", "attention_mask")}
        assert min(model.repeat(feeds, 3)) > 0
        peak, seconds = model.usage()
        assert 16e6 < peak < 200e6
        assert 0.1 < seconds < 120
    finally:
        model.close()
    assert not leftovers(model.page)


def test_images_are_encoded_as_the_python_driver_does(tmp_path: Path, runtime: Path) -> None:
    from onnx import TensorProto, helper

    made = laid_out(tmp_path / "image", [helper.make_node("GlobalAveragePool", ["x"], ["y"])])
    import onnx

    graph = onnx.load(made / "model" / "model.onnx")
    graph.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8]))
    onnx.save(graph, made / "model" / "model.onnx")
    data = json.loads((made / "artifact.json").read_text())
    data["components"]["model"]["files"][0]["bytes"] = (made / "model" / "model.onnx").stat().st_size
    data["program"]["preprocess"] = {"kind": "image", "size": {"height": 8, "width": 8}}
    (made / "artifact.json").write_text(json.dumps(data))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sample = {"image": str(tmp_path / "a.png")}

    model = BrowserModel(made, threads=1, optimise=True)
    try:
        alone = model.predict([sample])[0]
        both = model.batch([sample, sample])
        with pytest.raises(DeviceError, match=r"no-such\.png"):
            model.predict([{"image": "no-such.png"}])
    finally:
        model.close()

    np.testing.assert_allclose(alone.outputs[0]["y"], driver_module().Driver(str(made)).predict(sample)[0]["y"], atol=1e-6)
    np.testing.assert_array_equal(both["y"][0], alone.outputs[0]["y"][0])
    assert alone.total_ns > alone.model_ns


def test_external_data_and_float16_arrive_whole(tmp_path: Path, runtime: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = laid_out(tmp_path / "model", [helper.make_node("Gather", ["table", "x"], ["h"]), helper.make_node("Identity", ["h"], ["y"])])
    table = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float16)
    graph = onnx.load(made / "model" / "model.onnx")
    graph.graph.initializer.append(numpy_helper.from_array(table, "table"))
    graph.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(graph, made / "model" / "model.onnx", save_as_external_data=True, location="model.bin", size_threshold=0)
    data = json.loads((made / "artifact.json").read_text())
    files = [{"path": name, "bytes": (made / "model" / name).stat().st_size} for name in ("model.onnx", "model.bin")]
    data["components"]["model"]["files"] = files
    (made / "artifact.json").write_text(json.dumps(data))

    model = BrowserModel(made, threads=1, optimise=True)
    try:
        found = model.predict([{"tensors": {"x": np.array([5, 299], np.int64)}}])[0].outputs[0]["y"]
    finally:
        model.close()

    np.testing.assert_array_equal(found, table[[5, 299]])
    assert found.dtype == np.float16


# What goes wrong


def test_an_operator_without_a_kernel_is_told(tmp_path: Path, runtime: Path) -> None:
    from onnx import helper

    made = laid_out(tmp_path / "model", [helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")], "com.example")

    with pytest.raises(DeviceError, match="Frobnicate") as caught:
        BrowserModel(made, threads=1, optimise=True)

    assert "no kernel" in str(caught.value.fix)


def test_more_memory_than_a_page_has_is_told(tmp_path: Path, runtime: Path) -> None:
    from onnx import helper

    made = laid_out(tmp_path / "model", [helper.make_node("ConstantOfShape", ["x"], ["y"])])
    model = BrowserModel(made, threads=1, optimise=True)
    try:
        with pytest.raises(ResourceError, match="out of memory"):
            model.predict([{"tensors": {"x": np.array([2**31 - 1], np.int64)}}])
        assert model.predict([{"tensors": {"x": np.array([2], np.int64)}}])[0].outputs[0]["y"].tolist() == [0.0, 0.0]
    finally:
        model.close()


def test_a_page_that_hangs_is_ended(page: Page) -> None:
    with pytest.raises(ResourceError, match="did not predict within 1 s"):
        page.evaluate("(() => { for (;;); })()", 0.5 + 0.5, doing="predict")

    page.close()

    assert not leftovers(page)


def test_a_page_that_crashes_is_told(page: Page) -> None:
    with pytest.raises(ResourceError, match="crashed"):
        page.send("Page.crash")


def test_a_browser_that_dies_is_told(page: Page) -> None:
    for process in psutil.Process(page.pid).children(recursive=True):
        process.kill()

    with pytest.raises(DeviceError, match="Chromium died"):
        page.evaluate("1")

    assert not leftovers(page)


def test_what_a_page_throws_is_told(page: Page) -> None:
    with pytest.raises(DeviceError, match="RuntimeError: unreachable"):  # as when WebAssembly aborts
        page.evaluate('Promise.reject(new WebAssembly.RuntimeError("unreachable"))')


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_edgepipe_is_ended(runtime: Path, how: int) -> None:
    code = "from edgepipe.chromium import Page; import time; p = Page(); print(p.folder, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    place = Path(process.stdout.readline().strip())
    assert place.is_dir()

    process.send_signal(how)
    process.wait()

    deadline = time.monotonic() + 20
    while place.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not place.exists()


def test_without_chromium_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEPIPE_CHROMIUM", raising=False)
    monkeypatch.setattr(chromium, "NAMES", ())
    monkeypatch.setattr(chromium, "MAC_APPS", ())

    with pytest.raises(DeviceError, match="not installed") as caught:
        Page()

    assert chromium.INSTALL in str(caught.value.fix)
    assert ("Chromium is not installed", chromium.INSTALL) in missing()


def test_a_browser_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_CHROMIUM", "/no/such/browser")
    with pytest.raises(DeviceError, match="/no/such/browser"):
        Page()

    monkeypatch.setenv("EDGEPIPE_CHROMIUM", shutil.which("true") or "")
    with pytest.raises(DeviceError, match="Chromium died"):
        Page()


def test_before_set_up_the_error_names_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path))

    with pytest.raises(DeviceError, match="is not set up") as caught:
        BrowserModel(folder, threads=1, optimise=True)

    assert caught.value.fix == browser_setup.SET_UP
    assert ("onnxruntime-web is not set up", browser_setup.SET_UP) in missing()


def test_a_changed_runtime_is_not_run(folder: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path))
    shutil.copytree(runtime, runtime_folder())
    with (runtime_folder() / "tokenizers.min.mjs").open("a") as handle:
        handle.write(";")

    with pytest.raises(DeviceError, match=r"changed since set-up: tokenizers\.min\.mjs"):
        BrowserModel(folder, threads=1, optimise=True)


# Set-up


def fake_npm(folder: Path, script: str) -> str:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_set_up_keeps_the_pinned_files_only(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    for name, entry in browser_setup.pinned_files().items():
        lines.append(f'mkdir -p "$(dirname node_modules/{entry["from"]})"; cp "{runtime / name}" "node_modules/{entry["from"]}"')
    monkeypatch.setenv("PATH", fake_npm(tmp_path / "bin", "\n".join(lines)))

    setup(tmp_path / "devices", Silent())

    assert not wrong_file(runtime_folder(tmp_path / "devices"))
    assert [path.name for path in (tmp_path / "devices").iterdir()] == [runtime_folder().name]
    monkeypatch.setenv("PATH", "")
    setup(tmp_path / "devices", Silent())  # all is there: npm is not asked for


def test_set_up_without_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'echo "npm error code ENOTFOUND" >&2; echo "npm error network request to https://registry failed" >&2; exit 1'
    monkeypatch.setenv("PATH", fake_npm(tmp_path / "bin", script))

    with pytest.raises(DeviceError, match="network request to https://registry failed"):
        setup(tmp_path / "devices", Silent())

    assert not list((tmp_path / "devices").iterdir())


def test_set_up_refuses_other_files(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        f'mkdir -p "$(dirname node_modules/{e["from"]})"; echo > "node_modules/{e["from"]}"' for e in browser_setup.pinned_files().values()
    ]
    monkeypatch.setenv("PATH", fake_npm(tmp_path / "bin", "\n".join(lines)))

    with pytest.raises(DeviceError, match="is not the file that is pinned"):
        setup(tmp_path / "devices", Silent())


def test_lock_and_pins_name_the_same_version() -> None:
    folder = browser_setup.resource("devices") / "browser"
    lock = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))

    assert lock["packages"]["node_modules/onnxruntime-web"]["version"] == browser_setup.runtime_version()
    assert load_profile("browser-wasm").runtime.version == browser_setup.runtime_version()
    assert all(entry.get("integrity") for name, entry in lock["packages"].items() if name)


def test_a_bundle_page_has_all_it_needs(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_page(load_profile("browser-wasm"))
    assert not has_page(load_profile("rpi4"))
    files = browser_files()

    assert {"index.html", "serve.py", "browser/page.js", "browser/driver.js", "browser/NOTICE.txt"} < set(files)
    assert all(path.is_file() for path in files.values())
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path))
    assert not has_page(load_profile("browser-wasm"))  # not before set-up
