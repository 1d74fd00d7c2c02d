"""Sums of two int8 products in 16 bits: found as they happen on x86 without VNNI, in the nodes where they do, and nowhere else."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgepipe.config import Data
from edgepipe.quantization import saturation
from edgepipe.quantization.saturation import LIMIT, full_range_codes, saturations
from edgepipe.quantization.sites import Site, find_sites
from edgepipe.quantization.static import Scale
from edgepipe.quantization.weights8 import Rounding
from edgepipe.worker import run_job
from tests.onnx_models import make_model
from tests.passes.running import artifact_of, initializers, job_for
from tests.quantization.graphs import graph_of

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact

OLD_PC = {"cpu.arch": "x86_64", "cpu.isa": ("avx2", "fma")}
PI = {"cpu.arch": "aarch64", "cpu.isa": ("asimd",)}


def value(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def two_products(first: np.ndarray, second: np.ndarray) -> Any:
    """x [n, k] → y: `first`, Relu, `second`."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    weights = {"w1": first.astype(np.float32), "w2": second.astype(np.float32)}
    return make_model(nodes, [value("x", "n", len(first))], [value("y", "n", second.shape[1])], weights)


def one_convolution(weight: np.ndarray, **attributes: Any) -> Any:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)
    channels = weight.shape[1] * attributes.get("group", 1)
    return make_model([node], [value("x", "n", channels, "h", "w")], [value("y", "n", len(weight), "a", "b")], {"w": weight})


def found_in(folder: Path, model: Any, feeds: list[dict[str, np.ndarray]], **settings: Any) -> dict[str, saturation.Saturation]:
    graph = graph_of(folder, model)
    return saturations(graph, folder / "model.onnx", find_sites(graph), settings.pop("rounding", Rounding()), feeds, **settings)


