"""A sample's outputs with and without neighbours: moved by scales that a run shares, left alone by all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.passes.running import run_done

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.config import Data

SAME = 1e-6


def moves(name: str, artifact: Artifact, workdir: Path, data: Data, **options: Any) -> float:
    """What the pass's own check found: the largest difference between a sample alone and in a padded batch."""
    checks = run_done(name, artifact, workdir, data=data, **options).checks
    value: float = next(check["value"] for check in checks if check["name"] == "batch-invariant")
    return value


def test_scales_that_a_run_shares_move_outputs_and_fixed_ones_do_not(optimised: Artifact, reviews: Data, tmp_path: Path) -> None:
    assert moves("quantize-dynamic", optimised, tmp_path, reviews) > 100 * SAME
    assert moves("quantize-static", optimised, tmp_path, reviews) <= SAME


@pytest.mark.parametrize("bits", [8, 4])
def test_few_bit_kernels_scale_each_row_by_itself(bits: int, optimised: Artifact, reviews: Data, tmp_path: Path) -> None:
    assert moves("quantize-weights", optimised, tmp_path, reviews, bits=bits, accuracy_level=4) <= SAME
