"""Loops that judge whole models: which layer is quantized how, so that nothing is slower and the budgets hold.

Every layer gets the kernel that is fastest on the target (measured on the model's own shapes); a size budget that binds
moves layers to smaller storage where that costs least; a region that lost against its float32 twin is put back; layers
that cost the dev data more points than the budget allows are left out, those first that buy most accuracy for the time
they cost. What comes out is a recipe with every layer named, which can be pinned, and the figures behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.config import Recipe, Step
from edgepipe.errors import EdgepipeError
from edgepipe.pipeline import run_recipe
from edgepipe.quantization.graph import Graph
from edgepipe.quantization.sites import find_sites
from edgepipe.recipe_check import check_recipe
from edgepipe.tuning.assignment import Option, assign_shared
from edgepipe.tuning.explanation import reason, report, summary
from edgepipe.tuning.losses import losses
from edgepipe.tuning.schemes import BY_NAME, FLOAT32, INT8_DYNAMIC, INT8_STATIC, ORDER, SCHEMES, fits
from edgepipe.tuning.search import Search
from edgepipe.tuning.site_costs import Lost, SiteCosts, lost_regions, site_costs
from edgepipe.tuning.whole import whole_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgepipe.artifact import Artifact
    from edgepipe.config import Budget
    from edgepipe.pipeline import PassRun, Setting
    from edgepipe.quantization.sites import Site
    from edgepipe.tuning.schemes import Scheme

    Dev = Callable[[Artifact], float]  # points lost on the dev data

MARGIN = 0.03  # of a region's time: what timing is uncertain by
ROUNDS = 3  # of putting regions back
TABLE = "table in 8 bits"
OUT = "float32, stored in 8 bits"  # what a layer that costs too much accuracy becomes where size binds


@dataclass(slots=True)
class Tuned:
    """A recipe tail with every layer named, what it gives, and why."""

    artifact: Artifact
    steps: tuple[Step, ...]
    runs: list[PassRun]
    report: dict[str, Any]


def tune(artifact: Artifact, setting: Setting, budget: Budget, max_bytes: float, dev: Dev | None) -> Tuned:
    """Quantize a float32 ONNX artifact for the setting's profile. `max_bytes` is what its model may take, `dev` gives the
    points that a candidate loses on the dev data (None: there is none)."""
    setting.progress.stage("tune", f"every layer for {setting.profile.name}")
    calibrated = setting.splits.has("calibration")
    with setting.store.workdir() as workdir:
        sites = find_sites(Graph(artifact.model.main_file, workdir))
    setting.progress.update("tune", f"costs of {len(sites)} layers")
    costs = site_costs(artifact, sites, setting, calibrated=calibrated)
    search = Search(artifact, setting, sites, costs, {}, max_bytes)
    search.layers = {name: _options(site, search, calibrated) for name, site in sites.items()}
    rest = artifact.model.size_bytes - sum(4 * site.parameters for site in _distinct(sites))
    room = max_bytes - rest
    if _too_large(search, room):
        _measure_losses(search, calibrated)
    chosen, result = _winning(search, room)
    chosen, result = _accurate(search, chosen, result, room, budget, dev)
    steps, done, runs = result
    setting.progress.finish("tune", summary(chosen))
    return Tuned(done, steps, runs, report(search, chosen))


def _distinct(sites: Mapping[str, Site]) -> list[Site]:
    return list({site.weight: site for site in sites.values()}.values())


def _options(site: Site, search: Search, calibrated: bool) -> list[Option]:
    """Float32 first. A layer whose kernel has no cost cannot have that kernel."""
    ms = search.costs.ms.get(site.node, {})
    sharing = sum(other.weight == site.weight for other in search.sites.values())  # what they share is written once
    found = []
    for scheme in SCHEMES:
        time = 0.0 if site.kind == "table" else ms.get(scheme.kernel)
        if scheme is FLOAT32:
            time = time or 0.0
        if time is None and scheme.kernel == "float32":
            time = 0.0
        if time is not None and fits(scheme, site, calibrated=calibrated):
            loss = search.losses.get(scheme.name, {}).get(site.node, _expected_loss(scheme, search.costs))
            found.append(Option(scheme.name, time, scheme.bytes_of(site) // sharing, loss))
    return found


def _expected_loss(scheme: Scheme, costs: SiteCosts) -> float:
    """Before a layer's own is measured: its share of what all layers under the kernel moved the outputs by, and what the
    bits it is stored in let expect."""
    moved = max(0.0, costs.divergence.get(scheme.kernel, 0.0)) / max(1, costs.layers.get(scheme.kernel, 1))
    return moved + scheme.prior_loss if scheme.step else 0.0


def _too_large(search: Search, room: float) -> bool:
    """Whether 8 bits for every layer do not fit the size budget, so that it matters what fewer lose."""
    return sum(min(o.bytes for o in options if BY_NAME[o.scheme].bits >= 8) for options in search.layers.values()) > room


def _measure_losses(search: Search, calibrated: bool) -> None:
    wanted = [
        scheme for scheme in SCHEMES if scheme.step and any(o.scheme == scheme.name for options in search.layers.values() for o in options)
    ]
    alike = {(scheme.bits, scheme.group_size, scheme.kernel.startswith("int8")): scheme for scheme in wanted}
    found = losses(search.artifact, alike.values(), search.layers, search.setting)
    moved = search.costs.divergence
    for scheme in wanted:
        measured = found.get(alike[scheme.bits, scheme.group_size, scheme.kernel.startswith("int8")].name, {})
        # Layers are measured with scales of each sample's own; fixed ones are as much better or worse as all layers together are.
        share = moved.get(scheme.kernel, 0.0) / (moved.get(INT8_DYNAMIC.kernel) or 1.0) if scheme.kernel == INT8_STATIC.kernel else 1.0
        search.losses[scheme.name] = {name: loss * (share or 1.0) for name, loss in measured.items()}
    search.layers = {name: _options(site, search, calibrated) for name, site in search.sites.items()}


Result = tuple[tuple[Step, ...], "Artifact", "list[PassRun]"]


def _winning(search: Search, room: float) -> tuple[dict[str, Option], Result]:
    """The assignment without the regions that lost; putting one back changes its neighbours, so it is looked at again."""
    fixed: dict[str, str] = {}
    for _ in range(ROUNDS):
        chosen, result = _assigned(search, room, fixed)
        lost = _lost(search, chosen, result)
        if not lost:
            break
        for sites, float_ms, quantized_ms in lost:
            small = {name: _stored(search, name, chosen[name]) for name in sites if name in chosen}
            fixed |= small
            search.put_back.append({"nodes": list(sites), "float32_ms": float_ms, "quantized_ms": quantized_ms})
    else:
        chosen, result = _assigned(search, room, fixed)
    return _worth_it(search, room, fixed, chosen, result)


def _worth_it(
    search: Search, room: float, fixed: dict[str, str], chosen: dict[str, Option], result: Result
) -> tuple[dict[str, Option], Result]:
    """Regions that win by themselves need not win together: where the whole model does not, its convolutions are put back,
    and then everything."""
    for kinds in (("convolution",), ("convolution", "product", "attention", "recurrent")):
        computed = _computed(search, chosen)
        if not computed:
            break
        try:
            ms = whole_ms({"float32": search.artifact, "quantized": result[1]}, search.setting)
        except EdgepipeError as error:  # then the validator is the first to see it whole
            search.costs.reason = search.costs.reason or error.what
            break
        if not ms or ms["quantized"] <= ms["float32"] * (1 - MARGIN):
            break
        back = [name for name in computed if search.sites[name].kind in kinds]
        if back:
            fixed |= {name: _stored(search, name, chosen[name]) for name in back}
            search.put_back.append({"nodes": back, "float32_ms": ms["float32"], "quantized_ms": ms["quantized"]})
            chosen, result = _assigned(search, room, fixed)
    return chosen, result


def _computed(search: Search, chosen: Mapping[str, Option]) -> list[str]:
    """Layers with kernels of their own, neither float32 nor looked up."""
    return [name for name, option in chosen.items() if BY_NAME[option.scheme].kernel != "float32" and search.sites[name].kind != "table"]


def _assigned(search: Search, room: float, fixed: Mapping[str, str]) -> tuple[dict[str, Option], Result]:
    """The assignment and what it gives. What layers take in the file besides their weights (names, more nodes) is known only
    when it is written: where it is too much, there is that much less room."""
    chosen: dict[str, Option] = {}
    while True:
        before, chosen = chosen, assign_shared(search.layers, {name: site.weight for name, site in search.sites.items()}, room, fixed)
        result = _run(search, chosen)
        over = result[1].model.size_bytes - search.max_bytes
        if over <= 0 or chosen == before:
            return chosen, result
        room = min(room, sum(option.bytes for option in chosen.values())) - over


def _stored(search: Search, name: str, now: Option) -> str:
    """Float32 kernels for a layer, stored as small as it was; a table is looked up either way, and stays as it is."""
    if search.sites[name].kind == "table":
        return now.scheme
    bits = BY_NAME[now.scheme].bits
    names = [
        option.scheme
        for option in search.layers[name]
        if BY_NAME[option.scheme].kernel == "float32" and BY_NAME[option.scheme].bits <= bits
    ]
    return max(names, key=lambda scheme: BY_NAME[scheme].bits) if names else FLOAT32.name


def _lost(search: Search, chosen: Mapping[str, Option], result: Result) -> list[Lost]:
    if all(BY_NAME[option.scheme].kernel == "float32" for option in chosen.values()):
        return []
    try:
        return lost_regions(search.artifact, result[1], search.setting, MARGIN, _computed(search, chosen))
    except EdgepipeError as error:  # what cannot be cut out is judged as a whole by the validator
        search.costs.reason = search.costs.reason or error.what
        return []


def _run(search: Search, chosen: Mapping[str, Option]) -> Result:
    steps = _steps(search, chosen)
    if not steps:
        return (), search.artifact, []
    recipe = Recipe(step=steps)
    done, runs = run_recipe(check_recipe(recipe, search.artifact), search.artifact, search.setting, label="tune: ")
    return recipe.steps, done, runs


def _steps(search: Search, chosen: Mapping[str, Option]) -> tuple[Step, ...]:
    """One step for each scheme that layers have, static ones first."""
    groups: dict[str, list[str]] = {}
    for name, option in chosen.items():
        if BY_NAME[option.scheme].step:
            groups.setdefault(option.scheme, []).append(name)
    order = sorted(groups, key=lambda scheme: (ORDER.index(BY_NAME[scheme].step), [each.name for each in SCHEMES].index(scheme)))
    return tuple(
        Step.model_validate(
            {
                "pass": BY_NAME[each].step,
                "options": {**_options_of(search, each), "include": groups[each]},
                "reason": reason(search, each, groups[each]),
            }
        )
        for each in order
    )


def _options_of(search: Search, scheme: str) -> dict[str, Any]:
    """The scheme's options, with the variant that did best, and rounding by the Hessian where there is data for it."""
    found = {**BY_NAME[scheme].options, **search.costs.options.get(BY_NAME[scheme].kernel, {})}
    if found.get("stored_bits") == 4 or (BY_NAME[scheme].kernel == "int4"):
        found["method"] = "gptq" if search.setting.splits.has("calibration") else "mse"
    return found


