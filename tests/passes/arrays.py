"""Models of any inputs, with samples for them in one .npz file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from edgepipe.config import Data
from tests.passes.running import artifact_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepipe.artifact import Artifact


def array_model(folder: Path, model: Any, samples: Mapping[str, np.ndarray], *, split: str = "calibration") -> tuple[Artifact, Data]:
    """The model's artifact, and its samples, [sample, …] for each input without its batch axis, as one split of its data."""
    folder.mkdir(parents=True)
    onnx.save_model(model, folder / "model.onnx")
    np.savez(folder / "samples.npz", **{name: values[:, None] for name, values in samples.items()})
    data = Data(**{split: str(folder / "samples.npz")})
    return artifact_of(folder, "fidelity", data=data), data
