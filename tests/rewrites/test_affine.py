"""Constant factors and offsets around convolutions go into their weights, and the net computes what it did."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgepipe.rewrites.affine import fold_affine
from tests.onnx_models import make_model
from tests.quantization.graphs import graph_of, inputs_of, run, written
from tests.quantization.test_qdq import CHANNELS, Net, images


def folded(model: Any, folder: Path) -> tuple[int, list[str], Any]:
    graph = graph_of(folder / "before", model)
    removed = fold_affine(graph)
    after = written(graph, folder)
    onnx.checker.check_model(after)
    return removed, [node.op_type for node in after.graph.node], after


def same(before: Any, after: Any, feeds: list[dict[str, np.ndarray]] | None = None) -> bool:
    for each in feeds or images(2):
        for ours, theirs in zip(run(after, each), run(before, each), strict=True):
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * (1 + np.abs(theirs).max())):
                return False
    return True


def per_channel(net: Net, kind: str) -> str:
    """One value, or one a channel, with or without a batch axis."""
    shape = {"scalar": (), "one": (1,), "channels": (CHANNELS, 1, 1), "batched": (1, CHANNELS, 1, 1)}[kind]
    return net.constant(1 + 0.3 * net.rng.standard_normal(shape))


@pytest.mark.parametrize("kind", ["scalar", "one", "channels", "batched"])
@pytest.mark.parametrize("operator", ["Mul", "Add"])
@pytest.mark.parametrize("group", [1, 2, CHANNELS])
@pytest.mark.parametrize("first", [True, False])
def test_what_follows_a_convolution_goes_into_it(kind: str, operator: str, group: int, first: bool, tmp_path: Path) -> None:
    net = Net()
    value = net.conv(net.add("Relu", net.conv("x", into=3)), group=group, bias=group != 2)
    constant = per_channel(net, kind)
    before = net.model(net.add(operator, *((constant, value) if first else (value, constant))))

    removed, kinds, after = folded(before, tmp_path)

    assert (removed, kinds) == (1, ["Conv", "Relu", "Conv"])
    assert same(before, after)


@pytest.mark.parametrize("kind", ["scalar", "channels", "batched"])
@pytest.mark.parametrize("operator", ["Mul", "Add"])
@pytest.mark.parametrize("group", [1, 2, CHANNELS])
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_precedes_a_convolution_goes_into_it_unless_padding_would_differ(
    kind: str, operator: str, group: int, kernel: int, tmp_path: Path
) -> None:
    net = Net()
    value = net.add(operator, net.add("Relu", net.conv("x", into=3)), per_channel(net, kind))
    before = net.model(net.conv(value, group=group, kernel=kernel), net.conv(value, kernel=kernel))

    removed, kinds, after = folded(before, tmp_path)

    assert removed == (0 if operator == "Add" and kernel == 3 else 1)
    assert (operator in kinds) is (removed == 0)
    assert same(before, after)


def test_factor_before_an_offset_is_folded_where_the_convolution_pads(tmp_path: Path) -> None:
    net = Net()
    value = net.add("Mul", net.add("Relu", net.conv("x", into=3)), net.constant(2.5))
    before = net.model(net.conv(net.add("Add", value, net.constant(0.75))))

    _, kinds, after = folded(before, tmp_path)

    assert kinds == ["Conv", "Relu", "Add", "Conv"]
    assert same(before, after)


def test_chains_are_folded_whole(tmp_path: Path) -> None:
    net = Net()
    value = net.conv("x", into=3)
    for operator in ("Mul", "Add", "Mul", "Add"):
        value = net.add(operator, value, per_channel(net, "channels"))
    before = net.model(value)

    removed, kinds, after = folded(before, tmp_path)

    assert (removed, kinds) == (4, ["Conv"])
    assert same(before, after)


def several_readers(net: Net) -> tuple[str, ...]:
    value = net.conv("x", into=3)
    return net.add("Mul", value, net.constant(2.0)), net.add("Relu", value)


def an_output(net: Net) -> tuple[str, ...]:
    value = net.conv("x", into=3)
    return net.add("Mul", value, net.constant(2.0)), value


def shared_weight(net: Net) -> tuple[str, ...]:
    value = net.add("Mul", net.conv("x", into=3, bias=False), net.constant(2.0))
    return value, net.add("Conv", "x", "constant0", pads=[1] * 4)


def by_position(net: Net) -> tuple[str, ...]:
    return (net.add("Mul", net.conv("x", into=3), net.constant(net.rng.standard_normal((1, 1, 12, 12)))),)


def by_width(net: Net) -> tuple[str, ...]:
    return (net.add("Add", net.conv("x", into=3), net.constant(net.rng.standard_normal(12))),)


def two_activations(net: Net) -> tuple[str, ...]:
    return (net.conv(net.add("Mul", net.conv("x", into=3), net.conv("x", into=3))),)


@pytest.mark.parametrize(
    "block", [several_readers, an_output, shared_weight, by_position, by_width, two_activations], ids=lambda block: block.__name__
)
def test_what_cannot_be_folded_stays(block: Any, tmp_path: Path) -> None:
    net = Net()
    before = net.model(*block(net))

    removed, kinds, after = folded(before, tmp_path)

    assert removed == 0
    assert kinds == [node.op_type for node in before.graph.node]
    assert same(before, after)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("kind", ["scalar", "channels"])
@pytest.mark.parametrize("operator", ["Mul", "Add"])
def test_transposed_convolutions_take_what_follows_them(operator: str, kind: str, group: int, tmp_path: Path) -> None:
    net = Net()
    weight = net.constant(net.rng.standard_normal((CHANNELS, CHANNELS // group, 2, 2)))
    value = net.add("ConvTranspose", net.conv("x", into=3), weight, group=group, strides=[2, 2])
    before = net.model(net.add(operator, value, per_channel(net, kind)))

    removed, kinds, after = folded(before, tmp_path)

    assert (removed, kinds) == (1, ["Conv", "ConvTranspose"])
    assert same(before, after)


@pytest.mark.parametrize("shape", [(6, 1), (6, 1, 1), (1, 1, 1, 1), ()])
@pytest.mark.parametrize("operator", ["Mul", "Add"])
def test_convolutions_over_one_dimension(operator: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((6, 3, 5)).astype(np.float32), "c": rng.standard_normal(shape).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], name="conv"), helper.make_node(operator, ["h", "c"], ["y"], name="after")]
    before = make_model(nodes, [inputs_of("x", (6, 3, 20))], [inputs_of("y", (None,) * (4 if len(shape) == 4 else 3))], weights)

    removed, _, after = folded(before, tmp_path)

    assert removed == (1 if shape in ((6, 1), ()) else 0)
    assert same(before, after, [{"x": rng.standard_normal((6, 3, 20)).astype(np.float32)}])


def test_grey_images_that_a_factor_makes_three_channels_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"mean": rng.standard_normal((1, 3, 1, 1)).astype(np.float32), "w": rng.standard_normal((4, 3, 1, 1)).astype(np.float32)}
    nodes = [helper.make_node("Mul", ["x", "mean"], ["h"], name="spread"), helper.make_node("Conv", ["h", "w"], ["y"], name="conv")]
    before = make_model(nodes, [inputs_of("x", ("batch", 1, 6, 6))], [inputs_of("y", (None,) * 4)], weights)

    removed, _, after = folded(before, tmp_path)

    assert removed == 0
    assert same(before, after, [{"x": rng.standard_normal((1, 1, 6, 6)).astype(np.float32)}])


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["Mul", "Add", "Conv", "Relu", "branch"]),
        st.sampled_from(["scalar", "one", "channels", "batched"]),
        st.sampled_from([1, 3]),
    ),
    min_size=1,
    max_size=9,
)


@given(st.integers(0, 10_000), STEPS)
@settings(max_examples=60)
def test_random_nets_compute_what_they_did(seed: int, steps: list[tuple[str, str, int]]) -> None:
    net = Net(seed)
    values = [net.conv("x", into=3)]
    for operator, kind, kernel in steps:
        last = values[-1]
        if operator == "Conv":
            values.append(net.conv(last, kernel=kernel, group=int(net.rng.choice([1, 2, CHANNELS])), bias=bool(net.rng.integers(2))))
        elif operator == "branch":
            values.append(net.add("Add", last, values[int(net.rng.integers(len(values)))]))
        elif operator == "Relu":
            values.append(net.add("Relu", last))
        else:
            values.append(net.add(operator, last, per_channel(net, kind)))
    before = net.model(net.conv(values[-1], kernel=1))
    with tempfile.TemporaryDirectory() as folder:
        _, kinds, after = folded(before, Path(folder))

    assert same(before, after)
    assert len(kinds) <= len(before.graph.node)
