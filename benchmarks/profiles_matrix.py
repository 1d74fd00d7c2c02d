"""Model × profile: what edgepipe's quantized artefact gains over its own float32 model on each device, and that none is slower.

Boards are counted under emulation (`edgepipe devices setup rpi4` comes first), the host is timed: alternating, one session a
process, spinning off. Text at the lengths of its task, everything else on its input of median size. `--all` takes every
model and profile, which is hours of emulation.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from demo import known, write_result
from five_models import FLOAT32, OURS, Row, alternating
from subjects import SUBJECTS, Subject, built, taken

from edgepipe.emulation import emulated
from edgepipe.errors import EdgepipeError
from edgepipe.machine import usable_cores
from edgepipe.predicted import KINDS, counted, predict_latencies, predicted_at_task
from edgepipe.profile import HOST, load_profile
from edgepipe.progress import Silent
from edgepipe.store import Store

if TYPE_CHECKING:
    from subjects import Built

MODELS = {"demo classifier": Subject("sentiment", 400), **SUBJECTS}
PROFILES = ("host", "rpi5", "rpi4", "rpi3", "rk3588")
REDUCED = (("rpi5", "rpi4"), ("Fashion-MNIST residual", "demo classifier", "OCR recogniser"))
NAME = "profiles_matrix"
HEAD = "| model | profile | float32 ms | quantized ms | × float32's speed (interval) | × smaller | layers |"
SLOWER = 1.03  # × float32's time: what timing and counting are uncertain by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every model on every profile")
    parser.add_argument("--model", action="append", choices=MODELS, help="this model; may be repeated")
    parser.add_argument("--profile", action="append", choices=PROFILES, help="this profile; may be repeated")
    given = parser.parse_args()
    profiles = given.profile or (PROFILES if given.all else REDUCED[0])
    models = given.model or (MODELS if given.all else REDUCED[1])
    for model in models:
        for profile in profiles:
            try:
                row = compared(MODELS[model], profile)
            except EdgepipeError as error:
                row = {"failed": error.what}
            write(known(NAME) | {f"{model} on {profile}": {"model": model, "profile": profile, **row}})


def write(found: dict[str, Any]) -> None:
    order = [name for model in MODELS for profile in PROFILES if (name := f"{model} on {profile}") in found]
    slower = [name for name in order if found[name].get("ratio", 0.0) > SLOWER]
    said = f"{len(slower)} of {len(order)} quantized artefacts are slower than their float32" + (
        f": {', '.join(slower)}." if slower else "."
    )
    table = "\n".join([HEAD, "|---" * 7 + "|", *(line(found[name]) for name in order), "", said])
    write_result(NAME, "python benchmarks/profiles_matrix.py", table, {name: found[name] for name in order})


def compared(subject: Subject, profile_name: str) -> dict[str, Any]:
    made = built(subject, profile_name)
    found = timed(made) if profile_name == HOST else predicted(made, subject, profile_name)
    schemes = Counter(site["scheme"] for site in made.tuning.get("sites", ()))
    smaller = made.before.model.size_bytes / made.after.model.size_bytes
    return {
        **found,
        "smaller": smaller,
        "schemes": dict(schemes),
        "costs": made.tuning.get("costs", ""),
        "put_back": len(made.tuning.get("put_back", ())),
    }


def timed(made: Built) -> dict[str, Any]:
    rows = {FLOAT32: Row(), OURS: Row()}
    alternating({FLOAT32: made.before, OURS: made.after}, made.typical, usable_cores(), rows)
    before, after = (rows[name].to_json()["fastest_ms"] for name in (FLOAT32, OURS))
    return {"float32_ms": before, "ms": after, "ratio": after / before}


def predicted(made: Built, subject: Subject, profile_name: str) -> dict[str, Any]:
    """From instructions counted on the target's CPU."""
    profile, store = load_profile(profile_name), Store.default()
    emulation, artifacts = emulated(profile), dict(zip(KINDS, (made.before, made.after), strict=True))
    if made.before.program["preprocess"]["kind"] == "text":
        samples = made.prepared.splits("test")[: subject.samples]
        entries = predict_latencies(made.after, made.before, profile, emulation, samples, store, Silent()).entries
    else:
        counts = {}
        for kind, artifact in artifacts.items():
            feeds = taken(artifact, made.typical)
            told_by = {"typical": [[name, list(value.shape)] for name, value in feeds.items()]}
            counts[kind] = counted(artifact, feeds, told_by, profile, emulation, store)
        entries = predicted_at_task(counts, profile).entries
    first = entries[0]
    by_length = {entry["length"]: 1 / entry["ratio"]["value"] for entry in entries}
    ratio = first["ratio"]
    return {
        "float32_ms": first["baseline"]["ms"],
        "ms": first["candidate"]["ms"],
        "ratio": max(entry["ratio"]["value"] for entry in entries),
        "interval": [ratio["low"], ratio["high"]],
        "speed": 1 / ratio["value"],
        "by_length": by_length,
    }


def line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['model']} | {row['profile']} | {row['failed'].replace('|', '/')} | – | – | – | – |"
    speed = f"{row.get('speed', 1 / row['ratio']):.2f}"
    if low_high := row.get("interval"):
        speed += f" ({1 / low_high[1]:.2f} to {1 / low_high[0]:.2f})"
    if len(row.get("by_length", ())) > 1:
        speed += "; " + ", ".join(f"{value:.2f} at {length}" for length, value in row["by_length"].items() if length != "task")
    schemes = ", ".join(f"{count} {scheme}" for scheme, count in sorted(row["schemes"].items(), key=lambda entry: -entry[1]))
    cells = [f"{row['float32_ms']:.2f}", f"{row['ms']:.2f}", speed, f"{row['smaller']:.2f}", schemes]
    return f"| {row['model']} | {row['profile']} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
