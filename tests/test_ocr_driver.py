"""The OCR driver's own arithmetic: boxes out of a probability map, crops, text out of CTC scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from edgepipe.driver import driver_module
from edgepipe.ocr import STAGES

ocr = driver_module().neighbour("ocr")
CHARACTERS = ["", "a", "b", "c", " "]
masks = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random((9, 11)) < 0.35)


def ctc_scores(path: list[int]) -> np.ndarray:
    return np.eye(len(CHARACTERS), dtype=np.float32)[path] * 0.9


def flooded(mask: np.ndarray) -> set[frozenset[tuple[int, int]]]:
    """Regions by walking from pixel to pixel."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    regions = set()
    while left:
        todo, region = [left.pop()], set()
        while todo:
            y, x = todo.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
        regions.add(frozenset(region))
    return regions


def rotated(centre: tuple[float, float], size: tuple[float, float], degrees: float) -> np.ndarray:
    angle = math.radians(degrees)
    axes = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.array(centre) + 0.5 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size @ axes


@pytest.mark.parametrize(
    ("path", "text"),
    [([1, 1, 0, 1, 2], "aab"), ([0, 0, 0], ""), ([3, 4, 4, 3], "c c"), ([1, 2, 1], "aba"), ([2, 2, 2], "b"), ([0, 1, 0], "a")],
)
def test_ctc_drops_repeats_and_blanks(path: list[int], text: str) -> None:
    found, score = ocr.ctc_text(ctc_scores(path), CHARACTERS)

    assert found == text
    assert score == pytest.approx(0.9 if text else 0.0)


@given(st.lists(st.integers(1, 4), max_size=12), st.data())
def test_ctc_reads_any_way_of_writing_a_text(text: list[int], data: st.DataObject) -> None:
    path: list[int] = []
    for index, symbol in enumerate(text):
        path += [0] * data.draw(st.integers(1 if index and text[index - 1] == symbol else 0, 2)) + [symbol] * data.draw(st.integers(1, 3))

    assert ocr.ctc_text(ctc_scores(path) if path else np.zeros((1, 5)), CHARACTERS)[0] == "".join(CHARACTERS[i] for i in text)


@given(masks)
def test_regions_are_those_a_flood_finds(mask: np.ndarray) -> None:
    found = {frozenset((int(row), column) for row, start, end in runs for column in range(start, end)) for runs in ocr.components(mask)}

    assert found == flooded(mask)


@given(st.floats(-44, 44), st.floats(5, 60), st.floats(5, 20))
def test_smallest_rectangle_is_the_one_the_points_fill(degrees: float, width: float, height: float) -> None:
    box = rotated((40.0, 30.0), (width, height), degrees)

    centre, axes, extent = ocr.smallest_rectangle(box)

    np.testing.assert_allclose(centre, [40, 30], atol=1e-6)
    np.testing.assert_allclose(sorted(extent), sorted([width, height]), atol=1e-6)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-9)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=30))
def test_rectangle_holds_every_point(points: list[tuple[int, int]]) -> None:
    centre, axes, extent = ocr.smallest_rectangle(np.array(points))

    placed = np.abs((np.array(points) - centre) @ axes.T)
    assert (placed <= extent / 2 + 1e-6).all()


@pytest.mark.parametrize("degrees", [-20, -3, 0, 7, 30])
def test_box_of_a_bright_bar_is_grown_around_it(degrees: float) -> None:
    box = rotated((100, 60), (120, 16), degrees)
    image = Image.new("F", (200, 120))
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in box], fill=0.9)

    (found,) = ocr.lines_of(np.asarray(image), STAGES["detector"])

    grown = 1.6 * 120 * 16 / (2 * (120 + 16))  # what the detector's training shrank by
    np.testing.assert_allclose(found.mean(0), [100, 60], atol=1.5)
    np.testing.assert_allclose(ocr.sides(found), [120 + 2 * grown, 16 + 2 * grown], atol=6)  # pixels at the border are whole
    assert found[0][0] < found[1][0] and found[0][1] < found[3][1], "from the upper left, clockwise"


def test_dim_and_tiny_regions_are_no_lines() -> None:
    probability = np.zeros((60, 60), np.float32)
    probability[5:15, 5:50] = 0.4  # over what makes it a region, under what makes that text
    probability[30:32, 30:32] = 0.99

    assert ocr.lines_of(probability, STAGES["detector"]) == []


def test_crop_of_a_turned_box_is_upright() -> None:
    image = Image.new("L", (200, 120)).convert("RGB")
    left, right = rotated((70, 60), (60, 20), 0), rotated((130, 60), (60, 20), 0)
    draw = ImageDraw.Draw(image)
    draw.polygon([tuple(corner) for corner in left], fill=(255, 0, 0))
    draw.polygon([tuple(corner) for corner in right], fill=(0, 0, 255))
    turned = image.rotate(-12, resample=Image.Resampling.BICUBIC, center=(100, 60))  # Pillow turns the other way

    crop = np.asarray(ocr.crop(turned, rotated((100, 60), (120, 20), 12))).astype(int)

    assert crop.shape == (20, 120, 3)
    assert crop[4:16, 6:54, 0].min() > 200 and crop[4:16, 66:114, 2].min() > 200


def test_line_that_stands_on_end_is_laid_down() -> None:
    image = Image.new("RGB", (40, 100))
    ImageDraw.Draw(image).rectangle((0, 0, 40, 20), fill=(255, 255, 255))  # the upper end

    crop = ocr.crop(image, np.array([[0, 0], [40, 0], [40, 100], [0, 100]], float))

    assert crop.size == (100, 40)
    assert np.asarray(crop)[:, :15].mean() > 200, "turned to the left: what was above is at the left"


def test_lines_are_read_from_top_to_bottom_and_left_to_right() -> None:
    def at(x: float, y: float) -> np.ndarray:
        return rotated((x, y), (40, 10), 0)

    wanted = [at(30, 20), at(80, 23), at(30, 40), at(90, 39), at(10, 60)]

    found = ocr.reading_order([wanted[index] for index in (3, 1, 4, 0, 2)])

    assert [box.tolist() for box in found] == [box.tolist() for box in wanted]


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_detector_takes_multiples_of_32_of_the_images_shape(width: int, height: int) -> None:
    size = ocr.detector_size((width, height), 960)

    assert all(side % 32 == 0 and 32 <= side <= 960 for side in size)
    if max(width, height) <= 960:
        assert all(abs(a - b) <= 16 or a == 32 for a, b in zip(size, (width, height), strict=True))


@pytest.mark.parametrize(
    ("scores", "turned"),
    [
        ([[0.99, 0.01], [0.98, 0.02]], [False, False]),
        ([[0.01, 0.99], [0.4, 0.6]], [True, True]),
        ([[0.99, 0.01], [0.3, 0.7]], [False, False]),  # not sure of the second: all decide together
        ([[0.01, 0.99], [0.99, 0.01], [0.6, 0.4]], [True, False, False]),
        ([[0.4, 0.6]], [True]),
    ],
)
def test_lines_that_nobody_is_sure_of_go_with_the_others(scores: list[list[float]], turned: list[bool]) -> None:
    reader = ocr.Ocr.__new__(ocr.Ocr)
    reader.stages, answers = STAGES, iter(np.array(scores))
    reader.call = lambda role, value: [next(answers)]

    assert reader.turned([Image.new("RGB", (60, 20))] * len(scores)) == turned
