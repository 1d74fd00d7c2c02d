"""Fetch Fashion-MNIST, pinned by version and sha256, into the cache folder, and lay it out for edgepipe.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
arXiv 1708.07747. It comes from Debian's archive (`dataset-fashion-mnist`; MIT, see README.md beside this file) through
apt with private state: no root, nothing installed, `dpkg -x` unpacks it. A second run works offline.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from edgepipe.artifact import sha256_file
from edgepipe.device_setup import apt_fetch
from edgepipe.errors import DeviceError
from edgepipe.store import cache_root

PACKAGE, VERSION = "dataset-fashion-mnist", "0.0~git20200523.55506a9-1"
SHA256 = "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"
LABELS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
SEED = 20240101
SIZES = {"dev": 2000, "calibration": 1000}  # of the 60,000; the rest trains
SHOWN = {"test": 4000, "train": 10_000}  # how many of these are written as image files too: enough for ±0.8 points


def home() -> Path:
    return cache_root() / "downloads" / "fashion"


def fetch_package(into: Path) -> Path:
    """The package's data files, unpacked; refuses an archive that is not the pinned one."""
    arch = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    (deb,) = apt_fetch(into, arch, [PACKAGE], {PACKAGE: VERSION})
    if sha256_file(deb) != SHA256:
        raise DeviceError("the package is not the one that was pinned (its sha256 differs)", where=deb.name, fix="use Debian's own archive")
    subprocess.run(["dpkg", "-x", str(deb), str(into / "unpacked")], check=True)
    return next((into / "unpacked").rglob("train-images-idx3-ubyte.gz")).parent


def read_idx(path: Path) -> np.ndarray:
    """An array of LeCun's IDX format: magic with the number of dimensions, their sizes, then bytes."""
    data = gzip.decompress(path.read_bytes())
    dims = np.frombuffer(data, ">i4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(dims)


def split(source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(images [n, 28, 28], labels [n]) by role. Images that occur twice are kept once, in the test set if they are there."""
    test, train = (
        (read_idx(source / f"{name}-images-idx3-ubyte.gz"), read_idx(source / f"{name}-labels-idx1-ubyte.gz")) for name in ("t10k", "train")
    )
    seen: set[bytes] = set()

    def new(image: np.ndarray) -> bool:
        known = image.tobytes() in seen
        seen.add(image.tobytes())
        return not known

    parts = {"test": np.array([index for index, image in enumerate(test[0]) if new(image)])}
    rest = np.array([index for index, image in enumerate(train[0]) if new(image)])
    np.random.default_rng(SEED).shuffle(rest)
    start = 0
    for name, size in SIZES.items():
        parts[name] = rest[start : start + size]
        start += size
    parts["train"] = rest[start:]
    return {name: tuple(array[index] for array in (test if name == "test" else train)) for name, index in parts.items()}


def write_images(images: np.ndarray, labels: np.ndarray, into: Path) -> None:
    for name in LABELS:
        (into / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(into / LABELS[label] / f"{number:05d}.png")


def write_unlabelled() -> None:
    """The training images that `train` does not show, for recovery, which asks the teacher what they are."""
    with np.load(home() / "arrays.npz") as arrays:
        images, labels = (arrays[f"train_{kind}"][SHOWN["train"] :] for kind in ("images", "labels"))
    building = home() / ".unlabelled.part"
    shutil.rmtree(building, ignore_errors=True)
    write_images(images, labels, building)
    building.rename(home() / "unlabelled")
    print(f"  unlabelled: {len(images)} images as files")


def main() -> None:
    if (home() / "arrays.npz").is_file():
        if not (home() / "unlabelled").is_dir():
            write_unlabelled()
        print(f"Fashion-MNIST is in {home()}")
        return
    home().mkdir(parents=True, exist_ok=True)
    print("fetching Fashion-MNIST (31 MB)")
    with tempfile.TemporaryDirectory(dir=home(), prefix=".fetch-") as name:
        parts = split(fetch_package(Path(name)))
        for role, (images, labels) in parts.items():
            built, shown = Path(name) / role, SHOWN.get(role)
            write_images(images[:shown], labels[:shown], built)
            shutil.rmtree(home() / role, ignore_errors=True)
            built.rename(home() / role)
            print(f"  {role}: {len(images)} images, {min(len(images), shown or len(images))} of them as files")
        arrays = {f"{role}_{kind}": part[i] for role, part in parts.items() for i, kind in enumerate(("images", "labels"))}
        np.savez(Path(name) / "arrays.npz", **arrays)  # for train.py; written last: its being there says that all is
        (Path(name) / "arrays.npz").rename(home() / "arrays.npz")
    write_unlabelled()
    print(f"Fashion-MNIST is in {home()}")


if __name__ == "__main__":
    main()
