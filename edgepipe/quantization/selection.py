"""Which samples calibrate: at random, by label, by length, or by what they are worth.

`importance` takes scores (a loss, an entropy), highest first, or embeddings [n, d], of which it takes the centres of the
greedy solution to the k-centre problem, so that every sample has a chosen one near it: Sener and Savarese, "Active
Learning for Convolutional Neural Networks: A Core-Set Approach", arXiv 1708.00489, algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edgepipe.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from edgepipe.readers import Sample

Method = Literal["random", "stratified", "length", "importance"]
METHODS: tuple[Method, ...] = get_args(Method)


def sample_label(sample: Sample) -> Hashable:
    """The label; of a list of tags, the set of them."""
    label = sample.get("label")
    return frozenset(label) if isinstance(label, list) else label


def sample_length(sample: Sample) -> int:
    """Words of a text, elements of tensors; images and sounds have no length that their bytes would tell."""
    if "tensors" in sample:
        return sum(int(array.size) for array in sample["tensors"].values())
    return len(sample["tokens"]) if "tokens" in sample else len(f"{sample.get('text', '')} {sample.get('text_pair', '')}".split())


def select(
    samples: Sequence[Sample],
    count: int,
    method: Method,
    seed: int,
    *,
    label_of: Callable[[Sample], Hashable] = sample_label,
    length_of: Callable[[Sample], float] = sample_length,
    score: np.ndarray | None = None,
) -> list[int]:
    """Indices of `count` samples (of all, where there are no more), the same for the same seed; in their own order, by
    `importance` in order of worth. `score`: one number a sample, or an embedding [n, d]; only `importance` takes it.

    Raises `DataError` where samples lack labels or scores are no numbers.
    """
    if method not in METHODS:
        raise UsageError(f'there is no selection "{method}"', where="selection of samples", fix=nearest(method, METHODS))
    if count < 1:
        raise UsageError(f"{count} samples are no selection", where="selection of samples", fix="ask for one or more")
    rng = np.random.default_rng(seed)
    if method == "importance":
        return _by_importance(len(samples), count, score)
    if count >= len(samples):
        return list(range(len(samples)))
    if method == "random":
        chosen = rng.choice(len(samples), count, replace=False)
    elif method == "stratified":
        chosen = _stratified([label_of(sample) for sample in samples], count, rng)
    else:
        chosen = _by_length(np.array([length_of(sample) for sample in samples], dtype=np.float64), count, rng)
    return sorted(int(index) for index in chosen)


def _stratified(labels: Sequence[Hashable], count: int, rng: np.random.Generator) -> np.ndarray:
    """Each label in its share, and once at least; where there are more labels than samples, the most frequent once."""
    groups: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        if label is None:
            raise DataError(
                f"sample {index + 1} has no label to stratify by", where="selection of samples", fix="select at random, or by length"
            )
        groups.setdefault(label, []).append(index)
    ordered = sorted(groups.values(), key=lambda group: (-len(group), group[0]))[:count]
    shares = np.array([len(group) for group in ordered]) * (count / len(labels))
    sizes = np.maximum(1, np.floor(shares).astype(int))
    while sizes.sum() != count:  # largest remainder; what the once-at-least took over its share, the largest give back
        missing = sizes.sum() < count
        gaps = shares - sizes if missing else np.where(sizes > 1, sizes - shares, -np.inf)
        if missing:
            gaps[sizes == [len(group) for group in ordered]] = -np.inf
        sizes[int(gaps.argmax())] += 1 if missing else -1
    return np.concatenate([rng.permutation(group)[:size] for group, size in zip(ordered, sizes, strict=True)])


def _by_length(lengths: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Evenly over the quantiles of length, the shortest and the longest among them; equal ones are drawn by lot."""
    order = np.lexsort((rng.random(len(lengths)), lengths))
    if count == 1:
        return order[[len(order) // 2]]
    return order[np.arange(count) * (len(order) - 1) // (count - 1)]


def _by_importance(n: int, count: int, score: np.ndarray | None) -> list[int]:
    if score is None or len(score) != n or score.ndim not in (1, 2):
        shape = "none" if score is None else f"shape {list(score.shape)}"
        raise DataError(
            f"selection by importance needs a score or an embedding for each of the {n} samples, and has {shape}",
            where="selection of samples",
            fix="give scores [n] or embeddings [n, d], or select by another method",
        )
    if not np.isfinite(score).all():
        row = int(np.argwhere(~np.isfinite(score))[0, 0])
        raise DataError(
            f"the score of sample {row + 1} is no finite number", where="selection of samples", fix="look at what the model gives for it"
        )
    if score.ndim == 1:
        return [int(index) for index in np.argsort(-score.astype(np.float64), kind="stable")[:count]]
    return _k_centres(score.astype(np.float64), min(count, n))


def _k_centres(points: np.ndarray, count: int) -> list[int]:
    """Greedy: from the point nearest to the mean, always on to the one that is farthest from all that are chosen; within
    twice the smallest radius there is."""

    def squared(centre: Any) -> np.ndarray:
        distance: np.ndarray = ((points - centre) ** 2).sum(axis=1)
        return distance

    chosen = [int(squared(points.mean(axis=0)).argmin())] if len(points) else []
    gaps = np.full(len(points), np.inf)
    while chosen and len(chosen) < count:
        gaps = np.minimum(gaps, squared(points[chosen[-1]]))
        gaps[chosen] = -1.0  # none twice, where points lie on each other
        chosen.append(int(gaps.argmax()))
    return chosen
