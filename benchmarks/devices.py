"""What judging a device by emulation costs: set-up after downloads, the demo bundle on a Raspberry Pi 4, and how far
instruction counts repeat. Needs the demo's bundle (`make demo`) and `edgepipe devices setup rpi4` before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from demo import EXAMPLE, write_result

from edgepipe.bundle import read_bundle
from edgepipe.cost.counting import count
from edgepipe.cost.latency import cache_shapes
from edgepipe.emulation import emulated, emulator_env
from edgepipe.probes import fixed_feeds
from edgepipe.profile import load_profile
from edgepipe.store import cache_root

BUNDLE = EXAMPLE / "build"


def run(command: list[str], cache: Path) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=EXAMPLE, env={**os.environ, "EDGEPIPE_CACHE": str(cache)}, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, done.stdout


def set_up(folder: Path) -> tuple[float, int]:
    """Seconds and bytes of a set-up whose downloads are there."""
    shutil.copytree(cache_root() / "devices" / "downloads", folder / "devices" / "downloads")
    seconds, _ = run(["edgepipe", "devices", "setup", "rpi4"], folder)
    kept = [path for path in (folder / "devices").iterdir() if path.name != "downloads"]
    size = sum(path.lstat().st_size for place in kept for path in place.rglob("*") if path.is_file() and not path.is_symlink())
    return seconds, size


def judge(folder: Path) -> tuple[float, dict]:
    """Seconds of `validate` with nothing kept but the models and the set-up, and the manifest it gave."""
    (folder / "store").mkdir()
    for place in ("downloads", "store/trees"):
        (folder / place).symlink_to(cache_root() / place)
    seconds, told = run(["edgepipe", "validate", str(BUNDLE), "--profile", "rpi4", "--json"], folder)
    return seconds, json.loads(told)


def repeat() -> float:
    """Largest relative difference of any class's count between two runs of the demo model at 1 × 16."""
    artifact, _ = read_bundle(BUNDLE)
    profile = load_profile("rpi4")
    emulation = emulated(profile)
    totals = [
        count(
            emulation.command,
            emulation.python,
            emulator_env(emulation),
            artifact.model.main_file,
            fixed_feeds(artifact, 1, 16),
            caches=cache_shapes(profile),
        ).total
        for _ in range(2)
    ]
    large = {name for name, amount in totals[0].items() if amount > 10_000}
    return max(abs(totals[0][name] - totals[1][name]) / totals[0][name] for name in large)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        setup_s, size = set_up(Path(name))
        judged_s, manifest = judge(Path(name))
    deviation = repeat()
    rows = [
        ("`edgepipe devices setup rpi4`, after downloads", f"{setup_s:.1f} s", "≤ 90 s"),
        ("… on disk", f"{size / 1e6:.0f} MB", "≤ 600 MB"),
        ("the demo bundle judged on rpi4 (250 samples, parity, memory, prediction)", f"{judged_s:.0f} s", "≤ 180 s"),
        ("instruction counts of two runs, apart by at most", f"{deviation:.2%}", "≤ 1 %"),
    ]
    table = "\n".join(["| | figure | goal |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])
    data = {"setup_s": setup_s, "setup_bytes": size, "judged_s": judged_s, "counts_apart": deviation, "verdict": manifest["verdict"]}
    write_result("devices", "python benchmarks/devices.py", table, data)


if __name__ == "__main__":
    main()
