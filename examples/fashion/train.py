"""Train the convolutional networks of the Fashion-MNIST example, one at a time, and log every epoch beside them.

`residual`: plain convolutions with shortcuts (He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385).
`wide`: the same, half as wide again, with more to prune.
`depthwise`: depthwise-separable convolutions (`network.py`), with ReLU in place of ReLU6 as in Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721: int8 with one scale a tensor hurts it, and
scaling channels against each other leaves its function the same only with ReLU.

Run after `fetch.py`; one thread, minutes each: `python train.py residual` and `python train.py depthwise`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fetch import LABELS, home
from network import depthwise
from PIL import Image
from safetensors.torch import save_file
from transformers import ResNetConfig, ResNetForImageClassification

MEAN, STD = 0.286, 0.353
BATCH = 128
SIDE = {"residual": 40, "wide": 40, "depthwise": 28}  # transformers' ResNet begins with a fourth of each side, which leaves 7 of 28
EPOCHS = {"residual": 8, "wide": 8, "depthwise": 9}
WIDTHS: dict[str, dict[str, Any]] = {
    "residual": {"embedding_size": 16, "hidden_sizes": [32, 64, 128]},
    "wide": {"embedding_size": 24, "hidden_sizes": [48, 96, 192]},
}
NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
CONFIG = {"architectures": ["DepthwiseForImageClassification"], "num_channels": 1, "width": 24, **NAMES}


def preprocessor(side: int) -> dict[str, Any]:
    return {
        "do_resize": True, "size": {"height": side, "width": side}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [MEAN], "image_std": [STD],
    }  # fmt: skip


class Residual(torch.nn.Module):
    """The transformers model, with logits as its output."""

    def __init__(self, widths: dict[str, Any]) -> None:
        super().__init__()
        self.inner = ResNetForImageClassification(ResNetConfig(num_channels=1, layer_type="basic", depths=[1, 1, 1], **widths, **NAMES))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(pixel_values).logits
        return logits


def resized(images: np.ndarray, side: int) -> torch.Tensor:
    """[n, 28, 28] → uint8 [n, 1, side, side], with the resampling that the preprocessor names."""
    return torch.from_numpy(np.stack([np.asarray(Image.fromarray(image).resize((side, side), 2)) for image in images])[:, None])


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def augmented(pixels: torch.Tensor) -> torch.Tensor:
    """A batch, mirrored for half of its images, all moved by up to a twelfth of their side."""
    flip = torch.rand(len(pixels)) < 0.5
    pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
    side, far = pixels.shape[-1], pixels.shape[-1] // 12
    down, right = torch.randint(0, 2 * far + 1, (2,)).tolist()
    return torch.nn.functional.pad(pixels, (far, far, far, far))[:, :, down : down + side, right : right + side]


@torch.no_grad()
def accuracy(model: Any, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    right = sum(int((model(normalised(x)).argmax(-1) == y).sum()) for x, y in zip(pixels.split(500), labels.split(500), strict=True))
    return right / len(labels)


def save(model: Any, side: int, folder: Path) -> None:
    """The checkpoint as edgepipe takes it, and the same as an ONNX file for those without torch."""
    model.eval().to(memory_format=torch.contiguous_format)
    if isinstance(model, Residual):
        model.inner.save_pretrained(folder)
    else:
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(side), indent=2) + "\n")
    torch.onnx.export(
        model, (torch.zeros(1, 1, side, side),), str(folder / "model.onnx"), input_names=["pixel_values"], output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}}, opset_version=17, dynamo=False,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=sorted(EPOCHS))
    parser.add_argument("--out", type=Path, help="default: the cache folder")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    side, epochs = SIDE[args.network], args.epochs or EPOCHS[args.network]
    with np.load(home() / "arrays.npz") as arrays:
        data = {
            role: (resized(arrays[f"{role}_images"], side), torch.from_numpy(arrays[f"{role}_labels"].astype(np.int64)))
            for role in ("train", "dev", "test")
        }
    pixels, labels = data["train"]
    model = (Residual(WIDTHS[args.network]) if args.network in WIDTHS else depthwise(CONFIG)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.02)
    steps = epochs * (len(pixels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.2)
    log: dict[str, Any] = {
        "network": args.network, "seed": args.seed, "lr": args.lr, "batch": BATCH, "threads": 1,
        "parameters": sum(p.numel() for p in model.parameters()), "images": {role: len(part[1]) for role, part in data.items()},
        "torch": torch.__version__, "python": platform.python_version(), "epochs": [],
    }  # fmt: skip
    started = time.time()
    for epoch in range(epochs):
        model.train()
        total = 0.0
        order = torch.randperm(len(pixels))[: len(pixels) // BATCH * BATCH]
        for batch in order.split(BATCH):
            output = model(normalised(augmented(pixels[batch])))
            loss = torch.nn.functional.cross_entropy(output, labels[batch], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += float(loss.detach()) * BATCH
        score = accuracy(model, *data["dev"])
        log["epochs"].append(
            {
                "epoch": epoch + 1,
                "train_loss": round(total / len(order), 4),
                "dev_accuracy": round(score, 4),
                "seconds": round(time.time() - started),
            }
        )
        print(log["epochs"][-1], flush=True)
    log["test_accuracy"] = round(accuracy(model, *data["test"]), 4)  # the last epoch is kept: nothing was chosen by test
    print("test accuracy", log["test_accuracy"])
    out = args.out or home() / args.network
    building = out.with_name(f".{out.name}.part")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    save(model, side, building)
    (building / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    building.rename(out)


if __name__ == "__main__":
    main()
