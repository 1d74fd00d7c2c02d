"""RapidOCR's three models, Silero VAD and two CNNs on Fashion-MNIST: accuracy, size and latency of what edgepipe makes of each,
beside ONNX Runtime's own quantizers with the same calibration data.

The OCR models are judged by the characters that the whole reads with one of them replaced; Silero by the F1 of speech.
Latency is that of the one model on its test input of median size: one session a process, alternating, spinning off.
The examples' fetch.py, make_data.py and train.py come first.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from demo import known, write_result
from runtime_quantizer import QUANTIZERS, NotQuantized
from subjects import SUBJECTS, Subject, built, taken

from edgepipe.machine import usable_cores
from edgepipe.measure import BLOCK, opened, scores
from edgepipe.runners.local import LocalRunner
from edgepipe.store import Store
from edgepipe.weights import onnx_component

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from subjects import Built

    from edgepipe.artifact import Artifact

ROUNDS, SECONDS_A_TURN = 30, 0.03  # of timing; a turn runs a model as often as fits, once at the least
FLOAT32, OURS = "float32", "edgepipe"
NAME = "five_models"
HEAD = "| model | made by | points (lost) | bytes (× smaller) | ms, median (× float32's speed; by the fastest runs) | layers |"


@dataclass(slots=True)
class Row:
    """What one way of making a model gave; `failed` says why it gave nothing."""

    points: float = 0.0
    size_bytes: int = 0
    times_ms: list[float] = field(default_factory=list)
    failed: str = ""
    schemes: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        if self.failed:
            return {"failed": self.failed}
        times = {"median_ms": statistics.median(self.times_ms), "fastest_ms": min(self.times_ms)}
        return {"points": self.points, "bytes": self.size_bytes, **times, "schemes": self.schemes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="this model; may be repeated")
    parser.add_argument("--threads", type=int, default=usable_cores())
    given = parser.parse_args()
    for name in given.only or SUBJECTS:
        rows = {made: row.to_json() for made, row in compared(SUBJECTS[name], given.threads).items()}
        found = known(NAME) | {name: {**rows, "threads": given.threads}}
        ordered = {each: found[each] for each in SUBJECTS if each in found}
        table = "\n".join([HEAD, "|---" * 6 + "|", *(line for each, rows in ordered.items() for line in lines(each, rows))])
        write_result(NAME, "python benchmarks/five_models.py", table, ordered)


def compared(subject: Subject, threads: int) -> dict[str, Row]:
    """Every way to make the model, measured."""
    store = Store.default()
    made = built(subject, "host", threads=threads)
    rows = {FLOAT32: Row()}
    wholes, parts = {FLOAT32: made.baseline}, {FLOAT32: made.before}
    with store.workdir() as workdir:
        for name, quantizer in QUANTIZERS.items():
            rows[name] = Row()
            try:
                file = quantizer(made.before.model.main_file, made.calibration, workdir / f"peer-{len(rows)}")
            except NotQuantized as error:
                rows[name].failed = str(error)
                continue
            wholes[name], parts[name] = made.with_model(onnx_component(file.parent, file.name), store)
    rows[OURS] = Row(schemes=dict(Counter(site["scheme"] for site in made.tuning.get("sites", ()))))
    wholes[OURS], parts[OURS] = made.compressed, made.after
    for name, part in parts.items():
        rows[name].size_bytes = part.model.size_bytes
    alternating(parts, made.typical, threads, rows)
    _points(wholes, made, subject.samples, threads, rows)
    return rows


def alternating(parts: Mapping[str, Artifact], feeds: Mapping[str, np.ndarray], threads: int, rows: Mapping[str, Row]) -> None:
    """Every model on the same input, in turns."""
    runner = LocalRunner()
    models = {name: runner.open(runner.push(part), threads=threads) for name, part in parts.items()}
    given = {name: taken(part, feeds) for name, part in parts.items()}
    try:
        counts = {}
        for name, model in models.items():
            once = min(model.repeat(given[name], 3)) / 1e9
            counts[name] = max(1, round(SECONDS_A_TURN / once))
        for _ in range(ROUNDS):
            for name, model in models.items():
                rows[name].times_ms += [ns / 1e6 for ns in model.repeat(given[name], counts[name])]
    finally:
        for model in models.values():
            model.close()


def _points(wholes: Mapping[str, Artifact], made: Built, count: int, threads: int, rows: Mapping[str, Row]) -> None:
    """What each whole scores on the same test samples, evenly over the test data."""
    samples = made.prepared.splits("test")
    samples = samples[:: max(1, len(samples) // count)][:count]
    runner, labels = LocalRunner(), made.prepared.artifact.program.get("labels", ())

    def predictions(whole: Artifact) -> list[Any]:
        with opened(runner, runner.push(whole), threads=threads) as model:
            return [one for start in range(0, len(samples), BLOCK) for one in model.predict(samples[start : start + BLOCK])]

    before = predictions(wholes[FLOAT32])
    for name, whole in wholes.items():
        after = before if name == FLOAT32 else predictions(whole)
        counts = [scores(sample, a, b, made.prepared.task, labels)[1] for sample, a, b in zip(samples, before, after, strict=True)]
        rows[name].points = made.prepared.task.metric(np.array(counts))


def lines(name: str, rows: Mapping[str, Any]) -> Sequence[str]:
    """A model's lines of the table."""
    base = rows[FLOAT32]
    told = [f"| {name} | {FLOAT32} | {base['points']:.2f} | {base['bytes']:,} | {base['median_ms']:.2f} | |"]
    for made_by, row in rows.items():
        if made_by in (FLOAT32, "threads"):
            continue
        if "failed" in row:
            told.append(f"| {name} | {made_by} | {row['failed'].replace('|', '/')} | – | – | – |")
            continue
        speed, fastest = base["median_ms"] / row["median_ms"], base["fastest_ms"] / row["fastest_ms"]
        cells = [
            f"{row['points']:.2f} ({base['points'] - row['points']:+.2f})",
            f"{row['bytes']:,} ({base['bytes'] / row['bytes']:.2f} ×)",
            f"{row['median_ms']:.2f} ({speed:.2f} ×; {fastest:.2f} ×)",
            ", ".join(f"{count} {scheme}" for scheme, count in sorted(row["schemes"].items(), key=lambda entry: -entry[1])),
        ]
        told.append(f"| {name} | {made_by} | " + " | ".join(cells) + " |")
    return told


if __name__ == "__main__":
    main()
