"""Channels that reach far beyond the others: one scale for all must span them, and little is left for the rest.

They are what 8-bit activations of transformers lose accuracy to (Dettmers et al., arXiv 2208.07339, section 3). The
figures are for the report's picture and for choosing layers that per-channel methods would help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.quantization.observers import Observer

OUTLIER = 20.0  # times the median channel
CURVE, NAMED = 64, 16  # points of the sorted curve; outliers given by number


def outlier_channels(observers: Mapping[str, Observer]) -> dict[str, dict[str, Any]]:
    """What each key's activation looks like by channel, as plain JSON, those with the widest spread first.

    `curve`: |max| of channels from the largest to the smallest, at most 64 of them evenly spaced, both ends kept; `ratio`:
    the largest over the median channel (of those not always zero); `outliers`: [channel, |max|] beyond 20 medians, the
    largest 16, of `outlier_count`; `row_spread`: the largest row of a sample over its median row, None for
    images. Tensors without
    channels, or that nothing reached, are left out.
    """
    found = {key: one for key, observer in observers.items() if (one := _picture(observer)) is not None}
    return dict(sorted(found.items(), key=lambda item: -item[1]["ratio"]))


def _picture(observer: Observer) -> dict[str, Any] | None:
    import numpy as np

    largest = observer.channel_max
    if largest is None or len(largest) == 0:
        return None
    order = np.argsort(-largest, kind="stable")
    alive = largest[largest > 0]
    median = float(np.median(alive)) if len(alive) else 0.0
    ratio = float(largest[order[0]] / median) if median > 0 else 1.0
    beyond = [int(channel) for channel in order if median > 0 and largest[channel] > OUTLIER * median]
    points = np.unique(np.linspace(0, len(order) - 1, min(CURVE, len(order))).round().astype(int))
    return {
        "tensor": observer.name,
        "channels": len(largest),
        "zero_channels": int(len(largest) - len(alive)),
        "median": median,
        "ratio": ratio,
        "curve": [float(largest[order[point]]) for point in points],
        "outlier_count": len(beyond),
        "outliers": [[channel, float(largest[channel])] for channel in beyond[:NAMED]],
        "row_spread": observer.row_spread,
    }
