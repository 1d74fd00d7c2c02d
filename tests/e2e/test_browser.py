"""The bundle's page as a person uses it: served, opened in a browser, typed into, read."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgepipe.artifact import Artifact
from edgepipe.browser_page import browser_files
from edgepipe.chromium import Page
from edgepipe.driver import driver_module
from edgepipe.store import Store
from tests.browser import give_runtime

TEXT = "a good film, naïve & <b>warm</b> 👍"
READY = "(async () => { while (%s) await new Promise((go) => setTimeout(go, 10)); })()"
WAITING = "document.getElementById('form').hidden && document.getElementById('trouble').hidden"


@pytest.fixture
def bundle(onnx_artifact: Artifact, tmp_path: Path, user_cache: Path) -> Path:
    """A bundle's files as they lie in OUT."""
    give_runtime(user_cache)
    out = tmp_path / "out"
    shutil.copytree(Store(tmp_path / "store").put(onnx_artifact).model.folder.parent, out)
    for place, source in browser_files().items():
        (out / place).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, out / place)
    return out


@pytest.fixture
def page(bundle: Path) -> Iterator[Page]:
    opened = Page()
    yield opened
    opened.close()


@pytest.fixture
def address(bundle: Path) -> Iterator[str]:
    server = subprocess.Popen([sys.executable, "serve.py", "--port", "0"], cwd=bundle, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().split()[0]
    server.terminate()
    server.wait()


def change_program(bundle: Path, **changes: Any) -> None:
    data = json.loads((bundle / "artifact.json").read_text())
    data["program"] = {**data["program"], **changes}
    (bundle / "artifact.json").write_text(json.dumps(data))


def shown(page: Page, place: str) -> str:
    return str(page.evaluate(f"document.querySelector({json.dumps(place)}).innerText"))


def ask(page: Page, *texts: str) -> None:
    """Type and send, as a person does."""
    for place, text in zip(("first", "second"), texts, strict=False):
        page.evaluate(f"document.getElementById('{place}').focus()")
        page.send("Input.insertText", {"text": text})
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", {"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 2})
    page.evaluate(READY % "document.getElementById('answer').hidden && document.getElementById('trouble').hidden")


def test_page_answers_what_run_py_does(bundle: Path, page: Page, address: str, tmp_path: Path) -> None:
    page.go(address)
    page.evaluate(READY % WAITING)
    ask(page, TEXT)

    expected = driver_module().Driver(str(bundle)).answer({"text": TEXT})
    assert shown(page, ".verdict strong") == expected["label"]
    assert shown(page, ".best span") == f"{100 * expected['score']:.1f} %"
    assert shown(page, ".verdict span").endswith("ms")
    assert "threads" in shown(page, "#facts") or "one thread" in shown(page, "#facts")
    picture = tmp_path / "page.png"
    picture.write_bytes(base64.b64decode(page.send("Page.captureScreenshot")["data"]))
    assert picture.stat().st_size > 5_000


def test_page_asks_nothing_of_other_servers(page: Page, address: str) -> None:
    page.go(address)
    page.evaluate(READY % WAITING)

    asked = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")

    assert len(asked) >= 5
    assert all(name.startswith((address, "data:")) for name in asked)
    assert page.evaluate("crossOriginIsolated") is True


def test_page_compares_two_texts_for_a_twin_encoder(bundle: Path, page: Page, address: str) -> None:
    data = json.loads((bundle / "artifact.json").read_text())
    change_program(bundle, labels=[], preprocess={**data["program"]["preprocess"], "twin": True}, task="sentence-similarity")

    page.go(address)
    page.evaluate(READY % WAITING)
    ask(page, "a good film", "a bad film")

    expected = driver_module().Driver(str(bundle)).answer({"text": "a good film", "text_pair": "a bad film"})
    assert float(shown(page, ".verdict strong")) == pytest.approx(expected["similarity"], abs=1e-3)
    assert shown(page, "#go") == "Compare"


def test_page_says_what_is_wrong(bundle: Path, page: Page, address: str) -> None:
    model = next((bundle / "model").iterdir())
    model.write_bytes(model.read_bytes()[:-10])

    page.go(address)
    page.evaluate(READY % WAITING)

    assert "could not be loaded" in shown(page, "#trouble")
    assert "cut off" in shown(page, "#trouble")
    assert page.evaluate("document.getElementById('form').hidden") is True


def test_page_fits_a_phone_and_names_its_controls(page: Page, address: str) -> None:
    page.send("Emulation.setDeviceMetricsOverride", {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True})
    page.go(address)
    page.evaluate(READY % WAITING)
    ask(page, "x" * 400)

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") is True
    names = [
        node.get("name", {}).get("value", "")
        for node in page.send("Accessibility.getFullAXTree")["nodes"]
        if node["role"]["value"] in ("textbox", "button")
    ]
    assert names and all(names)


def test_server_gives_nothing_outside_the_bundle(bundle: Path, address: str) -> None:
    import http.client
    from urllib.parse import urlsplit

    (bundle.parent / "secret.txt").write_text("no")
    for path in ("/../secret.txt", "/%2e%2e/secret.txt", "/model/", "/nothing", "//etc/passwd"):
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        connection.request("GET", path)
        assert connection.getresponse().status == 404, path
        connection.close()
