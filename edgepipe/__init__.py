"""edgepipe compresses a trained model for one named device and proves the result there before handing it over.

    import edgepipe
    result = edgepipe.compress("model/", profile="rpi4", task="text-classification", data="reviews.csv", out="build")
    assert result.verdict != "broken", result.manifest["results"]

Importing it loads no torch, transformers or onnxruntime.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime's wheels (1.32) report to their maker otherwise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from edgepipe.artifact import Artifact, Component
    from edgepipe.build import CompressResult
    from edgepipe.context import Context
    from edgepipe.errors import EdgepipeError
    from edgepipe.passes import Check, PassOptions, register_pass
    from edgepipe.profile import Profile
    from edgepipe.progress import Progress
    from edgepipe.weights import onnx_component

__all__ = [
    "Artifact", "Check", "Component", "CompressResult", "Context", "EdgepipeError", "PassOptions", "Profile",
    "compress", "load_profile", "onnx_component", "register_pass", "validate",
]  # fmt: skip

_HOMES = {
    "Artifact": "artifact", "Component": "artifact", "CompressResult": "build", "Context": "context", "EdgepipeError": "errors",
    "Check": "passes", "PassOptions": "passes", "register_pass": "passes", "Profile": "profile", "onnx_component": "weights",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgepipe' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"edgepipe.{_HOMES[name]}"), name)


def compress(
    model: str | PathLike[str] | None = None,
    *,
    profile: str | PathLike[str],
    adapter: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    task: str | None = None,
    data: str | PathLike[str] | None = None,
    train: str | PathLike[str] | None = None,
    unlabelled: str | PathLike[str] | None = None,
    calibration: str | PathLike[str] | None = None,
    dev: str | PathLike[str] | None = None,
    test: str | PathLike[str] | None = None,
    budget: Mapping[str, float | int | str] | None = None,
    recipe: str | PathLike[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | PathLike[str] | None = None,
    plugins: Sequence[str | PathLike[str]] = (),
    model_factory: str | None = None,
    force: bool = False,
    strict: bool = False,
    archive: bool = False,
    device: str | None = None,
    target_samples: int | None = 200,
    tune: bool = True,
    progress: Progress | None = None,
) -> CompressResult:
    """Compress a model for one profile and prove the result; what is not given comes from `edgepipe.toml`.

    `budget` is {"max_size_bytes": …} in the project file's keys, `options` {"quantize-dynamic": {"per_channel": False}},
    `device` where the device is (USER@HOST[:PORT] for ssh, a serial number for adb), `target_samples` how many random
    test samples an emulated device runs itself (None: all), `tune` whether each layer's scheme is chosen by measurement.
    A broken budget raises nothing: look at `verdict` and `exit_code`. Raises `EdgepipeError` (see `edgepipe.errors`
    for the tree) for wrong usage, models or data, a pass that fails its checks, and resources that run out.
    """
    import json

    from edgepipe.build import compress as build
    from edgepipe.project import make_request

    adapters = [adapter] if not isinstance(adapter, (list, tuple)) else list(adapter)
    request = make_request(
        model=_text(model),
        profiles=[str(profile)],
        adapters=[str(a) for a in adapters],
        task=task,
        data={
            "file": _text(data),
            "train": _text(train),
            "unlabelled": _text(unlabelled),
            "calibration": _text(calibration),
            "dev": _text(dev),
            "test": _text(test),
        },
        budget=[f"{key}={json.dumps(value)}" for key, value in (budget or {}).items()],
        recipe=_text(recipe),
        options=options,
        out=_text(out),
        plugins=[str(p) for p in plugins],
        model_factory=model_factory,
        force=force,
        strict=strict,
        archive=archive,
        devices=[device] if device else [],
        target_samples=target_samples,
        tune=tune,
    )
    return build(request, progress)[0]


def validate(
    bundle: str | PathLike[str],
    *,
    profile: str | PathLike[str] | None = None,
    data: str | PathLike[str] | None = None,
    strict: bool = False,
    device: str | None = None,
    target_samples: int | None = 200,
    progress: Progress | None = None,
) -> CompressResult:
    """Judge a bundle again, on its own profile or another; `data` replaces the project's test data, `device` and
    `target_samples` are as for `compress`.

    Raises `EdgepipeError`: `ModelError` for a bundle that was tampered with.
    """
    from pathlib import Path

    from edgepipe.revalidate import revalidate

    profiles, devices = [str(profile)] if profile else [], [device] if device else []
    return revalidate(
        Path(bundle), profiles, test=_text(data), strict=strict, devices=devices, target_samples=target_samples, progress=progress
    )[0]


def load_profile(name: str | PathLike[str]) -> Profile:
    """A device profile by name, or by path to a TOML file. Raises `UsageError` naming the nearest one."""
    from edgepipe.profile import load_profile as load

    return load(str(name))


def _text(value: str | PathLike[str] | None) -> str | None:
    return None if value is None else str(value)
