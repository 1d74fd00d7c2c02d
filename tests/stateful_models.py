"""Small ONNX models with state, and audio for them."""

from __future__ import annotations

import wave
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

from tests.onnx_models import make_model

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HIDDEN = 40, 8


def recurrence(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"w": (WIDTH, HIDDEN), "u": (HIDDEN, HIDDEN), "v": (HIDDEN, 1)}
    return {name: (rng.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}


def recurrent(*, state: str = "state", after: str = "stateN", gain: bool = False, width: int = WIDTH) -> Any:
    """x [1, width], state [1, 8] (and gain []) → y [1, 1], stateN = tanh(gain · x·w + state·u)."""
    weights = (
        recurrence()
        if width == WIDTH
        else {**recurrence(), "w": np.random.default_rng(1).standard_normal((width, HIDDEN)).astype(np.float32)}
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["plain"]),
        helper.make_node("Mul", ["plain", "gain"], ["xw"]) if gain else helper.make_node("Identity", ["plain"], ["xw"]),
        helper.make_node("MatMul", [state, "u"], ["su"]),
        helper.make_node("Add", ["xw", "su"], ["sum"]),
        helper.make_node("Tanh", ["sum"], [after]),
        helper.make_node("MatMul", [after, "v"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["y"]),
    ]
    shapes: dict[str, list[Any]] = {"x": [1, width], state: [1, HIDDEN], "y": [1, 1], after: [1, HIDDEN]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    inputs = [values["x"], values[state], *([helper.make_tensor_value_info("gain", TensorProto.FLOAT, [])] if gain else [])]
    return make_model(nodes, inputs, [values["y"], values[after]], weights)


def run_by_hand(steps: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """y of every step [steps, 1, 1], computed without a runtime."""
    weights, state, found = recurrence(), np.zeros((1, HIDDEN), np.float32), []
    for step in steps:
        state = np.tanh(gain * step @ weights["w"] + state @ weights["u"])
        found.append(1 / (1 + np.exp(-(state @ weights["v"]))))
    return np.stack(found)


def write_wav(path: Path, sound: np.ndarray, rate: int = 16000, channels: int = 1, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as opened:
        opened.setparams((channels, width, rate, 0, "NONE", ""))
        opened.writeframes(np.round(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return path
