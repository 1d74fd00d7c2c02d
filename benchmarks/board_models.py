"""Counts the networks of board_timings.toml under emulation, into results/board_counts.json.

    edgepipe devices setup rpi4
    pip download --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --only-binary :all: --no-deps \\
        --python-version 3.11 -d WHEELS ncnn ai-edge-litert           # then unzip both into one folder
    python benchmarks/board_models.py ncnn UNZIPPED NCNN/benchmark/models      # Tencent/ncnn@a4d2ea1
    python benchmarks/board_models.py tflite-xnnpack UNZIPPED FOLDER           # NETWORK.float32.tflite, NETWORK.int8.tflite
    python benchmarks/board_models.py tflite-ruy UNZIPPED FOLDER
    python benchmarks/board_models.py onnxruntime - FOLDER                     # NETWORK.float.onnx, NETWORK.int8.onnx
    python benchmarks/board_models.py onnxruntime-1.20 UNZIPPED FOLDER         # onnxruntime==1.20.1, unzipped the same way

Weights are random: they decide nothing that is counted. The .tflite files are keras.applications' networks (MobileNet
v1, v2, v3 large, ResNet-50; EfficientNet-lite0 after its paper) through TFLiteConverter, int8 with random calibration;
the .onnx files transformers' and ultralytics' networks through torch.onnx.export, int8 by quantize_static (QDQ,
per channel, u8 × s8); of 2026-11-25 (timm/…, mobilenet-v2-0.5, vgg-13: timm 1.0.31; shufflenet-v2: torchvision 0.28)
through the same exporter (dynamo=False, opset 17), as their source does; a % in a file's name stands for a /. What is already in the file is not counted again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import board_counts

from edgepipe.cost.counting import CacheShape, build_plugin, count, plugin_option, run_counted, sliced
from edgepipe.emulation import emulated, emulator_env
from edgepipe.profile import load_profile

if TYPE_CHECKING:
    from edgepipe.emulation import Emulated
    from edgepipe.profile import Profile

NCNN = {
    "squeezenet-1.1": ("squeezenet", "227,227,3"),
    "mobilenet-v1": ("mobilenet", "224,224,3"),
    "mobilenet-v2": ("mobilenet_v2", "224,224,3"),
    "mobilenet-v3-large": ("mobilenet_v3", "224,224,3"),
    "resnet-18": ("resnet18", "224,224,3"),
    "resnet-50": ("resnet50", "224,224,3"),
    "efficientnet-b0": ("efficientnet_b0", "224,224,3"),
    "googlenet": ("googlenet", "224,224,3"),
    "vgg-16": ("vgg16", "224,224,3"),
    "vit-b-32": ("vision_transformer", "384,384,3"),
}
TFLITE_LAYERS = {"mobilenet-v1": 31, "mobilenet-v2": 65, "mobilenet-v3-large": 150, "efficientnet-lite0": 62, "resnet-50": 75}
# Caches as most boards with the core have them: (KiB, ways) per level.
CACHES = {
    "cortex-a53": ((32, 4), (512, 16)),
    "cortex-a55": ((32, 4), (128, 4), (512, 16)),
    "cortex-a72": ((32, 2), (1024, 16)),
    "cortex-a73": ((64, 4), (1024, 16)),
    "cortex-a76": ((64, 4), (512, 8), (2048, 16)),
}
ARMV8_2 = ("cortex-a55", "cortex-a76")
SLICE = 300_000  # memory accesses between borders: shorter than a layer
OLD_RUNTIME = "onnxruntime-1.20"  # what published figures ran, as far as they say
NOT_LAYERS = {"Input", "Split", "Dropout", "Noop"}


def profile_of(core: str) -> Profile:
    base = load_profile("rpi5" if core in ARMV8_2 else "rpi4")
    return base.model_copy(update={"cpu": base.cpu.model_copy(update={"model": core})})


def with_caches(emulation: Emulated, core: str, folder: Path) -> list[str]:
    """The emulator's command with a root that also shows the caches in /sys: ncnn chooses its tiles by them."""
    root = Path(emulation.command[emulation.command.index("-L") + 1])
    view = folder / core
    for source in [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]:
        target = view / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    for entry in [path for path in root.iterdir() if path.is_symlink()]:
        (view / entry.name).symlink_to(entry.resolve())
    for cpu in range(4):
        for level, (kib, _) in enumerate(CACHES[core], 1):
            here = view / f"sys/devices/system/cpu/cpu{cpu}/cache/index{level if level > 1 else 0}"
            here.mkdir(parents=True, exist_ok=True)
            shared = "f" if level == len(CACHES[core]) else f"{1 << cpu:x}"
            for name, text in (
                ("level", level),
                ("type", "Data" if level == 1 else "Unified"),
                ("size", f"{kib}K"),
                ("shared_cpu_map", shared),
            ):
                (here / name).write_text(f"{text}\n")
    return [str(view) if part == str(root) else part for part in emulation.command]


