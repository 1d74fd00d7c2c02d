"""Channels that reach far beyond the others, as data for a picture."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgepipe.quantization.observers import Observer, Wanted
from edgepipe.quantization.outliers import outlier_channels


def observed(values: np.ndarray, axis: int | None = -1) -> Observer:
    observer = Observer("hidden", Wanted(axis))
    observer.update(np.asarray(values, np.float32))
    return observer


def test_a_channel_far_beyond_the_others_is_named_with_its_size() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (30, 384))
    values[:, 17] *= 100
    values[4, 300] = -50

    picture = outlier_channels({"site": observed(values)})["site"]

    assert [channel for channel, _ in picture["outliers"]] == [17, 300]
    assert picture["outliers"][1][1] == 50
    assert picture["outlier_count"] == 2
    assert picture["ratio"] > 90
    assert picture["tensor"] == "hidden"


def test_the_widest_spread_comes_first() -> None:
    narrow, wide = np.ones((4, 8)), np.ones((4, 8))
    wide[:, 2] = 30

    assert list(outlier_channels({"narrow": observed(narrow), "wide": observed(wide)})) == ["wide", "narrow"]


def test_channels_that_are_always_zero_do_not_make_the_others_outliers() -> None:
    values = np.ones((4, 9))
    values[:, :7] = 0

    picture = outlier_channels({"site": observed(values)})["site"]

    assert (picture["zero_channels"], picture["ratio"], picture["outliers"]) == (7, 1.0, [])


def test_images_have_channels_and_no_rows() -> None:
    assert outlier_channels({"site": observed(np.ones((1, 5, 3, 3)), axis=1)})["site"]["row_spread"] is None


def test_tensors_without_channels_and_those_never_reached_are_left_out() -> None:
    assert outlier_channels({"plain": observed(np.ones(3), axis=None), "never": Observer("x", Wanted(-1))}) == {}


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 200)), elements=st.floats(-1024, 1024, width=32)))
def test_a_picture_is_plain_json_that_falls_from_the_largest_to_the_smallest(values: np.ndarray) -> None:
    picture = outlier_channels({"site": observed(values)})["site"]

    assert json.loads(json.dumps(picture, allow_nan=False)) == picture
    assert len(picture["curve"]) <= 64
    assert picture["curve"] == sorted(picture["curve"], reverse=True)
    assert picture["curve"][0] == np.abs(values).max()
    assert picture["curve"][-1] == np.abs(values).max(0).min()
