"""Which layers read activations whose channels differ most: what a scale for the whole tensor wastes its steps on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.quantization.calibration import observe
from edgepipe.quantization.observers import Wanted
from edgepipe.quantization.outliers import outlier_channels
from edgepipe.tuning.looking import runs_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.artifact import Artifact
    from edgepipe.pipeline import Setting
    from edgepipe.quantization.sites import Site

SAMPLES = 24
SHOWN = 6  # layers


def outliers(artifact: Artifact, sites: Mapping[str, Site], setting: Setting) -> dict[str, dict[str, Any]]:
    """Of the layers with the widest spread, by node name: as `quantization.outliers` gives them. Empty without data."""
    reading = {site.data: site for site in reversed(list(sites.values())) if site.kind in ("product", "attention", "convolution")}
    if setting.splits.to_look_at is None or not reading:
        return {}
    wanted = {name: Wanted(1 if site.kind == "convolution" else -1) for name, site in reading.items()}
    found = observe(
        artifact.model.main_file,
        wanted,
        runs_of(artifact, setting, SAMPLES),
        disabled_optimizers=artifact.program.get("session", {}).get("disabled_optimizers", ()),
    )
    widest = list(outlier_channels(found).items())[:SHOWN]
    return {reading[name].node: picture for name, picture in widest}
