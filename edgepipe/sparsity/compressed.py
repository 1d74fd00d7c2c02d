"""What zeros are worth: their share in a component's weights, and its weights' size as an archive would hold them."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.weights import safetensors_header

if TYPE_CHECKING:
    from edgepipe.artifact import Component

CHUNK = 1 << 20
_WIDTHS = {"F64": np.uint64, "F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


def zero_share(component: Component) -> float:
    """Zeros among all floating-point weights of a torch component."""
    zeros = total = 0
    for ref in component.files:
        if not ref.path.endswith(".safetensors"):
            continue
        for info in safetensors_header(ref.location):
            if info.dtype in _WIDTHS and info.parameters:
                kind = _WIDTHS[info.dtype]
                bits = np.memmap(ref.location, dtype=kind, mode="r", offset=info.start, shape=(info.parameters,))
                zeros += int(((bits << kind(1)) == 0).sum())  # without the sign: −0 is zero too
                total += info.parameters
    return zeros / max(1, total)


def compressed_bytes(component: Component) -> int:
    """All files of a component through zlib, one after the other."""
    size = 0
    for ref in component.files:
        packer = zlib.compressobj()
        with ref.location.open("rb") as handle:
            while chunk := handle.read(CHUNK):
                size += len(packer.compress(chunk))
        size += len(packer.flush())
    return size
