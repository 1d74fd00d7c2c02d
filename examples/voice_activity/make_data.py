"""Speak sentences with espeak-ng at known places in silence and noise: audio whose speech is known to the sample.

    python make_data.py [OUT] [--test 60] [--dev 20] [--calibration 20]

writes `OUT/test.jsonl` and its neighbours, {"audio": …, "label": "0.50-1.92 2.40-3.10"} a line (seconds of speech), and the
16 kHz 16-bit .wav files beside them. The same espeak-ng and words give the same audio: the seed is fixed.

Speech is what the synthesiser gave without its leading and trailing silence; pauses inside a sentence of up to 0.3 s count
as speech, longer ones do not.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np

SEED, RATE = 20240101, 16000
WORDS = Path("/usr/share/dict/american-english")  # Debian: wamerican
VOICES = ("en-us", "en-gb", "en-us+f2", "en-gb+f4", "en-us+m3", "en-gb-scotland", "en-us+m7", "en-gb-x-rp+f1")
SPEEDS = (130, 160, 190)  # words a minute
SNRS = (30.0, 20.0, 15.0, 10.0)  # dB, of the speech over the noise
FLOOR, PAUSE_S, WINDOW = 0.01, 0.3, 160  # of the peak; longest pause that is speech; samples a loudness is taken over


def speak(text: str, voice: str, speed: int) -> np.ndarray:
    """The text as espeak-ng says it, at RATE, peak 1."""
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is missing: apt-get install espeak-ng")
    said = subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", text], check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(said)) as opened:
        own = opened.getframerate()
        sound = np.frombuffer(opened.readframes(opened.getnframes()), dtype="<i2").astype(np.float64)
    return resampled(sound, own) / max(1.0, float(np.abs(sound).max()))


def resampled(sound: np.ndarray, own: int) -> np.ndarray:
    """At RATE: what lies above half of it is cut off in the spectrum, then samples are read between samples."""
    spectrum = np.fft.rfft(sound)
    spectrum[np.fft.rfftfreq(len(sound), 1 / own) > RATE / 2] = 0
    smooth = np.fft.irfft(spectrum, len(sound))
    return np.interp(np.arange(0, len(sound) - 1, own / RATE), np.arange(len(sound)), smooth)


def loud_spans(sound: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) in samples where the clean speech is loud; pauses of up to PAUSE_S are part of it."""
    frames = len(sound) // WINDOW
    loud = np.abs(sound[: frames * WINDOW]).reshape(frames, WINDOW).max(1) > FLOOR
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud.astype(np.int8), [0]])))
    spans: list[tuple[int, int]] = []
    for start, end in zip(edges[::2] * WINDOW, edges[1::2] * WINDOW, strict=True):
        if spans and start - spans[-1][1] <= PAUSE_S * RATE:
            spans[-1] = (spans[-1][0], int(end))
        else:
            spans.append((int(start), int(end)))
    return spans


def noise_of(kind: str, length: int, rng: np.random.Generator) -> np.ndarray:
    """White, pink (1/f), or mains hum with white noise; of unit power."""
    white = rng.standard_normal(length)
    if kind == "pink":
        spectrum = np.fft.rfft(white)
        spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum))))
        white = np.fft.irfft(spectrum, length)
    if kind == "hum":
        time = np.arange(length) / RATE
        white = 0.3 * white + sum(np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3))
    return white / np.sqrt(np.mean(white**2))


def recording(rng: random.Random, vocabulary: list[str]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Two to four utterances with silence around them, in noise; and where they are, in seconds."""
    voice, speed = rng.choice(VOICES), rng.choice(SPEEDS)
    parts, spans, place = [], [], 0
    for _ in range(rng.randint(2, 4)):
        gap = round(rng.uniform(0.6, 1.8) * RATE)
        sound = speak(" ".join(rng.choice(vocabulary) for _ in range(rng.randint(2, 6))), voice, speed) * rng.uniform(0.2, 0.6)
        spans += [(place + gap + start, place + gap + end) for start, end in loud_spans(sound / np.abs(sound).max())]
        parts += [np.zeros(gap), sound]
        place += gap + len(sound)
    parts.append(np.zeros(round(rng.uniform(0.6, 1.5) * RATE)))
    clean = np.concatenate(parts)
    power = np.mean(np.concatenate([clean[start:end] for start, end in spans]) ** 2)
    noise = noise_of(rng.choice(("white", "pink", "hum")), len(clean), np.random.default_rng(rng.getrandbits(32)))
    mixed = clean + noise * np.sqrt(power / 10 ** (rng.choice(SNRS) / 10))
    return mixed / max(1.0, float(np.abs(mixed).max())), [(start / RATE, end / RATE) for start, end in spans]


def write_wav(path: Path, sound: np.ndarray, rate: int = RATE) -> None:
    with wave.open(str(path), "wb") as opened:
        opened.setparams((1, 2, rate, 0, "NONE", ""))
        opened.writeframes(np.round(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


def make(out: Path, counts: dict[str, int]) -> dict[str, float]:
    """Write the splits; gives the seconds of audio in each."""
    if not WORDS.is_file():
        sys.exit(f"{WORDS} is missing: apt-get install wamerican")
    vocabulary = [word for word in WORDS.read_text(encoding="utf-8").split() if word.isascii() and word.islower() and len(word) > 2]
    rng, seconds = random.Random(SEED), {}
    for name, count in counts.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        rows, total = [], 0.0
        for index in range(count):
            sound, spans = recording(rng, vocabulary)
            write_wav(out / name / f"{index:04d}.wav", sound)
            rows.append({"audio": f"{name}/{index:04d}.wav", "label": " ".join(f"{a:.2f}-{b:.2f}" for a, b in spans)})
            total += len(sound) / RATE
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        seconds[name] = total
    return seconds


def default_folder() -> Path:
    from edgepipe.store import cache_root

    return cache_root() / "downloads" / "voice_activity" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder (default: the cache's, which edgepipe.toml names)")
    for name, count in (("test", 60), ("dev", 20), ("calibration", 20)):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"recordings (default {count})")
    given = parser.parse_args()
    for name, seconds in make(
        given.out or default_folder(), {"calibration": given.calibration, "dev": given.dev, "test": given.test}
    ).items():
        print(f"  {name}: {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