def _accurate(
    search: Search, chosen: dict[str, Option], result: Result, room: float, budget: Budget, dev: Dev | None
) -> tuple[dict[str, Option], Result]:
    """Leave layers out until the dev data holds the accuracy budget; the best that was found where nothing does."""
    if dev is None:
        return chosen, result
    tried = [(chosen, result, _noted(search, "all that pays", chosen, result, dev))]
    if tried[0][2] <= budget.max_accuracy_drop:
        return chosen, result
    if not search.losses:
        _measure_losses(search, search.setting.splits.has("calibration"))
        chosen = {name: next(o for o in search.layers[name] if o.scheme == option.scheme) for name, option in chosen.items()}
    ranked = _ranked(search, chosen)
    count = 1
    while count < 2 * len(ranked):
        left = ranked[: min(count, len(ranked))]
        fixed = {name: option.scheme for name, option in chosen.items()} | {name: _safer(search, name, chosen[name], room) for name in left}
        candidate, outcome = _assigned(search, room, fixed)
        drop = _noted(search, f"{len(left)} layers left out", candidate, outcome, dev)
        tried.append((candidate, outcome, drop))
        if drop <= budget.max_accuracy_drop:
            return candidate, outcome
        count *= 2
    best = min(tried, key=lambda entry: entry[2])
    return best[0], best[1]


def _ranked(search: Search, chosen: Mapping[str, Option]) -> list[str]:
    """Quantized layers, those first that give most accuracy back for the time it costs."""

    def worth(name: str) -> float:
        float_ms = search.layers[name][0].ms
        return chosen[name].loss / max(float_ms - chosen[name].ms, 1e-6)

    return sorted((name for name, option in chosen.items() if option.scheme != FLOAT32.name), key=lambda name: (-worth(name), name))


def _safer(search: Search, name: str, now: Option, room: float) -> str:
    """What a layer becomes when it is left out: float32 kernels on 8-bit weights, or float32 where it is that already; of a
    table 8 bits are as good as all."""
    names = [option.scheme for option in search.layers[name]]
    if search.sites[name].kind == "table":
        return TABLE if TABLE in names else now.scheme
    return OUT if OUT in names and now.scheme != OUT else FLOAT32.name


def _noted(search: Search, what: str, chosen: Mapping[str, Option], result: Result, dev: Dev) -> float:
    drop = dev(result[1])
    ms = sum(option.ms for option in chosen.values())
    search.steps.append({"what": what, "drop": drop, "size_bytes": result[1].model.size_bytes, "ms": ms})
    return drop
