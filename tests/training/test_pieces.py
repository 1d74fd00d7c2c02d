"""A batch in pieces is the batch: every row once, in order, with all that belongs to it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.training.batches import Batch, Mix, OtherText
from edgepipe.training.pieces import on_device, pieces


def batch(rows: int) -> Batch:
    numbers = torch.arange(rows)
    text = OtherText(numbers[:, None], numbers[:, None] * 2, numbers[:, None] * 3)
    return Batch({"x": numbers[:, None]}, numbers, samples=numbers + 7, mix=Mix(numbers / 2, numbers, text), seed="1/2")


@given(st.integers(1, 30), st.integers(1, 40))
def test_every_row_is_in_one_piece_and_pieces_are_even(rows: int, count: int) -> None:
    whole = batch(rows)

    parts = pieces(whole, count)

    assert len(parts) == min(rows, count)
    assert max(part.rows for part in parts) - min(part.rows for part in parts) <= 1
    for value in (
        lambda part: part.inputs["x"],
        lambda part: part.targets,
        lambda part: part.samples,
        lambda part: part.mix.share,
        lambda part: part.mix.text.own_mask,
    ):
        assert torch.equal(torch.cat([value(part) for part in parts]), value(whole))


def test_pieces_draw_numbers_of_their_own_and_one_piece_those_of_the_batch() -> None:
    first, second = pieces(batch(4), 2)

    assert pieces(batch(4), 1)[0].seed == "1/2"
    assert first.generator("a").initial_seed() != second.generator("a").initial_seed()


def test_batch_stays_where_it_is_on_this_device() -> None:
    whole = batch(3)

    assert on_device(whole, "cpu") is whole
    assert on_device(whole, "meta").inputs["x"].device.type == "meta"
    assert on_device(whole, "meta").samples is whole.samples
