"""Dealing: every row once, what is alike together, each label in its share."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.errors import DataError, UsageError
from edgepipe.near_duplicates.dealing import check_dealt, dealt_rows, parsed_shares

ROLES = ("train", "calibration", "dev", "test")
SHARES = {"train": 0.5, "calibration": 0.1, "dev": 0.1, "test": 0.3}


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["yes", "no", None])), max_size=60))
def test_every_row_is_dealt_once_and_with_its_cluster(rows: list[tuple[int, str | None]]) -> None:
    first = [[cluster for cluster, _ in rows].index(cluster) for cluster, _ in rows]

    dealt = dealt_rows(first, [label for _, label in rows], SHARES)

    role_of = {row: role for role, mine in dealt.items() for row in mine}
    assert sorted(row for mine in dealt.values() for row in mine) == list(range(len(rows)))
    assert all(role_of[row] == role_of[head] for row, head in enumerate(first))


def test_labels_have_their_shares() -> None:
    labels = ["rare" if row % 10 == 0 else "common" for row in range(1000)]

    dealt = dealt_rows(range(1000), labels, SHARES)

    assert {role: Counter(labels[row] for row in rows) for role, rows in dealt.items()} == {
        role: {"rare": round(100 * share), "common": round(900 * share)} for role, share in SHARES.items()
    }
    assert dealt == dealt_rows(range(1000), labels, SHARES)


def test_shares_may_leave_roles_out_and_need_not_sum_to_one() -> None:
    shares = parsed_shares("train=4, test=1", ROLES)

    assert {role: len(rows) for role, rows in dealt_rows(range(100), ["a"] * 100, shares).items()} == {"train": 80, "test": 20}


@pytest.mark.parametrize("text", ["", "train", "train=x", "train=0", "train=-1", "train=nan", "train=inf", "tset=1", "train=1,train=2"])
def test_shares_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parsed_shares(text, ROLES)


def test_role_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no rows are left for calibration, dev"):
        check_dealt(dealt_rows([0, 1], ["a", "a"], SHARES), "data.csv")
