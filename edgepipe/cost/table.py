"""Kernel costs of a device as data: the user's own under EDGEPIPE_CACHE/devices/NAME/, else those shipped with the profile."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import digest
from edgepipe.errors import UsageError
from edgepipe.resources import resource
from edgepipe.store import cache_root

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.profile import Profile

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class CostTable:
    """Milliseconds of kernels on one thread of one device."""

    profile: str
    source: str  # counted: predicted from counted instructions; measured: timed on the device
    runtime: str
    cpu: str
    entries: tuple[dict[str, Any], ...]  # kernel, precision, shape, ms
    fusions: dict[str, float]  # time of a fused operator over that of its parts

    @property
    def digest(self) -> str:
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **{name: getattr(self, name) for name in self.__slots__}, "entries": list(self.entries)}

    def ms(self, kernel: str, precision: str, shape: tuple[int, ...]) -> float | None:
        """The tabled time of exactly that kernel."""
        found = (e for e in self.entries if (e["kernel"], e["precision"], tuple(e["shape"])) == (kernel, precision, shape))
        return next((float(entry["ms"]) for entry in found), None)

    def speedup(self, kernel: str, precision: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], float] | None:
        """(the nearest tabled shape, float32's time over that precision's there); None where it is not tabled."""
        shapes = {tuple(entry["shape"]) for entry in self.entries if entry["kernel"] == kernel and entry["precision"] == precision}
        shapes = {tabled for tabled in shapes if len(tabled) == len(shape)}
        if not shapes:
            return None
        nearest = min(sorted(shapes), key=lambda tabled: sum(abs(math.log(a / b)) for a, b in zip(tabled, shape, strict=True)))
        before, after = self.ms(kernel, "float32", nearest), self.ms(kernel, precision, nearest)
        return (nearest, before / after) if before and after else None


def own_path(name: str) -> Path:
    return cache_root() / "devices" / name / "costs.json"


def load_table(profile: Profile) -> CostTable | None:
    """The device's kernel costs; None where there are none, or those there are for another runtime or CPU. Raises
    `UsageError` for a table that was tampered with."""
    shipped = resource("profiles") / f"{profile.name}.costs.json"
    path = next((path for path in (own_path(profile.name), shipped) if path.is_file()), None)
    if path is None:
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema") != SCHEMA:
            return None
        data["entries"] = tuple(
            {"kernel": str(e["kernel"]), "precision": str(e["precision"]), "shape": [int(v) for v in e["shape"]], "ms": _positive(e["ms"])}
            for e in data["entries"]
        )
        data["fusions"] = {str(name): _positive(ratio) for name, ratio in data["fusions"].items()}
        table = CostTable(**data)
    except (ValueError, KeyError, TypeError, AttributeError):
        fix = f"edgepipe devices measure {profile.name} makes it anew" if path != shipped else "install edgepipe again"
        raise UsageError("the table of kernel costs is damaged", where=str(path), fix=fix) from None
    return table if (table.runtime, table.cpu) == (runtime_of(profile), profile.cpu.model) else None


def _positive(value: Any) -> float:
    if not float(value) > 0 or not math.isfinite(float(value)):
        raise ValueError("no time is zero or less")
    return float(value)


def runtime_of(profile: Profile) -> str:
    return f"{profile.runtime.name} {profile.runtime.version}"
