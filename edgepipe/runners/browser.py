"""The browser runner: a page in headless Chromium that runs artifacts with onnxruntime-web, a browser for each.

Text is encoded in the page by the bundle's own driver.js, so its tokenizer is judged too. Images and tensors are
encoded here by driver.py and go to the page as tensors; their end-to-end time is the sum of both.

Memory is the most that the page held, the browser itself left out: WebAssembly's memory, which never shrinks, and the
script heap (objects, DOM, array buffers), which holds the model's files while the session is made.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgepipe.browser_setup import checked_runtime, runtime_folder, runtime_version
from edgepipe.chromium import WHERE, Page, chromium_version
from edgepipe.driver import driver_module
from edgepipe.errors import DeviceError, EdgepipeError, ResourceError, UsageError
from edgepipe.importing import import_file
from edgepipe.machine import cpu_model, usable_cores
from edgepipe.resources import resource
from edgepipe.runners import Proof
from edgepipe.runners.agent import AgentPrediction, arrays, pack, wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.profile import Profile
    from edgepipe.readers import Sample

OPEN_S, RUN_S = 300.0, 120.0
OUT_OF_MEMORY = ("bad_alloc", "out of memory", "allocation failed", "failed to allocate", "aborted(oom)", "safeintonoverflow")
NO_KERNEL = ("could not find an implementation", "is not a registered function", "no op registered")


def make(profile: Profile) -> BrowserRunner:
    return BrowserRunner(profile)


class BrowserRunner:
    """Runs artifacts where they lie, in the browser of this machine.

    WebAssembly computes the same on every CPU, so outputs and memory are the target's whatever this machine is. That
    ends with relaxed SIMD, whose results are the CPU's. Times are the target's only on the CPU that the profile names.
    """

    name = "browser"
    emulates = False

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self.threads = min(profile.runtime.threads, usable_cores())

    @cached_property
    def device(self) -> str:
        """The runtime by its files, the browser by its version, and this machine's CPU: times are its own."""
        return f"{runtime_folder().name} {chromium_version()} {cpu_model()}"

    def proof(self, axis: str) -> Proof:
        note = f"in {chromium_version()}"
        if doubt := self._other_runtime():
            return Proof("host", doubt, note)
        if axis == "latency" and (doubt := self._other_machine()):
            return Proof("host", doubt, note)
        return Proof("measured", "", note)

    def push(self, artifact: Artifact) -> Path:
        if (kind := artifact.program["kind"]) != "single":
            raise UsageError(
                f"the browser's driver runs single models, and this program is a {kind}",
                where=f"profile {self._profile.name}",
                fix="choose a profile of another kind of device for it",
            )
        return artifact.root

    def open(self, folder: Path, *, threads: int, optimise: bool = True) -> BrowserModel:
        return BrowserModel(folder, threads=threads, optimise=optimise)

    def close(self) -> None: ...

    def _other_runtime(self) -> str:
        """Why outputs are not the target's."""
        name, wanted = self._profile.name, self._profile.runtime
        if wanted.name != "onnxruntime-web":
            return f"{name} names {wanted.name}, and this runner drives onnxruntime-web"
        if wanted.version != runtime_version():
            return f"{name} names onnxruntime-web {wanted.version}, and this runner drives {runtime_version()}"
        if "wasm_relaxed_simd" in self._profile.cpu.isa:
            return f"{name} names relaxed SIMD, which onnxruntime-web {runtime_version()} does not use"
        return ""

    def _other_machine(self) -> str:
        """Why times are not the target's."""
        wanted = self._profile.cpu.model
        if not _words(wanted) <= _words(cpu_model()):
            return f"taken in the browser of this machine ({cpu_model()}); {self._profile.name} names {wanted}"
        if self.threads < self._profile.runtime.threads:
            return f"taken with {self.threads} of {self._profile.runtime.threads} threads"
        return ""


def _words(model: str) -> set[str]:
    """A CPU's name without trade marks and order: Intel(R) Core(TM) i5-8250U → intel, core, i5-8250u."""
    return set(re.sub(r"\((r|tm)\)", "", model.lower()).split())


