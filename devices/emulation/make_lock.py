"""Writes packages.lock.json and wheels.lock.txt: the versions and digests of what packages.toml names, as the registries
have them now. Run it when a version is to move; `edgepipe devices setup` then asks for a new set-up."""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from edgepipe.device_setup import apt_fetch, wheel_command

HERE = Path(__file__).parent
WHEELS = ("onnxruntime", "numpy", "tokenizers", "pillow")


def main():
    asked = tomllib.loads((HERE / "packages.toml").read_text())
    lock = {}
    with tempfile.TemporaryDirectory() as folder:
        for part, arch in (("emulator", "amd64"), ("arm64", "arm64"), ("emulator-proot", "amd64"), ("arm64-shell", "arm64")):
            if part not in asked:
                continue
            lock[part] = {}
            for deb in apt_fetch(Path(folder) / part, arch, asked[part]):
                name, version = deb.name.split("_")[:2]
                lock[part][name] = {"version": version.replace("%3a", ":"), "sha256": hashlib.sha256(deb.read_bytes()).hexdigest()}
        (HERE / "packages.lock.json").write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n")
        pins = dict(re.findall(r"^(\S+)==(\S+)$", (HERE.parents[1] / "constraints.txt").read_text(), re.M))
        wheels = Path(folder) / "wheels"
        subprocess.run(wheel_command(wheels, [f"{name}=={pins[name]}" for name in WHEELS]), check=True)
        lines = []
        for name in WHEELS:
            (found,) = [path for path in wheels.iterdir() if path.name.lower().startswith(name)]
            lines.append(f"{name}=={pins[name]} --hash=sha256:{hashlib.sha256(found.read_bytes()).hexdigest()}\n")
        (HERE / "wheels.lock.txt").write_text("".join(lines))


if __name__ == "__main__":
    sys.exit(main())
