"""What each layer costs on the target under each kernel, measured on the model's own shapes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgepipe.config import Recipe
from edgepipe.errors import EdgepipeError
from edgepipe.graph_costs import graph_costs
from edgepipe.pipeline import run_recipe
from edgepipe.probes import fixed_feeds, single_runs
from edgepipe.profile import HOST, needs_exact_sums
from edgepipe.quantization.cutting import FLOAT, QUANTIZED, cut_regions
from edgepipe.quantization.site_pairs import cut_sites
from edgepipe.recipe_check import check_recipe
from edgepipe.tuning.chains import chain_costs
from edgepipe.tuning.looking import runs_of
from edgepipe.tuning.schemes import INT8_STATIC, KERNELS, fits
from edgepipe.worker_context import open_model

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.graph_costs import Costs
    from edgepipe.pipeline import Setting
    from edgepipe.quantization.site_pairs import SitePairs
    from edgepipe.quantization.sites import Site
    from edgepipe.tuning.schemes import Scheme

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {"int8-static": ({}, {"calibrator": "mse"})}  # tried against each other
COMPARED = 24  # samples that outputs are compared on
LOOKED_AT = 64  # samples, of which the one of median size gives the shapes
LARGEST_INPUT = 400_000  # values: larger samples (photographs) are passed over where there are smaller ones


@dataclass(slots=True)
class SiteCosts:
    """Milliseconds by layer and kernel."""

    source: str = ""
    reason: str = ""
    ms: dict[str, dict[str, float]] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)  # kernel → why it is out of the question
    divergence: dict[str, float] = field(default_factory=dict)  # kernel → 1 − cosine of the outputs with every layer under it
    layers: dict[str, int] = field(default_factory=dict)  # kernel → how many that were
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # kernel → of its pass, those that moved the outputs least


def typical_feeds(artifact: Artifact, setting: Setting) -> Mapping[str, np.ndarray]:
    """The inputs of the sample of median size, of real data where there is any."""
    split = setting.splits.to_look_at
    if split is None:
        return fixed_feeds(artifact, 1, 64)
    runs = list(single_runs(artifact, setting.splits(split)[:LOOKED_AT]))
    runs.sort(key=lambda feeds: sum(value.size for value in feeds.values()))
    small = [feeds for feeds in runs if sum(value.size for value in feeds.values()) <= LARGEST_INPUT] or runs[:1]
    return small[len(small) // 2]


def quantized(scheme: Scheme, names: list[str], artifact: Artifact, setting: Setting) -> Artifact:
    """The artifact with those layers under one scheme; kept by content like every pass."""
    step = {"pass": scheme.step, "options": {**scheme.options, "include": names}, "reason": "tried"}
    recipe = Recipe.model_validate({"step": [step]})
    return run_recipe(check_recipe(recipe, artifact), artifact, setting, label="tune: ")[0]


def site_costs(artifact: Artifact, sites: Mapping[str, Site], setting: Setting, *, calibrated: bool) -> SiteCosts:
    """Costs of every layer as it is and under each kernel that it can have. A kernel that the target or the model does not
    take is left out, with the reason."""
    found, reference = SiteCosts(), Reference(artifact, setting)
    feeds = typical_feeds(artifact, setting)
    pairs: dict[str, SitePairs] = {}
    graphs: dict[str, Any] = {}
    for scheme in KERNELS:
        names = [name for name, site in sites.items() if fits(scheme, site, calibrated=calibrated)]
        if not names:
            continue
        tried = _tried(scheme, names, artifact, setting, found, reference)
        if tried is None:
            continue
        found.divergence[scheme.kernel], found.options[scheme.kernel], other = tried
        found.layers[scheme.kernel] = len(names)
        cut = pairs[scheme.kernel] = cut_sites(artifact.model.main_file, other.model.main_file, names, feeds)
        graphs |= {_own_name(scheme.kernel, name): graph for name, graph in cut.graphs.items()}
    costs = costs_there(graphs, artifact, setting)  # all in one go: timed in turns, so that other load meets all alike
    found.source, found.reason = costs.source, costs.reason
    for kernel, cut in pairs.items():
        for name in cut.spans:
            by_kernel = found.ms.setdefault(name, {"float32": costs.ms[f"{name}/{FLOAT}"]})
            by_kernel[kernel] = costs.ms[_own_name(kernel, f"{name}/{QUANTIZED}")]
    if INT8_STATIC.kernel in found.options and any(site.operator == "Conv" for site in sites.values()):
        variant = replace(INT8_STATIC, options=found.options[INT8_STATIC.kernel])
        chained = chain_costs(
            artifact,
            sites,
            lambda names: quantized(variant, names, artifact, setting),
            feeds,
            lambda graphs: costs_there(graphs, artifact, setting).ms,
        )
        for name, ms in chained.items():
            found.ms[name] = {
                key: value for key, value in found.ms.get(name, {}).items() if key not in ("float32", INT8_STATIC.kernel)
            } | ms
    return found


def _tried(
    scheme: Scheme, names: list[str], artifact: Artifact, setting: Setting, found: SiteCosts, reference: Reference
) -> tuple[float, dict[str, Any], Artifact] | None:
    """(divergence, options, artifact) of the best of the scheme's variants; None where the model takes none, with the reason."""
    best: tuple[float, dict[str, Any], Artifact] | None = None
    for options in VARIANTS.get(scheme.kernel, ({},)):
        try:
            other = quantized(replace(scheme, options={**scheme.options, **options}), names, artifact, setting)
        except EdgepipeError as error:
            found.without[scheme.kernel] = error.what
            continue
        moved = reference.divergence(other)
        if best is None or moved < best[0]:
            best = moved, options, other
    if best is not None:
        found.without.pop(scheme.kernel, None)
    return best


