"""Wall time and peak memory of a cold build of the demo model, against Olive 0.13 on its base; alternating, medians."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from demo import ROOT, request, write_result

ROUNDS = 3
KEPT = ("wall_s", "peak_rss_bytes", "bytes", "passes", "peaks")  # without this machine's paths

# Runs a command and reports its wall seconds and the largest resident set of any process below it.
WRAPPER = """
import json, resource, subprocess, sys, time
start = time.time(); done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(json.dumps({"wall_s": time.time() - start, "peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
                  "code": done.returncode, "out": done.stdout, "err": done.stderr[-2000:]}))
"""


def ours() -> dict[str, Any]:
    """One build in a cache that holds the downloads and nothing else."""
    cache = Path(os.environ.get("EDGEPIPE_CACHE") or _default_cache())
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        (Path(folder) / "downloads").symlink_to(cache / "downloads")
        command = [sys.executable, "-c", WRAPPER, sys.executable, str(ROOT / "benchmarks" / "build_once.py")]
        done = json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "EDGEPIPE_CACHE": folder}).stdout
        )
        if done["code"]:
            sys.exit(done["err"])
        built = json.loads(done["out"])
        kept = cache / "peers" / "edgepipe.onnx"
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(built["model"], kept)
    return {**done, **built, "model": str(kept)}


def _default_cache() -> str:
    from edgepipe.store import cache_root

    return str(cache_root())


def olive(out: Path) -> dict[str, Any]:
    command = ["bash", str(ROOT / "benchmarks" / "peers" / "olive.sh"), request(profiles=["host"]).model, str(out)]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]))


def main() -> None:
    work = Path(os.environ.get("EDGEPIPE_CACHE") or _default_cache()) / "peers"
    work.mkdir(parents=True, exist_ok=True)
    olive(work / "olive_out")  # installs it, and warms the disk cache for both
    rows: dict[str, list[dict[str, Any]]] = {"Olive 0.13": [], "edgepipe": []}
    for _ in range(ROUNDS):
        time.sleep(1)
        rows["Olive 0.13"].append(olive(work / "olive_out"))
        rows["edgepipe"].append(ours())
    median = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("wall_s", "peak_rss_bytes", "bytes")}
        for name, runs in rows.items()
    }
    base = median["Olive 0.13"]
    lines = ["| | wall s | of Olive | peak MiB | of Olive | int8 bytes |", "|---|---|---|---|---|---|"]
    for name, found in median.items():
        lines.append(f"| {name} | {found['wall_s']:.1f} | {found['wall_s'] / base['wall_s']:.2f} | {found['peak_rss_bytes'] / 2**20:.0f} | "
                     f"{found['peak_rss_bytes'] / base['peak_rss_bytes']:.2f} | {found['bytes']:,.0f} |")  # fmt: skip
    last = rows["edgepipe"][-1]
    lines += [
        "",
        "edgepipe by pass: "
        + ", ".join(f"{name} {seconds:.1f} s ({last['peaks'][name] / 2**20:.0f} MiB)" for name, seconds in last["passes"].items()),
    ]
    kept = {name: [{key: run[key] for key in KEPT if key in run} for run in runs] for name, runs in rows.items()}
    write_result("build_speed", "python benchmarks/build_speed.py", "\n".join(lines), kept)


if __name__ == "__main__":
    main()