class BrowserModel:
    """One artifact in a page of its own, with the server that hands it its files."""

    def __init__(self, folder: Path, *, threads: int, optimise: bool) -> None:
        artifact = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
        settings, component = artifact["program"]["preprocess"], artifact["components"][artifact["program"]["component"]]
        self._encoder: Any = None
        if settings["kind"] != "text":
            inputs = [entry["name"] for entry in component["signature"]["inputs"]]
            self._encoder = driver_module().ENCODERS[settings["kind"]](str(folder / "assets"), settings, inputs)
        self._peak_bytes = 0
        self._files = _Files(folder)
        try:
            self.page = Page()
        except BaseException:
            self._files.close()
            raise
        try:
            self.page.go(f"{self._files.address}agent.html")
            self.page.evaluate("(async () => { while (!globalThis.agent) await new Promise((go) => setTimeout(go, 5)); })()", doing="load")
            opened = self._ask({"do": "open", "base": "artifact/", "threads": threads, "optimise": optimise}, OPEN_S)
            if opened["threads"] != threads:
                raise DeviceError(f"the page got {opened['threads']} threads instead of {threads}", where=WHERE, fix="update Chromium")
            self._peak_bytes = self._held_bytes() + sum(file["bytes"] for file in component["files"])
        except BaseException:
            self.close()
            raise

    def predict(self, samples: Sequence[Sample]) -> list[AgentPrediction]:
        return list(self.stream(samples))

    def stream(self, samples: Sequence[Sample]) -> Iterator[AgentPrediction]:
        """Predictions one by one, each as soon as it is there; every sample has the time limit for itself."""
        for sample in samples:
            if self._encoder is None:
                yield _prediction(self._run(wire(sample)))
                continue
            start = time.perf_counter_ns()
            feeds = self._encoded([sample])
            encode_ns = time.perf_counter_ns() - start
            yield _prediction(self._run(wire({"tensors": feeds})), encode_ns)

    def batch(self, samples: Sequence[Sample], length: int | None = None) -> dict[str, np.ndarray]:
        if self._encoder is None:
            request = {"do": "batch", "samples": [wire(sample) for sample in samples], "length": length}
            return arrays(self._ask(request, RUN_S)["outputs"])
        return arrays(self._run(wire({"tensors": self._encoded(samples)}))["outputs"][0])

    def repeat(self, feeds: Mapping[str, np.ndarray], times: int) -> list[int]:
        packed = {name: pack(value) for name, value in feeds.items()}
        return list(self._ask({"do": "repeat", "feeds": packed, "times": times}, RUN_S * max(1, times))["times_ns"])

    def usage(self) -> tuple[int, float]:
        """Peak bytes that the page held, and CPU seconds of all of the browser's processes."""
        self._peak_bytes = max(self._peak_bytes, self._held_bytes())
        return self._peak_bytes, self.page.cpu_seconds

    def _held_bytes(self) -> int:
        return int(self._ask({"do": "memory"}, RUN_S)["wasm_bytes"]) + self.page.heap_bytes()

    def close(self) -> None:
        try:
            self.page.close()
        finally:
            self._files.close()

    def _encoded(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """Samples as one feed, by driver.py."""
        try:
            feeds: dict[str, np.ndarray] = self._encoder.feeds([part for sample in samples for part in self._encoder.parts(sample)])
        except Exception as error:  # whatever is wrong with a sample is told as the agent tells it
            raise DeviceError(
                f"a sample cannot be encoded: {type(error).__name__}: {error}", where=WHERE, fix="look at the sample"
            ) from error
        return feeds

    def _run(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = self._ask({"do": "predict", "samples": [sample]}, RUN_S)["results"][0]
        return result

    def _ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        answer = self.page.evaluate(f"agent.ask({json.dumps(request)})", limit_s, doing=request["do"])
        if not isinstance(answer, dict):
            raise DeviceError("the agent answered rubbish", where=WHERE, fix="run again")
        if "error" in answer:
            raise _told(request["do"], answer["error"])
        return answer


def _prediction(result: Mapping[str, Any], encode_ns: int = 0) -> AgentPrediction:
    outputs = [arrays(one) for one in result["outputs"]]
    return AgentPrediction(outputs, result["model_ns"], result["total_ns"] + encode_ns, result.get("word_starts", []))


def _told(did: str, message: str) -> EdgepipeError:
    """What the page said, as an error for a person."""
    lower = message.lower()
    what = f"the page could not {did}: {message.splitlines()[0][:500]}"
    if any(sign in lower for sign in NO_KERNEL):
        return DeviceError(what, where=WHERE, fix="choose another pass: onnxruntime-web has no kernel for that operator")
    if any(sign in lower for sign in OUT_OF_MEMORY):
        return ResourceError(f"out of memory: {what}", where=WHERE, fix="make the model smaller: a page addresses 4 GB at most")
    return DeviceError(what, where=WHERE, fix="see that the model's operators and inputs suit onnxruntime-web")


class _Files:
    """Serves the agent's page, the runtime and one artifact on a free local port, under a path that cannot be guessed."""

    def __init__(self, folder: Path) -> None:
        serve = import_file(resource("export") / "browser" / "serve.py", "edgepipe_browser_serve")
        root = f"/{secrets.token_urlsafe(16)}/"
        page = resource("devices") / "browser"

        class Handler(serve.Handler):  # type: ignore[misc, name-defined]
            places = ((f"{root}artifact/", folder), (root, page), (root, checked_runtime()))

        self._server = serve.Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}{root}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
