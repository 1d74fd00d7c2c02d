"""Measures a candidate on an emulated target: real outputs and memory there, times on nobody.

The host runs every sample, the target those of the sampling plan, longest first, one agent a core. The float32 baseline
stays on the host once its outputs hold on the target.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from edgepipe.gaps import gap_of, row_gaps, summary
from edgepipe.machine import usable_cores
from edgepipe.measure import BATCH, PARITY_SAMPLES, STAGE, WARM_UP, Measurement, longest_first, note_labels, opened, scores
from edgepipe.runners.local import LocalRunner
from edgepipe.transfer import agreement, sampling_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.progress import Progress
    from edgepipe.readers import Sample
    from edgepipe.runners import OpenModel, Prediction, Runner
    from edgepipe.tasks import TaskSpec

BASELINE_SAMPLES = 16  # that show whether the float32 model gives the same here and there
BATCHES, PADDED, PADDED_LENGTH = 4, 8, 64
HOST_BLOCK = 32

Job = tuple[str, Any, "Callable[[OpenModel], Any]"]  # kind, key of the answer, what to ask an agent


def measure_emulated(
    candidate: Artifact,
    baseline: Artifact,
    runner: Runner,
    task: TaskSpec,
    samples: Sequence[Sample],
    progress: Progress,
    target_samples: int | None,
    *,
    exact: bool = False,
) -> Measurement:
    """Everything the validator judges but latency. `target_samples` random samples run on the target, None: all. `exact`: as
    for `LocalRunner`, what runs here."""
    result = Measurement(runner.name, runner.threads)
    labels = candidate.program.get("labels", ())
    host = LocalRunner(exact=exact)
    ours, theirs = runner.push(candidate), runner.push(baseline)
    base_here = _on_host(host, theirs, samples, progress, "baseline")
    here = _on_host(host, ours, samples, progress, "candidate")
    for sample, before, after in zip(samples, base_here, here, strict=True):
        counts = scores(sample, before, after, task, labels)
        result.baseline_counts.append(counts[0])
        result.candidate_counts.append(counts[1])
    plan = sampling_plan(here, bool(labels), target_samples)
    order = [*plan.random, *plan.nearest]

    there, gaps = _candidate_there(runner, ours, samples, order, candidate, progress)
    result.batch, result.padding = gaps
    plan.agreement = agreement([here[i] for i in order], [there[i] for i in order], len(plan.random), len(samples), labelled=bool(labels))

    few = order[: min(BASELINE_SAMPLES, len(order))]
    base_there = _spread(runner, theirs, samples, few, progress, "baseline on the target")
    pairs = [base_here[i] for i in few], [base_there[i] for i in few]
    plan.baseline_agreement = agreement(*pairs, len(few), len(samples), labelled=bool(labels))
    if plan.baseline_agreement["beyond"] or plan.baseline_agreement["differ"]:
        rest = order[len(few) :]
        base_there |= _spread(runner, theirs, samples, rest, progress, "baseline on the target: it differs from here")
    else:
        base_there = {i: base_here[i] for i in order}

    for index in order:
        plan.baseline[index], plan.candidate[index] = scores(samples[index], base_there[index], there[index], task, labels)
    if task.predicted and labels:
        for index, sample in enumerate(samples):  # as the target has it, where it ran
            before, after = base_there.get(index, base_here[index]), there.get(index, here[index])
            note_labels(sample, task.predicted(before.outputs, labels), task.predicted(after.outputs, labels), labels, result)
    result.transfer = plan.to_json()
    result.parity = _parity(host, ours, samples, plan.random[:PARITY_SAMPLES], there, progress)
    progress.update(STAGE, "memory on the target")
    longest = [samples[index] for index in longest_first(samples, range(len(samples)))[:1]]
    jobs = {name: _peak_job(runner, folder, longest) for name, folder in (("candidate", ours), ("baseline", theirs))}
    with ThreadPoolExecutor(min(2, usable_cores())) as pool:
        found = {name: pool.submit(job) for name, job in jobs.items()}
        result.memory = {name: future.result() for name, future in found.items()}
    return result


def _on_host(host: Runner, folder: Path, samples: Sequence[Sample], progress: Progress, which: str) -> list[Prediction]:
    kept: list[Prediction] = []
    with opened(host, folder, threads=usable_cores()) as model:
        model.predict(samples[:WARM_UP])
        for start in range(0, len(samples), HOST_BLOCK):
            progress.update(STAGE, f"{which} over the test data here", start, len(samples))
            kept += model.predict(samples[start : start + HOST_BLOCK])
    return kept


def _candidate_there(
    runner: Runner, folder: Path, samples: Sequence[Sample], order: Sequence[int], candidate: Artifact, progress: Progress
) -> tuple[dict[int, Prediction], tuple[dict[str, float], dict[str, float]]]:
    """The candidate's predictions on the target, and how far batches and padding move them there."""
    settings = candidate.program["preprocess"]
    rows = order[: BATCHES * BATCH] if settings["kind"] != "tensors" and not settings.get("batch") else []
    groups = [rows[start : start + BATCH] for start in range(0, len(rows) // BATCH * BATCH, BATCH)]
    short = [i for i in rows if len(str(samples[i].get("text", ""))) < PADDED_LENGTH * 2][:PADDED] if settings["kind"] == "text" else []
    short = [] if settings.get("length") else short
    length = min(PADDED_LENGTH, settings.get("max_length", PADDED_LENGTH))
    jobs: list[Job] = [
        ("one", i, _predict_job(samples[i])) for i in longest_first(samples, order)
    ]  # so that no core is left with a long one at the end
    jobs = [*(("batch", tuple(g), _batch_job([samples[i] for i in g])) for g in groups), *jobs]
    jobs += [("padded", i, _batch_job([samples[i]], length)) for i in short]
    found: dict[tuple[str, Any], Any] = {}
    for number, (kind, key, answer) in enumerate(_parallel(runner, folder, jobs)):
        progress.update(STAGE, "candidate on the target", number + 1, len(jobs))
        found[kind, key] = answer
    there = {i: found["one", i] for i in order}
    batch = [gap for g in groups for gap in row_gaps(found["batch", tuple(g)], [run for i in g for run in there[i].outputs])]
    padding = [gap for i in short for gap in row_gaps(found["padded", i], there[i].outputs)]
    return there, (summary(batch), summary(padding))


def _spread(
    runner: Runner, folder: Path, samples: Sequence[Sample], indices: Sequence[int], progress: Progress, what: str
) -> dict[int, Prediction]:
    jobs = [("one", i, _predict_job(samples[i])) for i in longest_first(samples, indices)]
    found = {}
    for number, (_, index, answer) in enumerate(_parallel(runner, folder, jobs)):
        progress.update(STAGE, what, number + 1, len(jobs))
        found[index] = answer
    return found


def _predict_job(sample: Sample) -> Callable[[OpenModel], Prediction]:
    return lambda model: model.predict([sample])[0]


def _batch_job(part: Sequence[Sample], length: int | None = None) -> Callable[[OpenModel], Any]:
    return lambda model: model.batch(part, length)


def _peak_job(runner: Runner, folder: Path, longest: Sequence[Sample]) -> Callable[[], int]:
    def peak() -> int:
        with opened(runner, folder, threads=runner.threads) as model:
            model.predict(longest)
            return model.usage()[0]

    return peak


def _parallel(runner: Runner, folder: Path, jobs: Sequence[Job]) -> Iterator[tuple[str, Any, Any]]:
    """(kind, key, answer) of each job as it is done; one agent a core takes one job after the other."""
    waiting = iter(jobs)
    agents = min(usable_cores(), len(jobs))
    with ThreadPoolExecutor(max(1, agents)) as pool:
        opening = [pool.submit(runner.open, folder, threads=1) for _ in range(agents)]
        running: dict[Future[Any], tuple[Job, OpenModel]] = {}
        try:
            for future in as_completed(opening):
                if (job := next(waiting, None)) is not None:
                    running[pool.submit(job[2], future.result())] = (job, future.result())
            while running:
                done = next(as_completed(list(running)))
                (kind, key, _), model = running.pop(done)
                yield kind, key, done.result()
                if (job := next(waiting, None)) is not None:
                    running[pool.submit(job[2], model)] = (job, model)
        finally:
            for future in opening:
                if future.exception() is None:
                    future.result().close()


def _parity(
    host: Runner, folder: Path, samples: Sequence[Sample], indices: Sequence[int], there: dict[int, Prediction], progress: Progress
) -> dict[str, float]:
    """The artifact as it runs on the target against a plain session without the runtime's rewrites on this machine."""
    progress.update(STAGE, "parity with a plain session here")
    with opened(host, folder, threads=1, optimise=False) as plain:
        found = plain.predict([samples[index] for index in indices])
    pairs = [(a, b) for one, index in zip(found, indices, strict=True) for a, b in zip(one.outputs, there[index].outputs, strict=True)]
    return summary([gap_of(a, b) for a, b in pairs])
