"""Start-up of the command line and the demo's second run, as whole processes; medians of ten and five."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from demo import EXAMPLE, write_result


def seconds(command: list[str], times: int) -> list[float]:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, cwd=EXAMPLE, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "build")
        again = ["edgepipe", "compress", "--profile", "rpi4", "--out", out, "--force"]
        seconds(again, 1)  # fills the store
        found = {"edgepipe --help": seconds(["edgepipe", "--help"], 10), "edgepipe compress --profile rpi4, all cached": seconds(again, 5)}
    lines = ["| command | median s | slowest s |", "|---|---|---|"]
    lines += [f"| `{name}` | {statistics.median(taken):.2f} | {max(taken):.2f} |" for name, taken in found.items()]
    write_result("startup", "python benchmarks/startup.py", "\n".join(lines), found)


if __name__ == "__main__":
    main()