class Reference:
    """What the float32 model gives for some real samples, run once for all that is compared with it."""

    def __init__(self, artifact: Artifact, setting: Setting) -> None:
        model = open_model(artifact, True, (), setting.threads)
        self._threads, self._exact = setting.threads, needs_exact_sums(setting.profile)
        self._runs = [(feeds, list(model(feeds).values())) for feeds in runs_of(artifact, setting, COMPARED)]

    def divergence(self, other: Artifact) -> float:
        """Mean 1 − cosine of the other's outputs; 0 without samples."""
        import numpy as np

        if not self._runs:
            return 0.0
        model = open_model(other, True, (), self._threads, self._exact)
        gaps = []
        for feeds, outputs in self._runs:
            for expected, got in zip(outputs, model(feeds).values(), strict=True):
                a, b = expected.ravel().astype(np.float64), got.ravel().astype(np.float64)
                length = float(np.linalg.norm(a) * np.linalg.norm(b))
                gaps.append(1 - float(a @ b) / length if a.shape == b.shape and length else float(not np.allclose(a, b)))
        return float(np.mean(gaps))


def _own_name(kernel: str, name: str) -> str:
    """`<site>/float32` is the same under every kernel; the rest are variants of the site."""
    thing, _, variant = name.rpartition("/")
    return name if variant == FLOAT else f"{thing}/{kernel} {variant}"


Lost = tuple[tuple[str, ...], float, float]  # nodes of a region, its milliseconds as float32 and as quantized


def lost_regions(artifact: Artifact, other: Artifact, setting: Setting, margin: float, computed: Collection[str]) -> list[Lost]:
    """The regions that are slower quantized by more than `margin`, where a layer in `computed` is among them: lookups cost
    microseconds, and weights that are expanded at load run the same kernel."""
    cuts = cut_regions(artifact.model.main_file, other.model.main_file, typical_feeds(artifact, setting))
    costs = costs_there(cuts.graphs, artifact, setting)
    times = {name: (costs.ms[f"{name}/{FLOAT}"], costs.ms[f"{name}/{QUANTIZED}"]) for name in cuts.regions}
    return [
        (tuple(region.sites), *times[name])
        for name, region in cuts.regions.items()
        if times[name][1] > times[name][0] * (1 + margin) and any(site in computed for site in region.sites)
    ]


def costs_there(graphs: Any, artifact: Artifact, setting: Setting) -> Costs:
    """What the graphs cost on the setting's device, with the artifact's own session options."""
    disabled = artifact.program.get("session", {}).get("disabled_optimizers", ())
    # As many threads as the device will use: what runs on one of them only weighs more then. Here, where others may be at
    # work, one thread's own time is what repeats.
    threads = 1 if setting.profile.name == HOST else setting.profile.runtime.threads
    return graph_costs(graphs, setting.profile, setting.store, setting.progress, threads=threads, disabled_optimizers=disabled)
