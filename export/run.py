"""Run this bundle: `python run.py "some text"`, or a file of inputs a line, or JSON. Works wherever it is copied.

Needs onnxruntime and numpy, and tokenizers for text or Pillow for images:
    pip install onnxruntime numpy tokenizers
"""

import argparse
import json
import os
import sys

from driver import Driver

HERE = os.path.dirname(os.path.abspath(__file__))


def sample_of(kind, value, settings):
    if kind in ("image", "pixels"):
        return {"image": value}
    if kind == "audio":
        return {"audio": value}
    if kind == "tensors":
        import numpy as np

        with np.load(value, allow_pickle=False) as arrays:
            return {"tensors": {name: arrays[name] for name in arrays.files}}
    if settings.get("split_words"):
        return {"tokens": value.split()}
    if not (settings.get("pair") or settings.get("twin")):
        return {"text": value}
    first, tab, second = value.partition("\t")
    if not tab:
        raise ValueError("the model compares two texts: put a tab between them")
    return {"text": first, "text_pair": second}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs", nargs="*", help="texts (a tab between the two of a pair), image or .wav files, or .npz files of one sample each"
    )
    parser.add_argument("--file", help="read inputs from this file, one a line")
    parser.add_argument("--threads", type=int, help="default: as many as it was validated with")
    args = parser.parse_args()
    values = list(args.inputs)
    if args.file:
        try:
            with open(args.file, encoding="utf-8") as handle:
                values += [line.rstrip("\n") for line in handle if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            sys.exit("run.py: " + args.file + ": " + str(error))
    if not values:
        parser.error("give an input, or --file")
    try:
        driver = Driver(HERE, threads=args.threads)
    except Exception as error:  # onnxruntime has exception types of its own
        sys.exit("run.py: the model cannot be opened: " + str(error).splitlines()[0])
    settings = driver.program["preprocess"]
    for value in values:
        try:
            answer = driver.answer(sample_of(settings["kind"], value, settings))
        except ImportError:
            sys.exit("run.py: images need Pillow: pip install pillow")
        except Exception as error:
            sys.exit("run.py: " + value + ": " + (str(error).splitlines() or [type(error).__name__])[0])
        print(json.dumps(answer, ensure_ascii=False))


if __name__ == "__main__":
    main()
