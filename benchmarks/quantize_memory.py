"""Memory of quantizing a 3 GB model, and of calibrating with 100 and with 10,000 samples: each pass in a process of its own.

Anonymous memory is what the process itself holds: pages of mapped files are the kernel's, and given back when it is short.
It is sampled every two milliseconds. Checks run after the pass and are counted apart.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from demo import write_result

from edgepipe.store import cache_root

WIDTH, LAYERS, ROWS = 4096, 36, 36_000  # products of 67 MB each, a table of 590 MB: 3.0 GB
SPARE = 500e6
SHARE = 1.3
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "quantize-weights, 4 bits, few-bit kernels": ("quantize-weights", {"bits": 4, "kernel": "few-bits", "method": "nearest"}),
    "quantize-weights, 4 bits, float32 kernels": ("quantize-weights", {"bits": 4, "kernel": "float32", "method": "nearest"}),
    "quantize-weights, 4 bits, products only": ("quantize-weights", {"bits": 4, "method": "nearest", "operators": ["MatMul"]}),
    "quantize-dynamic, 8 bits": ("quantize-dynamic", {}),
    "quantize-dynamic, 8 bits stored in 4": ("quantize-dynamic", {"stored_bits": 4, "operators": ["MatMul"]}),
}
CALIBRATED = ("quantize-static", {})
COUNTS = (100, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=4, metavar=("PASS", "OPTIONS", "MODEL", "DATA"), help="run one pass and print its figures")
    parser.add_argument("--only", help="rows whose name holds this")
    parser.add_argument("--layers", type=int, default=LAYERS, help="products in the large model")
    arguments = parser.parse_args()
    if arguments.child:
        name, options, model, data = arguments.child
        print(json.dumps(one_pass(name, json.loads(options), Path(model), data)))
        return
    wanted = arguments.only or ""
    folder = Path(tempfile.mkdtemp(dir=cache_root(), prefix="quantize-memory-"))
    try:
        rows = large_rows(folder / "large", wanted, arguments.layers) + calibration_rows(folder / "calibrated", wanted)
    finally:
        shutil.rmtree(folder)
    lines = ["| pass | model, MB | largest tensor, MB | limit, MB | peak, MB | its checks, MB | pass, s | checks, s |", "|---" * 8 + "|"]
    for row in rows:
        figures = [row["bytes"], row["largest"], row["limit"], row["peak"], row["checks_peak"]]
        shown = [f"{figure / 1e6:,.0f}" if figure else "–" for figure in figures]
        lines.append(f"| {row['what']} | " + " | ".join(shown) + f" | {row['seconds']:.0f} | {row['checks_seconds']:.0f} |")
    if not arguments.only and arguments.layers == LAYERS:
        write_result("quantize_memory", "python benchmarks/quantize_memory.py", "\n".join(lines), rows)
    else:
        print("\n".join(lines))


def large_rows(folder: Path, wanted: str, layers: int) -> list[dict[str, Any]]:
    chosen = {what: each for what, each in LARGE.items() if wanted in what}
    if not chosen:
        return []
    folder.mkdir()
    largest = write_large(folder, layers)
    rows = []
    for what, (name, options) in chosen.items():
        read = WIDTH * WIDTH * 4 if options.get("operators") == ["MatMul"] else largest
        found = in_a_process(name, options, folder, "")
        rows.append({"what": what, "bytes": size_of(folder), "largest": read, "limit": SHARE * read + SPARE, **found})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def calibration_rows(folder: Path, wanted: str) -> list[dict[str, Any]]:
    rows = []
    for count in COUNTS:
        what = f"quantize-static, {count:,} samples"
        if wanted in what:
            model = folder / str(count)
            model.mkdir(parents=True)
            write_small(model, count)
            found = in_a_process(CALIBRATED[0], {**CALIBRATED[1], "samples": count}, model, str(model / "samples.npz"))
            rows.append({"what": what, "bytes": (model / "model.onnx").stat().st_size, "largest": 0, "limit": 0, **found})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def write_large(folder: Path, layers: int) -> int:
    """Tokens → table → `layers` products of tanh → outputs, weights in an external file written as it is made. Bytes of the
    largest tensor."""
    from onnx import TensorProto, helper, save_model

    rng = np.random.default_rng(0)
    block = (rng.standard_normal((WIDTH, WIDTH), np.float32) / np.float32(WIDTH**0.5)).astype(np.float32)
    nodes, tensors, value = [helper.make_node("Gather", ["table", "tokens"], ["h0"], name="embed")], [], "h0"
    with (folder / "weights.bin").open("wb") as out:
        for name, count in (("table", ROWS), *((f"w{index}", WIDTH) for index in range(layers))):
            start = out.tell()
            for row in range(0, count, WIDTH):
                shifted = np.roll(block, int(rng.integers(WIDTH)), axis=1)[: min(WIDTH, count - row)]
                out.write(np.ascontiguousarray(shifted).tobytes())
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[count, WIDTH], data_location=TensorProto.EXTERNAL)
            for key, held in (("location", "weights.bin"), ("offset", start), ("length", out.tell() - start)):
                tensor.external_data.add(key=key, value=str(held))
            tensors.append(tensor)
    for index in range(layers):
        nodes += [
            helper.make_node("MatMul", [value, f"w{index}"], [f"p{index}"], name=f"product{index}"),
            helper.make_node("Tanh", [f"p{index}"], [f"h{index + 1}"], name=f"tanh{index}"),
        ]
        value = f"h{index + 1}"
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "sequence"])
    output = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", "sequence", WIDTH])
    graph = helper.make_graph(nodes, "large", [tokens], [output], tensors)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    return ROWS * WIDTH * 4


def write_small(folder: Path, samples: int) -> None:
    """Convolutions and a product, and that many samples: what calibration would keep of them is 0.6 MB a sample."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    rng = np.random.default_rng(0)
    shapes = {"c0": (32, 3, 3, 3), "c1": (64, 32, 3, 3), "c2": (64, 64, 3, 3)}
    tensors = [numpy_helper.from_array((rng.standard_normal(s) / np.prod(s[1:]) ** 0.5).astype(np.float32), n) for n, s in shapes.items()]
    tensors.append(numpy_helper.from_array(rng.standard_normal((64, 10)).astype(np.float32), "head"))
    nodes, value = [], "image"
    for name in shapes:
        nodes += [
            helper.make_node("Conv", [value, name], [f"{name}_out"], name=f"conv_{name}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"{name}_out"], [f"{name}_relu"], name=f"relu_{name}"),
        ]
        value = f"{name}_relu"
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "head"], ["scores"], name="head"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 28, 28])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "small", [image], [scores], tensors)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    np.savez(folder / "samples.npz", image=rng.standard_normal((samples, 1, 3, 28, 28), np.float32))


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def in_a_process(name: str, options: dict[str, Any], model: Path, data: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, json.dumps(options), str(model), data]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Sampled:
    """The peak of this process's anonymous memory while it is entered."""

    def __enter__(self) -> Sampled:
        self.peak, self._done = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, anonymous())

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def anonymous() -> int:
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def one_pass(name: str, options: dict[str, Any], model: Path, data: str) -> dict[str, Any]:
    """Run the pass as the worker does, then its checks."""
    from edgepipe.checks import run_checks
    from edgepipe.config import Data, Task
    from edgepipe.intake import find_source, make_artifact
    from edgepipe.passes import get_pass
    from edgepipe.profile import host_profile
    from edgepipe.tasks import load_task
    from edgepipe.worker_context import Job, WorkerContext

    spec, given = get_pass(name), Data(calibration=data) if data else Data()
    before = make_artifact(find_source(str(model / "model.onnx")), [], load_task(Task(name="fidelity")), (), given, None)
    facts = {fact: host_profile().facts().get(fact) for fact in ("cpu.arch", "cpu.isa")}
    with tempfile.TemporaryDirectory(dir=model.parent) as workdir:
        job = Job(name, options, before, Path(workdir), given, load_task(Task(name="fidelity")).columns, facts, {}, 1)
        ctx, checked = WorkerContext(job, spec, io.BytesIO()), spec.options.model_validate(options)
        started = time.perf_counter()
        with Sampled() as own:
            after = spec.function(before, checked, ctx)
        middle = time.perf_counter()
        with Sampled() as checks:
            results = run_checks(spec, before, after, checked, ctx)
        assert all(result.held for result in results)
        return {
            "peak": own.peak,
            "checks_peak": checks.peak,
            "seconds": middle - started,
            "checks_seconds": time.perf_counter() - middle,
            "bytes_after": after.model.size_bytes,
        }


if __name__ == "__main__":
    main()
