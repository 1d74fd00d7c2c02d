"""The kernels of x86 without VNNI, under emulation: their sums saturate exactly where `edgepipe.quantization.saturation` says."""

from __future__ import annotations

import json
import platform
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe.emulation import emulated, emulator_env
from edgepipe.profile import load_profile
from edgepipe.quantization.saturation import LIMIT, channels_innermost, patches
from edgepipe.quantization.sites import Site
from tests.onnx_models import make_model
from tests.quantization.test_saturation import pair_sums, value

if TYPE_CHECKING:
    from pathlib import Path

RUN = """
import json, sys
import numpy as np, onnxruntime
results = []
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path + ".onnx", providers=["CPUExecutionProvider"])
    results.append(session.run(None, dict(np.load(path + ".npz")))[0].tolist())
print(json.dumps(results))
"""


def saturated_product(rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.asarray(pair_sums(rows, codes).clip(-LIMIT - 1, LIMIT).sum(1))


def integer_product(name: str, folder: Path, rows: np.ndarray, codes: np.ndarray) -> Path:
    node = helper.make_node("MatMulInteger", ["a", "w", "zero", "other"], ["y"])
    other = np.zeros(codes.shape[1], codes.dtype)
    inputs = [helper.make_tensor_value_info("a", TensorProto.UINT8, rows.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT32, (len(rows), codes.shape[1]))]
    onnx.save(make_model([node], inputs, outputs, {"w": codes, "zero": np.array(0, np.uint8), "other": other}), folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", a=rows)
    return folder / name


def integer_convolution(name: str, folder: Path, x: np.ndarray, weight: np.ndarray, scale: float, **attributes: Any) -> Path:
    """QLinearConv, its result as float32 and not yet scaled."""
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    nodes = [helper.make_node("QLinearConv", names, ["q"], **attributes), helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT)]
    constants = {
        "xs": np.array(1, np.float32), "xz": np.array(0, np.uint8), "w": weight, "ws": np.array(1, np.float32), "wz": np.array(0, np.int8),
        "ys": np.array(scale, np.float32), "yz": np.array(128, np.uint8),
    }  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)]
    onnx.save(make_model(nodes, inputs, [value("y", *"nchw")], constants), folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", x=x)
    return folder / name


@pytest.mark.skipif((platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="emulation starts from Linux on x86-64")
def test_an_old_pcs_kernels_saturate_exactly_where_it_is_foretold(emulation: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, codes = rng.integers(100, 256, (5, 37)).astype(np.uint8), rng.integers(60, 128, (37, 19)).astype(np.int8)
    codes[:, ::2] *= -1
    paths = [
        integer_product("row", tmp_path, rows[:1], codes),
        integer_product("rows", tmp_path, rows, codes),
        integer_product("unsigned", tmp_path, rows, codes.view(np.uint8)),
    ]
    expected: list[np.ndarray] = [saturated_product(rows[:1], codes), saturated_product(rows, codes)]
    expected.append(rows.astype(np.int64) @ codes.view(np.uint8).astype(np.int64))
    for channels, outputs, group in ((8, 16, 1), (3, 5, 1), (6, 6, 2), (4, 4, 4)):
        x = rng.integers(100, 256, (1, channels, 6, 5)).astype(np.uint8)
        weight = rng.integers(-127, 128, (outputs, channels // group, 3, 2)).astype(np.int8)
        weight[0] = 127
        site = Site("c", "Conv", "convolution", "w", "x", "y", weight.shape, weight[0].size, outputs)
        node = helper.make_node("Conv", ["x", "w"], ["y"], group=group)
        flat, each = channels_innermost(weight.reshape(outputs, -1).T, site), outputs // group
        depthwise = group == channels == outputs
        parts = []
        for number in range(group):
            rows_of = np.concatenate([part for which, part in patches(x, 0, node, site) if which == number])
            columns = flat[:, number * each : (number + 1) * each]
            parts.append(rows_of.astype(np.int64) @ columns.astype(np.int64) if depthwise else saturated_product(rows_of, columns))
        sums = np.concatenate(parts, axis=1).T.reshape(1, outputs, 4, 4)
        scale = float(np.abs(sums).max() / 120)
        paths.append(integer_convolution(f"conv{channels}{group}", tmp_path, x, weight, scale, group=group, kernel_shape=[3, 2]))
        expected.append(np.clip(np.rint(sums / np.float32(scale)) + 128, 0, 255))
    script = tmp_path / "run.py"
    script.write_text(RUN)
    old_pc = emulated(load_profile("x86-avx2"))

    done = subprocess.run(
        old_pc.run(script, *map(str, paths)), env=emulator_env(old_pc), capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 0, done.stderr
    for path, there, foretold in zip(paths, json.loads(done.stdout), expected, strict=True):
        assert np.abs(np.array(there) - foretold).max() <= (1 if path.name.startswith("conv") else 0), path.name
