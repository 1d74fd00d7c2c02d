"""Standing in for a CPU whose int8 products do not saturate: sums are those of integers, plain or optimised."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe.driver import driver_module
from edgepipe.profile import host_profile, load_profile, needs_exact_sums
from tests.onnx_models import make_model


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("operator", ["MatMulInteger", "MatMulIntegerToFloat"])
def test_sums_over_sixteen_bits_are_exact(operator: str, optimise: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(100, 128, (64, 16)).astype(np.int8)
    values = rng.integers(200, 256, (4, 64)).astype(np.uint8)
    if operator == "MatMulInteger":
        nodes = [helper.make_node(operator, ["x", "w"], ["y"])]
        kind, weights = TensorProto.INT32, {"w": weight}
    else:
        nodes = [helper.make_node(operator, ["x", "w", "one", "one"], ["y"], domain="com.microsoft")]
        kind, weights = TensorProto.FLOAT, {"w": weight, "one": np.float32(1)}
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, (4, 64))]
    model = make_model(nodes, inputs, [helper.make_tensor_value_info("y", kind, (4, 16))], {})
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())

    session = driver_module().open_session(model.SerializeToString(), optimise=optimise, exact=True)

    np.testing.assert_array_equal(session.run(None, {"x": values})[0], values.astype(np.int64) @ weight.astype(np.int64))


@pytest.mark.parametrize(
    ("here", "target", "exact"),
    [
        (("avx2",), "rpi4", True), (("avx2",), "browser-wasm", True), (("avx2",), "x86-vnni", True), (("avx2",), "x86-avx2", False),
        (("avx2",), "host", False), (("avx2", "avx_vnni"), "rpi4", False), (("avx2", "avx_vnni"), "x86-avx2", False),
    ],
)  # fmt: skip
def test_only_where_this_machine_saturates_and_the_target_does_not(
    here: tuple[str, ...], target: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = host_profile()
    cpu = profile.cpu.model_copy(update={"arch": "x86_64", "isa": here})
    monkeypatch.setattr("edgepipe.profile.host_profile", lambda: profile.model_copy(update={"cpu": cpu}))

    assert needs_exact_sums(load_profile(target)) is exact
