"""Writes profiles/NAME.costs.json: kernels of the ARM profiles whose cores the latency model knows, from counted
instructions. Needs `edgepipe devices setup rpi4` and a C compiler; about a minute a profile."""

from __future__ import annotations

import subprocess

from demo import ROOT

PROFILES = ("rpi3", "rpi4", "rpi5", "rk3588", "jetson-orin", "android-older")


def main() -> None:
    for name in PROFILES:
        subprocess.run(["edgepipe", "devices", "measure", name, "--out", str(ROOT / "profiles" / f"{name}.costs.json")], check=True)


if __name__ == "__main__":
    main()