def networks(runtime: str, folder: Path) -> list[tuple[str, str, Path, tuple[str, ...], int]]:
    """(network, precision, file, further arguments, layers)"""
    found = []
    if runtime == "ncnn":
        for network, (name, shape) in NCNN.items():
            for precision, path in (("float", folder / f"{name}.param"), ("int8", folder / f"{name}_int8.param")):
                if path.is_file():
                    kinds = [line.split()[0] for line in path.read_text().splitlines()[2:] if line.strip()]
                    found.append((network, precision, path, (shape,), sum(kind not in NOT_LAYERS for kind in kinds)))
        return found
    for path in sorted(folder.glob("*.onnx" if runtime.startswith("onnxruntime") else "*.tflite")):
        network, precision = path.stem.replace("%", "/").rsplit(".", 1)
        found.append((network, "int8" if precision == "int8" else "float", path, (), TFLITE_LAYERS.get(network, 0)))
    return found


def count_onnx(emulation: Emulated, wheels: str, path: Path, caches: list[CacheShape], plugins: Path) -> Any:
    import numpy as np
    import onnxruntime

    rng = np.random.default_rng(0)
    inputs = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()
    feeds = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in inputs}
    env = emulator_env(emulation)
    emulator = [*emulation.command, *([] if wheels == "-" else ["-E", f"PYTHONPATH={wheels}"])]
    return count(emulator, emulation.python, env, path, feeds, caches=caches, plugin_folder=plugins)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runtime", choices=("ncnn", "tflite-xnnpack", "tflite-ruy", "onnxruntime", OLD_RUNTIME))
    parser.add_argument("wheels", help="folder with ncnn and ai_edge_litert unzipped, or -")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--core", action="append", choices=tuple(CACHES), help="default: all")
    options = parser.parse_args()
    rows = json.loads(board_counts.PATH.read_text(encoding="utf-8")) if board_counts.PATH.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="board-") as name:
        scratch = Path(name)
        plugin = build_plugin(scratch)
        for core in options.core or CACHES:
            emulation = emulated(profile_of(core))
            command = with_caches(emulation, core, scratch)
            caches = [CacheShape(*shape) for shape in CACHES[core]]
            for network, precision, path, arguments, layers in networks(options.runtime, options.folder):
                key = f"{options.runtime}/{network}/{precision}/{core}"
                if key in rows:
                    continue
                print(key, file=sys.stderr)
                if options.runtime.startswith("onnxruntime"):
                    counts = count_onnx(emulation, options.wheels, path, caches, scratch)
                    rows[key] = board_counts.onnx_row(counts, core, CACHES[core], serial_groups=options.runtime == OLD_RUNTIME)
                else:
                    borders = scratch / "borders.txt"
                    option = plugin_option(plugin, borders, caches, SLICE)
                    guest = str(Path(__file__).with_name("board_guest.py"))
                    call = [*command, "-plugin", option, emulation.python, guest, options.wheels, options.runtime, str(path), *arguments]
                    run_counted(call, {**os.environ, **emulator_env(emulation)})
                    groups = board_counts.grouped(sliced(borders, caches), core)
                    rows[key] = {"layers": layers, "caches": CACHES[core], "groups": groups}
                board_counts.write(rows)


if __name__ == "__main__":
    main()
