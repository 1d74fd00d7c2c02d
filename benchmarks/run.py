"""All benchmarks, one after the other."""

import subprocess
import sys
from pathlib import Path

for name in (
    "startup",
    "near_duplicates",
    "build_speed",
    "quantized_classifier",
    "five_models",
    "profiles_matrix",
    "pruning",
    "frontier",
    "embedder",
    "fashion_pruning",
    "what_is_trained",
    "recovery_options",
    "training_memory",
    "vocabulary_memory",
    "quantization_aware",
    "rounding",
    "quantize_memory",
    "invariance",
    "parity",
    "devices",
    "board_timings",
):
    subprocess.run([sys.executable, str(Path(__file__).parent / f"{name}.py")], check=True)
