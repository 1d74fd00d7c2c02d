"""A torch model that the user's own function builds: `--model-factory FILE:function`, which takes the config and gives a module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import sha256_file
from edgepipe.errors import ModelError, UsageError
from edgepipe.importing import import_file
from edgepipe.structure import apply_structure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


def made(factory: Mapping[str, Any], folder: Path) -> nn.Module:
    """What the user's factory builds."""
    from torch import nn

    path = Path(factory["file"])
    if sha256_file(path) != factory["sha256"]:
        raise UsageError("the model factory changed while the build ran", where=str(path), fix="run again")
    try:
        made = import_file(path, "edgepipe_model_factory")
        module = getattr(made, factory["function"])(_config_of(folder))
    except Exception as error:
        raise ModelError(
            f"the model factory raised {type(error).__name__}: {error}",
            where=f"{path}:{factory['function']}",
            fix="it takes the config (a dict) and returns a torch module",
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the model factory returned {type(module).__name__}, not a torch module",
            where=f"{path}:{factory['function']}",
            fix="return a torch.nn.Module",
        )
    return module


def from_factory(factory: Mapping[str, Any], folder: Path) -> nn.Module:
    from safetensors.torch import load_file

    module = made(factory, folder)
    apply_structure(module, folder)
    state: dict[str, Any] = {}
    for weights in sorted(folder.glob("*.safetensors")):
        state |= load_file(weights)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"the weights do not fit the factory's module: {str(error).splitlines()[-1].strip()}",
            where=str(folder),
            fix="build the module the weights were saved from",
        ) from None
    return module.float()


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
