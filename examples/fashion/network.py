"""The depthwise network: `--model-factory network.py:depthwise` builds it again from a checkpoint's config.json.

Depthwise-separable convolutions: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications", arXiv 1704.04861, section 3.1, sized for 28 × 28 pixels.
"""

from __future__ import annotations

from typing import Any

from torch import nn

BLOCKS = ((2, 1), (2, 1), (4, 2), (4, 1), (4, 1), (8, 2))  # (channels over the width, stride)


def convolution(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def depthwise(config: dict[str, Any]) -> nn.Module:
    """pixel_values [batch, num_channels, 28, 28] → logits [batch, labels]."""
    channels = config["width"]
    layers = convolution(config["num_channels"], channels, 3, 2)
    for factor, stride in BLOCKS:
        layers += convolution(channels, channels, 3, stride, groups=channels)
        layers += convolution(channels, factor * config["width"], 1, 1)
        channels = factor * config["width"]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, len(config["id2label"])))
