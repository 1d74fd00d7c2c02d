"""What trains is what will be stored: rounding in torch gives the values of rounding in numpy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgepipe.quantization.fake_quantize import bounded, fake_quantize, fake_quantize_activation, learnable_steps
from edgepipe.quantization.fake_quantized_model import projected
from edgepipe.quantization.rounding import Grid, quantize
from edgepipe.quantization.rounding.grid import TINIEST

GRIDS = st.builds(
    Grid, bits=st.sampled_from([2, 3, 4, 8]), symmetric=st.booleans(), group_size=st.sampled_from([-1, 0, 4, 32]), reduced=st.booleans()
)
MATRICES = arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 40)), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
)


@given(MATRICES, GRIDS)
def test_values_are_those_of_rounding_in_numpy(weight: np.ndarray, grid: Grid) -> None:
    expected = quantize("nearest", weight.T, grid).dequantized().T

    np.testing.assert_array_equal(fake_quantize(torch.from_numpy(weight), grid).numpy(), expected)


@given(MATRICES, GRIDS)
def test_projected_weights_stay_where_they_are_when_rounded_again(weight: np.ndarray, grid: Grid) -> None:
    values = projected(weight.T, grid, name="w")

    np.testing.assert_array_equal(quantize("nearest", values, grid).dequantized(), values)


@given(MATRICES, st.sampled_from([2, 3, 4, 8]), st.sampled_from([-1, 0, 4, 32]), st.floats(0.001, 10))
def test_learned_steps_leave_nothing_for_a_later_rounding(weight: np.ndarray, bits: int, group_size: int, factor: float) -> None:
    """Whatever training made of the steps, within their bounds."""
    grid, matrix = Grid(bits, True, group_size), torch.from_numpy(weight)
    steps = bounded(learnable_steps(matrix, grid) * factor, matrix, grid)

    values = fake_quantize(matrix, grid, steps).numpy()

    again = quantize("nearest", values.T, grid).dequantized().T
    np.testing.assert_allclose(again, values, rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_pass_rounding_as_if_it_were_not_there(symmetric: bool) -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = torch.arange(24.0).reshape(3, 8)

    (fake_quantize(weight, Grid(4, symmetric, 4)) * wanted).sum().backward()

    torch.testing.assert_close(weight.grad, wanted)


def test_gradient_of_a_learned_step_is_that_of_the_paper() -> None:
    """Equation 3: −w/s + round(w/s) within the range, ±highest outside."""
    weight, steps = torch.tensor([[0.3, -1.2, 9.0, -9.0]]), torch.tensor([[[1.0]]], requires_grad=True)

    fake_quantize(weight, Grid(3, True, 0), steps).sum().backward()

    expected = (0 - 0.3) + (-1 + 1.2) + 3 - 3
    torch.testing.assert_close(steps.grad, torch.tensor([[[expected]]]))


@given(arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)))
@example(np.array([np.finfo(np.float32).tiny], np.float32))
def test_activations_are_rounded_as_the_runtime_rounds_them(values: np.ndarray) -> None:
    import onnx
    from onnx import TensorProto, helper
    from onnxruntime import InferenceSession

    kinds = {"x": TensorProto.FLOAT, "y": TensorProto.FLOAT}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    infos = {name: helper.make_tensor_value_info(name, kind, ["n"]) for name, kind in kinds.items()}
    graph = helper.make_graph(nodes, "g", [infos["x"]], [infos["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    expected = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": values})[0]

    got = fake_quantize_activation(torch.from_numpy(values)).numpy()

    span = float(max(values.max(), 0) - min(values.min(), 0))
    step = span / 255 if span / 255 >= TINIEST else 2.01 * span  # a step without a reciprocal: everything may become zero
    assert np.abs(got - expected).max() <= step * 1.001  # a value on the half of a step may fall either way
    assert (np.abs(got - expected) > step / 2).mean() <= 0.5
