"""The loop that finds how far heads and neurons must go: the widest layers with which the model holds its size and latency.

Size and time of a model do not depend on what its weights are, so every candidate is cut, exported, quantized and run on the
target untrained; only the one that holds is trained. What each layer keeps at a given share of the time is a knapsack over the
importance of its units (`tuning.widths`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.config import Recipe
from edgepipe.errors import EdgepipeError
from edgepipe.pipeline import job_of, run_recipe
from edgepipe.plan_quantization import weights_of
from edgepipe.recipe_check import check_recipe
from edgepipe.tuning.unit_costs import unit_costs
from edgepipe.tuning.whole import whole_ms
from edgepipe.tuning.widths import LayerUnits, kept_widths
from edgepipe.worker import MeasureUnits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.config import Budget, Step
    from edgepipe.passes import PassSpec
    from edgepipe.pipeline import Setting

    Steps = Sequence[tuple[Step, PassSpec, Any]]

OPEN = ("prune-heads", "prune-ffn")
TRAINING = ("recover", "quantization-aware-training")
CANDIDATES = 5
MARGIN = 0.03  # of a limit: what timing is uncertain by
TABLE_BYTES = 0.52  # of a value in an embedding table, which goes to 4 bits where size binds
SMALLEST_SHARE = 0.05  # of the layers' time


@dataclass(slots=True)
class _Search:
    """Candidates by the share of the layers' time they keep: how much of each budget they take (1: all of it)."""

    layers: list[LayerUnits]
    multiple_of: int
    tried: dict[float, dict[str, float]] = field(default_factory=dict)

    def holds(self, share: float) -> bool:
        return all(used <= 1 for used in self.tried[share].values())

    def next_share(self) -> float:
        """Where the budget that is used up most would just hold, by a line through the two candidates nearest to it."""
        if len(self.tried) == 1:
            return 0.5
        found = []
        for name in next(iter(self.tried.values())):
            (a, used_a), (b, used_b) = sorted(((s, used[name]) for s, used in self.tried.items()), key=lambda point: abs(point[1] - 1))[:2]
            found.append(b + (1 - used_b) * (a - b) / (used_a - used_b) if used_a != used_b else min(a, b) / 2)
        return round(min(max(min(found), SMALLEST_SHARE), 0.98), 3)


def is_open(step: Step, options: Any) -> bool:
    """Whether the recipe leaves it to the budgets how much the step cuts."""
    return step.name in OPEN and options.ratio is None and not options.keep


def with_widths(
    steps: Steps, start: Artifact, baseline: Artifact, setting: Setting, budget: Budget, max_bytes: float
) -> tuple[Steps, dict[str, Any]]:
    """The steps with the widths that hold the budgets, without those that are not needed, and the figures behind that."""
    places = [index for index, (step, _, options) in enumerate(steps) if is_open(step, options)]
    if not places:
        return steps, {}
    setting.progress.stage("tune", "how wide each layer may be")
    before, _ = run_recipe(steps[: places[0]], start, setting)
    step, _, options = steps[places[0]]
    with setting.store.workdir() as workdir:
        units = setting.worker.ask(MeasureUnits(job_of(step, options, before, setting, workdir)), "tune").value
    cut = {steps[place][0].name for place in places}
    multiple_of = next((options.multiple_of for step, _, options in (steps[p] for p in places) if step.name == "prune-ffn"), 1)
    hidden, head_size = units[0]["hidden"], units[0]["head_size"]
    costs = unit_costs(setting.profile, hidden, head_size, len(units[0]["ffn"]))
    layers = [_units(unit, cut, costs.head_us, costs.neuron_us) for unit in units]
    search = _Search(layers, multiple_of)
    share = 1.0
    for _ in range(CANDIDATES):
        search.tried[share] = _used(_filled(steps, search, share), start, baseline, setting, budget, max_bytes)
        if share == 1.0 and search.holds(share):
            break
        share = search.next_share()
        if share in search.tried:
            break
    holding = [share for share in search.tried if search.holds(share)]
    chosen = max(holding) if holding else min(search.tried)
    return _filled(steps, search, chosen), {
        "widths": [{"heads": kept.heads, "ffn": kept.neurons} for kept in kept_widths(layers, chosen, multiple_of)],
        "share_of_time": chosen,
        "held": bool(holding),
        "costs": costs.source,
        "candidates": [{"share": share, "budgets_used": used} for share, used in search.tried.items()],
    }


def _units(unit: dict[str, Any], cut: set[str], head_us: float, neuron_us: float) -> LayerUnits:
    """What no open step cuts is worth too much to go."""
    heads, neurons = np.asarray(unit["heads"], float), np.asarray(unit["ffn"], float)
    return LayerUnits(
        heads if "prune-heads" in cut else np.full(len(heads), np.inf),
        neurons if "prune-ffn" in cut else np.full(len(neurons), np.inf),
        head_us,
        neuron_us,
    )


def _filled(steps: Steps, search: _Search, share: float) -> Steps:
    """The steps with counts for every layer; without steps that would cut nothing."""
    kept = kept_widths(search.layers, share, search.multiple_of)
    counts = {"prune-heads": [k.heads for k in kept], "prune-ffn": [k.neurons for k in kept]}
    whole = {"prune-heads": [len(one.heads) for one in search.layers], "prune-ffn": [len(one.neurons) for one in search.layers]}
    filled = []
    for step, spec, options in steps:
        if not is_open(step, options):
            filled.append((step, spec, options))
        elif counts[step.name] != whole[step.name]:
            keep = {"keep": counts[step.name]}
            reason = f"{share:.0%} of the layers' time holds the budgets; least importance lost for the time saved"
            changed = step.model_copy(update={"options": {**step.options, **keep}, "reason": reason})
            filled.append((changed, spec, spec.options.model_validate(changed.options)))
    return filled


def _quantized(steps: Steps, artifact: Artifact, setting: Setting) -> Artifact:
    """Exported and quantized as planned. A scheme that finds no layer left to quantize (a table that was cut small) is no error
    here: layers get their schemes later, one by one."""
    for entry in steps:
        try:
            artifact, _ = run_recipe([entry], artifact, setting, label="tune: ")
        except EdgepipeError:
            if not entry[0].name.startswith("quantize-"):
                raise
    return artifact


def _used(steps: Steps, start: Artifact, baseline: Artifact, setting: Setting, budget: Budget, max_bytes: float) -> dict[str, float]:
    """How much of each budget the untrained candidate takes."""
    quick = []
    for step, _, options in steps:
        if step.name in TRAINING:
            continue
        # Which units go does not change size or time, and magnitudes need no data.
        cheaper = {"importance": "magnitude"} if step.name in OPEN and options.keep else {}
        quick.append(step.model_copy(update={"options": {**step.options, **cheaper}}))
    checked = check_recipe(Recipe(step=tuple(quick)), start)
    torch = [entry for entry in checked if entry[1].gives.get("model") == "torch"]
    cut, _ = run_recipe(torch, start, setting, label="tune: ")
    done = _quantized(checked[len(torch) :], cut, setting)
    tables = sum(rows * width for rows, width in weights_of(cut).get("table", ()))
    used = {"size": (done.model.size_bytes - tables * (1 - TABLE_BYTES)) / max_bytes}
    ms = whole_ms({"float32": baseline, "cut": done}, setting)
    if ms:
        limit = budget.max_latency_ratio * ms["float32"]
        limit = min(limit, budget.max_latency_ms or limit)
        used["latency"] = ms["cut"] / (limit * (1 - MARGIN))
    return used