def pair_sums(rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Sums of neighbouring products, [m, k / 2, n], from rows [m, k] of uint8 and codes [k, n] of int8."""
    rows, codes = (each.astype(np.int64) for each in (rows, codes))
    if len(codes) % 2:
        rows, codes = np.pad(rows, ((0, 0), (0, 1))), np.pad(codes, ((0, 1), (0, 0)))
    products = rows[:, :, None] * codes[None]
    return np.asarray(products[:, 0::2] + products[:, 1::2])


# --- what is counted


@given(k=st.integers(1, 9), n=st.integers(1, 5), seed=st.integers(0, 1000))
def test_share_and_largest_are_those_of_every_sum(tmp_path_factory: pytest.TempPathFactory, k: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.choice([-1.0, -0.9, 0.3, 0.9, 1.0], (k, n))
    model = make_model([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [value("x", "m", k)], [value("y", "m", n)],
                       {"w": weight.astype(np.float32)})  # fmt: skip
    runs = [rng.integers(0, 256, (3, k)).astype(np.float32) for _ in range(3)]
    scales = {"x": Scale(1.0, 0)}

    found = found_in(tmp_path_factory.mktemp("sums"), model, [{"x": run} for run in runs], scales=scales)

    codes = np.rint(weight / np.abs(weight).max(0) * 127).astype(int)
    sums = np.abs(np.concatenate([pair_sums(run.astype(int), codes) for run in runs]))
    worst = pair_sums(np.full((1, k), 255), codes.clip(min=0)), pair_sums(np.full((1, k), 255), -codes.clip(max=0))
    could = max(each.max() for each in worst) > LIMIT
    assert set(found) == ({"product"} if could else set())
    if could:
        assert found["product"].share == pytest.approx((sums > LIMIT).mean())
        if sums.max() > LIMIT:
            assert found["product"].largest == sums.max()


def test_only_the_node_whose_neighbours_are_large_is_found(tmp_path: Path) -> None:
    apart, together = np.zeros((8, 4)), np.zeros((4, 2))
    apart[::2], together[:2] = 1, 1
    found = found_in(tmp_path, two_products(apart, together), [{"x": np.ones((1, 8), np.float32)}])
    assert list(found) == ["second"]
    assert found["second"].near
    assert (found["second"].largest, found["second"].share) == (2 * 255 * 127, 0.5)


def test_neighbours_are_rows_two_by_two(tmp_path: Path) -> None:
    weight = np.zeros((4, 1))
    weight[1:3] = 1  # rows 1 and 2 belong to two pairs
    assert found_in(tmp_path, two_products(weight, np.ones((1, 1))), [{"x": np.ones((1, 4), np.float32)}]) == {}


@pytest.mark.parametrize(("second", "near", "share"), [(0.1, False, 0.0), (0.35, True, 0.0), (0.9, True, 0.5)])
def test_activations_decide_whether_large_weights_saturate(second: float, near: bool, share: float, tmp_path: Path) -> None:
    weight = np.array([[1.0], [1.0], [0.0], [0.0]])
    found = found_in(tmp_path, two_products(weight, np.ones((1, 1))), [{"x": np.array([[0.6, second, 1, 0]], np.float32)}])
    assert (found["first"].near, found["first"].share) == (near, share)


def test_a_sum_near_the_limit_counts_as_one_beyond_it() -> None:
    beyond, near, far = (saturation.Saturation(share, largest) for share, largest in ((0.1, 40_000), (0.0, 30_000), (0.0, 26_000)))
    assert [one.near for one in (beyond, near, far)] == [True, True, False]
    assert "10 %" in beyond.reason and "40,000" in beyond.reason and "near" in near.reason


def test_uint8_weights_and_seven_bits_never_saturate(tmp_path: Path) -> None:
    model = two_products(np.ones((2, 1)), np.ones((1, 1)))
    feeds = [{"x": np.ones((1, 2), np.float32)}]
    assert found_in(tmp_path / "asymmetric", model, feeds, rounding=Rounding(symmetric=False)) == {}
    codes = Rounding(reduced=frozenset({"first"})).grid(find_sites(graph_of(tmp_path / "graph", model))["first"]).highest
    assert 2 * 255 * codes <= LIMIT < 2 * 255 * (codes + 1)


def test_products_in_branches_are_seen(tmp_path: Path) -> None:
    graphs = [
        helper.make_graph([helper.make_node("MatMul", ["x", weight], ["z"], name=weight)], weight, [], [value("z", "n", 1)])
        for weight in ("taken", "never")
    ]
    node = helper.make_node("If", ["sure"], ["y"], name="if", then_branch=graphs[0], else_branch=graphs[1])
    inputs = [value("x", "n", 2), helper.make_tensor_value_info("sure", TensorProto.BOOL, [])]
    weights = {"taken": np.ones((2, 1), np.float32), "never": np.ones((2, 1), np.float32)}
    model = make_model([node], inputs, [value("y", "n", 1)], weights)
    found = found_in(tmp_path, model, [{"x": np.zeros((1, 2), np.float32), "sure": np.array(True)}])
    assert not found["taken"].near


def test_more_pairs_than_are_watched_are_taken_as_saturating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saturation, "WATCHED_PAIRS", 3)
    found = found_in(tmp_path, two_products(np.ones((8, 2)), np.ones((2, 2))), [{"x": np.zeros((1, 8), np.float32)}])
    assert found["first"].near and "too many" in found["first"].reason
    assert not found["second"].near


def test_four_stored_bits_are_seen_as_the_kernel_sees_them(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, two_products(np.ones((32, 2)), np.ones((2, 2))))
    codes = full_range_codes(np.ones((32, 2), np.float32), Rounding(stored_bits=4), find_sites(graph)["first"])
    assert codes.dtype == np.int8 and np.abs(codes).max() > 100


# --- convolutions


@given(
    group=st.sampled_from([1, 2, 3]), channels=st.integers(1, 3), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2), dilation=st.integers(1, 2), pads=st.lists(st.integers(0, 2), min_size=4, max_size=4), seed=st.integers(0, 99),
)  # fmt: skip
def test_patches_times_codes_are_the_convolution(
    group: int, channels: int, kernel: tuple[int, int], stride: int, dilation: int, pads: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (2 * group, channels, *kernel)).astype(np.float32)
    x = rng.integers(0, 256, (2, channels * group, 8, 7)).astype(np.uint8)
    attributes = {"group": group, "strides": [stride] * 2, "dilations": [dilation] * 2, "pads": pads}
    model = one_convolution(weight, **attributes)
    node, zero = model.graph.node[0], 7
    site = Site("conv", "Conv", "convolution", "w", "x", "y", weight.shape, int(np.prod(weight.shape[1:])), len(weight))
    codes = saturation.channels_innermost(weight.reshape(site.n, site.k).T, site)
    feeds = {"x": x.astype(np.float32) - zero}
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)

    for number in range(group):
        rows = np.concatenate([rows for each, rows in saturation.patches(x, zero, node, site) if each == number])
        columns = codes[:, 2 * number : 2 * number + 2]
        sums = (rows.astype(np.float64) - zero) @ columns
        assert np.array_equal(sums, np.moveaxis(expected[:, 2 * number : 2 * number + 2], 1, -1).reshape(-1, 2))


@pytest.mark.parametrize("automatic", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding_gives_the_runtimes_own_number_of_sums(automatic: str, tmp_path: Path) -> None:
    weight = np.ones((1, 2, 2, 2), np.float32)
    model = one_convolution(weight, auto_pad=automatic, strides=[2, 1])
    x = np.full((1, 2, 5, 5), 255, np.float32)
    x[..., 0] = 0
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    found = found_in(tmp_path, model, [{"x": x}], scales={"x": Scale(1.0, 0)})
    assert found["conv"].share == pytest.approx(expected.sum() / (255 * 2) / (4 * expected.size))


def test_depthwise_and_dynamic_convolutions_add_in_32_bits(tmp_path: Path) -> None:
    feeds = [{"x": np.ones((1, 2, 4, 4), np.float32)}]
    plain = one_convolution(np.ones((1, 2, 1, 1), np.float32))
    depthwise = one_convolution(np.ones((2, 1, 1, 2), np.float32), group=2)
    assert found_in(tmp_path / "static", plain, feeds, scales={"x": Scale(1 / 255, 0)})["conv"].near
    assert found_in(tmp_path / "dynamic", plain, feeds) == {}
    assert found_in(tmp_path / "depthwise", depthwise, feeds, scales={"x": Scale(1 / 255, 0)}) == {}


# --- the passes


def guilty_second(folder: Path) -> Path:
    """A model in which only `second` saturates."""
    apart, together = np.zeros((8, 8)), np.zeros((8, 8))
    apart[::2], together[:2] = 1, 1
    folder.mkdir(parents=True)
    onnx.save(two_products(apart, together), folder / "model.onnx")
    return folder


def quantized(name: str, folder: Path, facts: dict[str, Any], data: Data | None = None, **options: Any) -> Artifact:
    artifact = artifact_of(guilty_second(folder / "model"), "fidelity")
    (folder / "work").mkdir()
    job = dataclasses.replace(job_for(name, artifact, folder / "work", data=data, **options), facts=facts)
    result: Artifact = run_job(job, io.BytesIO()).value
    return result


@pytest.fixture
def inputs(tmp_path: Path) -> Data:
    path = tmp_path / "inputs"
    path.mkdir()
    for number in range(8):
        np.savez(path / f"{number}.npz", x=np.random.default_rng(number).uniform(0.5, 1, (1, 8)).astype(np.float32))
    return Data(calibration=str(path))


@pytest.mark.parametrize("name", ["quantize-dynamic", "quantize-static"])
def test_only_nodes_that_saturate_get_seven_bits_and_are_named(name: str, inputs: Data, tmp_path: Path) -> None:
    after = quantized(name, tmp_path / "old", OLD_PC, inputs)

    weights = initializers(after)
    assert np.abs(weights["w1_quantized"]).max() == 127
    assert np.abs(weights["w2_quantized"]).max() == 64
    assert list(after.program["reduced_range"]) == ["second"]
    assert "16 bits" in after.program["reduced_range"]["second"]


def test_without_samples_every_node_that_could_saturate_gets_seven_bits(tmp_path: Path) -> None:
    after = quantized("quantize-dynamic", tmp_path / "old", OLD_PC)

    assert set(after.program["reduced_range"]) == {"first", "second"}
    assert "no samples" in after.program["reduced_range"]["first"]


def test_full_range_where_sums_are_wide_or_the_user_says_so(inputs: Data, tmp_path: Path) -> None:
    for name, facts, options in (("pi", PI, {}), ("told", OLD_PC, {"reduce_range": False})):
        after = quantized("quantize-dynamic", tmp_path / name, facts, inputs, **options)
        assert "reduced_range" not in after.program
        assert np.abs(initializers(after)["w2_quantized"]).max() == 127
