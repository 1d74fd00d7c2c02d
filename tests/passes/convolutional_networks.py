"""Small networks as a user's own file builds them: what channels can do on their way through one."""

from __future__ import annotations

import torch
from torch import nn


def normalised(inputs, outputs, kernel=3, groups=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def plain(config):
    return nn.Sequential(normalised(3, 16), nn.MaxPool2d(4), normalised(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3))


def flattened(config):
    return nn.Sequential(
        normalised(3, 16), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
    )


def depthwise(config):
    return nn.Sequential(
        normalised(3, 16), normalised(16, 16, groups=16), normalised(16, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)
    )


def grouped(config):
    return nn.Sequential(
        normalised(3, 16, 1), normalised(16, 32, groups=4), normalised(32, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    )


def group_normalised(config):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.GroupNorm(2, 16),
        nn.PReLU(16),
        nn.Conv2d(16, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def widened(config):  # a transposed convolution, and a depthwise one that gives two channels for each
    return nn.Sequential(
        normalised(3, 16),
        nn.ConvTranspose2d(16, 16, 2, stride=2),
        nn.Conv2d(16, 32, 3, groups=16),
        nn.Conv2d(32, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


class Branches(nn.Module):
    """Two convolutions side by side, their channels read together."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.joint, self.head = normalised(3, 16), normalised(3, 8), normalised(24, 16), nn.Linear(16, 3)

    def forward(self, image):
        return self.head(self.joint(torch.cat([self.left(image), self.right(image)], 1)).mean((2, 3)))


def branches(config):
    return Branches()


class Shuffled(nn.Module):
    """Channels change places behind the first layer (ShuffleNet)."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = normalised(3, 16), normalised(16, 16), nn.Linear(16, 3)

    def forward(self, image):
        y = self.first(image)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.second(y).mean((2, 3)))


def shuffled(config):
    return Shuffled()


class Shortcut(nn.Module):
    """The image itself is added to what a layer makes of it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 3, 3, padding=1), normalised(3, 16), nn.Linear(16, 3)

    def forward(self, image):
        return self.head(self.second(image + self.first(image)).mean((2, 3)))


def shortcut(config):
    return Shortcut()


def without(config):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Linear(8, 3))


class Many(nn.Module):
    def forward(self, image):
        raise ValueError("give me tokens")


def broken(config):
    return nn.Sequential(nn.Conv2d(3, 8, 1), Many())
