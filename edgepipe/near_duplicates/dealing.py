"""One table dealt into roles: each label in its share, and what is alike in the same role, by a fixed seed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from edgepipe.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SEED = 20240101


def dealt_rows(first: Sequence[int], labels: Sequence[str | None], shares: Mapping[str, float]) -> dict[str, list[int]]:
    """The rows of each role, every row once. `first`: of each row, the first row of its cluster, which decides for the label.

    Clusters go, the largest first, where most is missing of the label's share; labels too rare for that are dealt together.
    """
    clusters: dict[int, list[int]] = {}
    for row, head in enumerate(first):
        clusters.setdefault(head, []).append(row)
    groups: dict[str, list[list[int]]] = {}
    for head, rows in clusters.items():
        groups.setdefault(labels[head] or "", []).append(rows)
    total = sum(shares.values())
    enough = total / min(shares.values())
    ordered = [group for _, group in sorted(groups.items())]
    rare = [rows for group in ordered if len(group) < enough for rows in group]
    result: dict[str, list[int]] = {role: [] for role in shares}
    rng = random.Random(SEED)
    for group in [*(group for group in ordered if len(group) >= enough), rare]:
        rng.shuffle(group)
        size = sum(map(len, group))
        missing = {role: size * share / total for role, share in shares.items()}
        for rows in sorted(group, key=len, reverse=True):
            role = max(missing, key=lambda role: missing[role])
            result[role] += rows
            missing[role] -= len(rows)
    for rows in result.values():
        rng.shuffle(rows)  # a part of it has every label too
    return result


def check_dealt(dealt: Mapping[str, Sequence[int]], where: str) -> None:
    """`DataError` where a role got nothing."""
    empty = [role for role, rows in dealt.items() if not rows]
    if empty:
        raise DataError(
            f"no rows are left for {', '.join(empty)}",
            where=where,
            fix="give it more rows, or less to share; rows that are alike stay in one role (`edgepipe data stats` tells how many)",
        )


def parsed_shares(text: str, roles: Sequence[str]) -> dict[str, float]:
    """`train=0.8,test=0.2` as {role: share}; what they sum to does not matter."""
    found: dict[str, float] = {}
    for part in text.split(","):
        role, sign, value = (piece.strip() for piece in part.partition("="))
        if role not in roles:
            raise UsageError(f'unknown role "{role}"', where="--shares", fix=nearest(role, roles))
        try:
            share = float(value)
        except ValueError:
            share = 0.0
        if not sign or role in found or not 0 < share < float("inf"):
            raise UsageError(
                f'"{part.strip()}" is not ROLE=SHARE, once for a role', where="--shares", fix="for example --shares train=0.8,test=0.2"
            )
        found[role] = share
    return found
