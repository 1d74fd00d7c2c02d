"""Measures a candidate and its float32 baseline side by side on one runner: raw figures, no verdicts.

Both run in processes of their own, alternating in small blocks, spinning off. One walk over the test data gives
accuracy, the latency distribution at the task's own lengths, and end-to-end latency with encoding.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgepipe.gaps import gap_of, row_gaps, summary
from edgepipe.probes import fixed_feeds
from edgepipe.profile import host_profile
from edgepipe.runners import Proof
from edgepipe.runners.load import watch_of
from edgepipe.runners.local import LocalRunner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.progress import Progress
    from edgepipe.readers import Sample
    from edgepipe.runners import OpenModel, Prediction, Runner
    from edgepipe.tasks import TaskSpec

BLOCK = 8
WARM_UP = 8
PARITY_SAMPLES = 200
BATCH, PADDING = 8, 32
ROUNDS, PER_ROUND = 12, 3
SHAPES = {"text": ((1, 16), (1, 128), (8, 64)), "image": ((1, 0), (8, 0)), "tensors": ()}
STAGE = "validate"
RETIMED = 400
BUSY = 0.25  # share of the machine that others may use before times prove nothing
MIN_TIMINGS = 100  # of a small test set every sample is timed more than once


@dataclass(slots=True)
class Timing:
    """Milliseconds of baseline and candidate under one condition."""

    batch: int
    length: str
    baseline_ms: list[float]
    candidate_ms: list[float]
    end_to_end: bool = False


@dataclass(slots=True)
class Measurement:
    """Raw figures of one candidate against its baseline on one runner."""

    runner: str
    threads: int
    baseline_counts: list[list[float]] = field(default_factory=list)
    candidate_counts: list[list[float]] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    parity: dict[str, float] = field(default_factory=dict)
    batch: dict[str, float] = field(default_factory=dict)
    padding: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    other_load: float = 0.0
    board: dict[str, Any] = field(default_factory=dict)  # state of a device at the far end before and after, and what slowed it
    changed: list[dict[str, Any]] = field(default_factory=list)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    proofs: dict[str, dict[str, str]] = field(default_factory=dict)  # axis → what figures on it are worth
    transfer: dict[str, Any] = field(default_factory=dict)  # which samples an emulated target ran, and what it gave
    predicted: list[dict[str, Any]] = field(default_factory=list)  # latencies of a target whose times cannot be taken
    unpredicted: str = ""  # why there are none
    scaling: list[dict[str, float]] = field(default_factory=list)  # predicted milliseconds by threads
    costliest: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # nodes on the target, before and after
    roofline: dict[str, Any] = field(default_factory=dict)

    @property
    def slowed(self) -> str:
        """Why the device ran slower than it can while times were taken."""
        return ", ".join(self.board.get("slowed", ()))

    @property
    def disturbed(self) -> bool:
        """Whether times prove nothing: others used the machine, or heat or power slowed it."""
        return self.other_load > BUSY or bool(self.slowed)

    def proof(self, axis: str) -> Proof:
        return Proof(**self.proofs[axis])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        return cls(**{**data, "timings": [Timing(**timing) for timing in data["timings"]]})


def measure(
    candidate: Artifact,
    baseline: Artifact,
    runner: Runner,
    task: TaskSpec,
    samples: Sequence[Sample],
    threads: int,
    progress: Progress,
) -> Measurement:
    """Everything the validator judges, from one visit to the target. Raises `DeviceError` when the runner fails."""
    result = Measurement(runner.name, threads)
    ours, theirs = runner.push(candidate), runner.push(baseline)
    labels = candidate.program.get("labels", ())
    cpu = watch_of(runner)
    with opened(runner, ours, threads=threads) as new, opened(runner, theirs, threads=threads) as old:
        outputs = _walk(old, new, samples, task, labels, result, progress)
        for batch, length in fixed_shapes(candidate):
            progress.update(STAGE, f"timing {batch} × {length}" if length else f"timing batch {batch}")
            result.timings.append(_fixed_shape(old, new, candidate, batch, length))
        result.other_load, result.board = cpu.others_share(old.usage()[1] + new.usage()[1]), cpu.board()
        progress.update(STAGE, "batch and padding invariance")
        _invariance(new, samples, outputs, candidate, result)
    progress.update(STAGE, "parity with a plain session here")
    here = LocalRunner(exact=host_profile().cpu.int8_saturates)  # what the model means, whatever CPU this is
    with opened(here, here.push(candidate), threads=threads, optimise=False) as plain:
        _parity(plain, samples, outputs, result)
    progress.update(STAGE, "memory")
    for name, folder in (("candidate", ours), ("baseline", theirs)):
        result.memory[name] = _peak(runner, folder, threads, samples, candidate)
    if result.slowed:
        progress.update(STAGE, f"the device slowed itself down ({result.slowed}): letting it cool before times are taken again")
        getattr(runner, "cool_down", bool)()
        result = retime(result, candidate, baseline, runner, samples, progress)
    return result


def retime(
    found: Measurement, candidate: Artifact, baseline: Artifact, runner: Runner, samples: Sequence[Sample], progress: Progress
) -> Measurement:
    """The same measurement with times taken anew, on fewer samples: the machine was busy when the others were taken."""
    result = replace(found, timings=[])
    cpu = watch_of(runner)
    ours, theirs = runner.push(candidate), runner.push(baseline)
    with opened(runner, ours, threads=found.threads) as new, opened(runner, theirs, threads=found.threads) as old:
        timings = (Timing(1, "task", [], []), Timing(1, "task", [], [], end_to_end=True))
        progress.update(STAGE, "taking times again")
        for start in range(0, min(len(samples), RETIMED), BLOCK):
            _time_block(old, new, samples[start : start + BLOCK], timings, reverse=bool(start // BLOCK % 2))
        result.timings += timings
        result.timings += [_fixed_shape(old, new, candidate, batch, length) for batch, length in fixed_shapes(candidate)]
        result.other_load, result.board = cpu.others_share(old.usage()[1] + new.usage()[1]), cpu.board()
    return result


@contextmanager
def opened(runner: Runner, folder: Path, *, threads: int, optimise: bool = True) -> Iterator[OpenModel]:
    """An opened model that is closed whatever happens."""
    model = runner.open(folder, threads=threads, optimise=optimise)
    try:
        yield model
    finally:
        model.close()


def _walk(
    old: OpenModel,
    new: OpenModel,
    samples: Sequence[Sample],
    task: TaskSpec,
    labels: Sequence[str],
    result: Measurement,
    progress: Progress,
) -> list[Any]:
    """Alternate over the samples in blocks; the one that goes first changes too. Gives the candidate's predictions."""
    old.predict(samples[:WARM_UP])
    new.predict(samples[:WARM_UP])
    kept: list[Any] = []
    model = Timing(1, "task", [], [])
    total = Timing(1, "task", [], [], end_to_end=True)
    for number, start in enumerate(range(0, len(samples), BLOCK)):
        block = samples[start : start + BLOCK]
        progress.update(STAGE, "baseline and candidate over the test data", start, len(samples))
        theirs, ours = _time_block(old, new, block, (model, total), reverse=bool(number % 2))
        for sample, a, b in zip(block, theirs, ours, strict=True):
            before, after = scores(sample, a, b, task, labels)
            result.baseline_counts.append(before)
            result.candidate_counts.append(after)
            if task.predicted and labels:
                note_labels(sample, task.predicted(a.outputs, labels), task.predicted(b.outputs, labels), labels, result)
        kept += ours[: max(0, PARITY_SAMPLES - len(kept))]  # parity and invariance look at no more
    while len(model.baseline_ms) < MIN_TIMINGS:
        _time_block(old, new, samples, (model, total), reverse=bool(len(model.baseline_ms) // len(samples) % 2))
    result.timings += [model, total]
    return kept


def scores(sample: Sample, before: Prediction, after: Prediction, task: TaskSpec, labels: Sequence[str]) -> tuple[list[float], list[float]]:
    """The task's counts of one sample, of the uncompressed model and of the candidate."""
    if "tokens" in sample:  # also where no word is left of it
        sample = {**sample, "word_starts": before.word_starts}
    if "audio" in sample:
        sample = {**sample, "step_seconds": before.step_seconds}
    theirs, ours = (task.score(one.outputs, before.outputs, sample, labels) for one in (before, after))
    return [float(v) for v in theirs], [float(v) for v in ours]


def _time_block(
    old: OpenModel, new: OpenModel, block: Sequence[Sample], timings: tuple[Timing, Timing], *, reverse: bool
) -> tuple[Sequence[Prediction], Sequence[Prediction]]:
    """Both models' predictions of a block; the times of the model alone and with encoding are noted."""
    if reverse:
        ours, theirs = new.predict(block), old.predict(block)
    else:
        theirs, ours = old.predict(block), new.predict(block)
    for timing, attribute in zip(timings, ("model_ns", "total_ns"), strict=True):
        timing.baseline_ms += [max(1, getattr(prediction, attribute)) / 1e6 for prediction in theirs]
        timing.candidate_ms += [max(1, getattr(prediction, attribute)) / 1e6 for prediction in ours]
    return theirs, ours


def note_labels(sample: Mapping[str, Any], before: str, after: str, labels: Sequence[str], result: Measurement) -> None:
    from edgepipe.tasks.classification import label_name

    true = label_name(sample["label"], labels) if "label" in sample else None
    if true is not None:
        entry = result.classes.setdefault(true, {"n": 0, "baseline": 0, "candidate": 0})
        entry["n"] += 1
        entry["baseline"] += before == true
        entry["candidate"] += after == true
    if before != after:
        shown = sample.get("text") or str(sample.get("image", ""))
        result.changed.append({"input": shown[:300], "label": true, "before": before, "after": after})


def fixed_shapes(candidate: Artifact) -> list[tuple[int, int]]:
    """(batch, length) to time the model at, of those that it takes; length 0 where inputs have none."""
    settings = candidate.program["preprocess"]
    if candidate.program["kind"] != "single":  # its inputs have no shape but the samples' own
        return []
    limit = settings.get("length") or settings.get("max_length", 0)
    shapes = [(batch, min(length, limit) if length else 0) for batch, length in SHAPES.get(settings["kind"], ())]
    if settings.get("length"):
        shapes = [(batch, limit) for batch, _ in shapes]
    return [shape for shape in dict.fromkeys(shapes) if shape[0] == 1 or not settings.get("batch")]


def _fixed_shape(old: OpenModel, new: OpenModel, candidate: Artifact, batch: int, length: int) -> Timing:
    feeds = fixed_feeds(candidate, batch, length)
    shape = next(iter(feeds.values())).shape
    timing = Timing(batch, str(shape[1]) if length else "", [], [])  # the model's own limit may be under `length`
    for round_number in range(ROUNDS + 1):
        if round_number % 2:
            ours, theirs = new.repeat(feeds, PER_ROUND), old.repeat(feeds, PER_ROUND)
        else:
            theirs, ours = old.repeat(feeds, PER_ROUND), new.repeat(feeds, PER_ROUND)
        if round_number:  # the first round warms caches up
            timing.baseline_ms += [max(1, ns) / 1e6 for ns in theirs]
            timing.candidate_ms += [max(1, ns) / 1e6 for ns in ours]
    return timing


def _parity(plain: OpenModel, samples: Sequence[Sample], outputs: Sequence[Any], result: Measurement) -> None:
    """The same artifact as it runs on the target against a plain session without the runtime's rewrites."""
    part = samples[:PARITY_SAMPLES]
    gaps = [
        gap_of(a, b) for one, two in zip(plain.predict(part), outputs, strict=False) for a, b in zip(one.outputs, two.outputs, strict=True)
    ]
    result.parity = summary(gaps)


def _invariance(model: OpenModel, samples: Sequence[Sample], outputs: Sequence[Any], candidate: Artifact, result: Measurement) -> None:
    """How far a sample's outputs move in a batch, and alone with padding behind it."""
    settings = candidate.program["preprocess"]
    if settings["kind"] == "tensors" or settings.get("batch"):  # arrays as the model takes them, one at a time
        return
    part = samples[: min(PARITY_SAMPLES, len(samples) // BATCH * BATCH)]
    gaps = []
    for start in range(0, len(part), BATCH):
        together = model.batch(part[start : start + BATCH])
        alone = [run for prediction in outputs[start : start + BATCH] for run in prediction.outputs]
        gaps += list(row_gaps(together, alone))
    result.batch = summary(gaps)
    if settings["kind"] != "text" or settings.get("length"):
        return
    gaps = []
    limit = settings["max_length"]
    for sample, prediction in zip(part, outputs, strict=False):
        # The output does not tell how long the input was, so pad to twice the usual or to the limit.
        padded = model.batch([sample], min(limit, PADDING * 4)) if len(str(sample.get("text", ""))) < PADDING * 8 else None
        if padded is not None:
            gaps += list(row_gaps(padded, prediction.outputs))
    result.padding = summary(gaps)


def longest_first(samples: Sequence[Sample], indices: Sequence[int]) -> list[int]:
    """The indices, those of long samples first."""
    return sorted(indices, key=lambda index: -len(str(samples[index].get("text", samples[index].get("tokens", "")))))


def _peak(runner: Runner, folder: Path, threads: int, samples: Sequence[Sample], candidate: Artifact) -> int:
    """Peak resident bytes of a fresh process that loads the artifact and runs its longest input."""
    longest = [samples[index] for index in longest_first(samples, range(len(samples)))[:3]]
    with opened(runner, folder, threads=threads) as model:
        model.predict(longest)
        return model.usage()[0]
