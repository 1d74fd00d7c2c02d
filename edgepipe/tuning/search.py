"""What a search for every layer's scheme knows so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.pipeline import Setting
    from edgepipe.quantization.sites import Site
    from edgepipe.tuning.assignment import Option
    from edgepipe.tuning.site_costs import SiteCosts


@dataclass(slots=True)
class Search:
    """One float32 artifact on one profile: its layers, what each could be, and what was tried."""

    artifact: Artifact
    setting: Setting
    sites: dict[str, Site]
    costs: SiteCosts
    layers: dict[str, list[Option]]
    max_bytes: float
    put_back: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
