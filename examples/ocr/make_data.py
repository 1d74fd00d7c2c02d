"""Render images of known text: one to four lines each, in Debian's fonts, turned a little, with noise, some upside down.

    python make_data.py [OUT] [--test 120] [--dev 40] [--calibration 40]

writes `OUT/test.jsonl` and its neighbours, {"image": …, "label": …} a line, and the images beside them. The same fonts, words
and Pillow give the same images: the seed is fixed. Crops of single lines for the recogniser alone lie in `OUT/lines`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SEED = 20240101
WORDS = Path("/usr/share/dict/american-english")  # Debian: wamerican
FONTS = Path("/usr/share/fonts/truetype")  # Debian: fonts-dejavu-core, fonts-liberation
NAMES = (
    "dejavu/DejaVuSans.ttf", "dejavu/DejaVuSans-Bold.ttf", "dejavu/DejaVuSerif.ttf", "dejavu/DejaVuSansMono.ttf",
    "liberation/LiberationSans-Regular.ttf", "liberation/LiberationSans-Italic.ttf", "liberation/LiberationSerif-Regular.ttf",
    "liberation/LiberationSerif-Bold.ttf", "liberation/LiberationMono-Regular.ttf",
)  # fmt: skip
SIZES = (18, 22, 26, 32, 38)  # pixels
COLOURS = (
    ((20, 20, 20), (250, 250, 250)),
    ((30, 40, 90), (240, 235, 220)),
    ((90, 20, 20), (225, 235, 240)),
    ((240, 240, 240), (40, 45, 60)),
)


def words() -> list[str]:
    if not WORDS.is_file():
        sys.exit(f"{WORDS} is missing: apt-get install wamerican")
    return [word for word in WORDS.read_text(encoding="utf-8").split() if word.isascii() and word.isalpha() and 2 <= len(word) <= 10]


def fonts() -> list[Path]:
    found = [FONTS / name for name in NAMES if (FONTS / name).is_file()]
    if len(found) < len(NAMES):
        sys.exit(f"fonts are missing below {FONTS}: apt-get install fonts-dejavu-core fonts-liberation")
    return found


def line_of(rng: random.Random, vocabulary: list[str]) -> str:
    """Two to five words, some of them numbers, prices, dates or capitals, with punctuation."""
    parts = []
    for _ in range(rng.randint(2, 5)):
        kind = rng.random()
        word = rng.choice(vocabulary)
        if kind < 0.12:
            word = str(rng.randint(0, 99999))
        elif kind < 0.17:
            word = f"${rng.randint(1, 999)}.{rng.randint(0, 99):02d}"
        elif kind < 0.21:
            word = f"{rng.randint(1, 28):02d}/{rng.randint(1, 12):02d}/{rng.randint(1990, 2030)}"
        elif kind < 0.30:
            word = word.upper()
        elif kind < 0.45:
            word = word.capitalize()
        if rng.random() < 0.15:
            word += rng.choice(",.:;!?%")
        parts.append(word)
    return " ".join(parts)


def render(rng: random.Random, lines: list[str], faces: list[Path]) -> Image.Image:
    """The lines as an image: one face and size, a border, a small rotation, blur and noise."""
    face = ImageFont.truetype(str(rng.choice(faces)), rng.choice(SIZES))
    ink, paper = rng.choice(COLOURS)
    height = round(sum(face.getmetrics()) * 1.35)
    width = max(round(face.getlength(line)) for line in lines)
    border = 2 * height // 3
    image = Image.new("RGB", (width + 2 * border, height * len(lines) + 2 * border), paper)
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        draw.text((border, border + index * height), line, font=face, fill=ink)
    image = image.rotate(rng.uniform(-3, 3), resample=Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 12), (*image.size[::-1], 3))
    image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return image.rotate(180) if rng.random() < 0.15 else image


def write(out: Path, name: str, count: int, most_lines: int, rng: random.Random, vocabulary: list[str], faces: list[Path]) -> int:
    """`count` images and their labels as one split; gives the number of lines of text in them."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    total = 0
    for index in range(count):
        lines = [line_of(rng, vocabulary) for _ in range(rng.randint(1, most_lines))]
        total += len(lines)
        render(rng, lines, faces).save(folder / f"{index:04d}.png")
        rows.append({"image": f"{name}/{index:04d}.png", "label": "\n".join(lines)})
    (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return total


def make(out: Path, counts: dict[str, int], *, most_lines: int = 4) -> dict[str, int]:
    """Write the splits; gives the number of lines in each."""
    rng, vocabulary, faces = random.Random(SEED), words(), fonts()
    return {name: write(out, name, count, most_lines, rng, vocabulary, faces) for name, count in counts.items()}


def default_folder() -> Path:
    from edgepipe.store import cache_root

    return cache_root() / "downloads" / "ocr" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder (default: the cache's, which edgepipe.toml names)")
    for name, count in (("test", 140), ("dev", 40), ("calibration", 40)):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"images (default {count})")
    given = parser.parse_args()
    out = given.out or default_folder()
    counts = {"calibration": given.calibration, "dev": given.dev, "test": given.test}
    for name, lines in make(out, counts).items():
        print(f"  {name}: {counts[name]} images, {lines} lines")
    alone = make(out / "lines", {name: 2 * count for name, count in counts.items()}, most_lines=1)
    print(f"  {sum(alone.values())} images of one line in {out / 'lines'}")


if __name__ == "__main__":
    main()
