"""Writes a torch model as a component: config, safetensors, and structure.json where it is not what its config builds."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from edgepipe.loader import skeleton
from edgepipe.structure import STRUCTURE_FILE, structure_of, transformer_of
from edgepipe.weights import torch_component

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact, Component

BESIDE = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json")  # what a sentence encoder says of itself


def save_torch(module: Any, artifact: Artifact, workdir: Path) -> Component:
    """The component of a model that was made from `artifact`'s. Plain transformers reads it too where it has no structure.json."""
    folder = workdir / "model"
    folder.mkdir()
    inner = transformer_of(module)
    structure = structure_of(inner, skeleton(artifact, getattr(inner, "config", None)))
    if structure:
        (folder / STRUCTURE_FILE).write_text(json.dumps(structure, indent=1) + "\n", encoding="utf-8")
    if hasattr(inner, "save_pretrained") and not structure:
        inner.save_pretrained(folder)
    else:
        _save_state(inner, artifact.model.folder / "config.json", folder)
    for name in BESIDE:
        source = artifact.model.folder / name
        if source.is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
    component: Component = torch_component(folder, artifact.model.signature)
    return component


def _save_state(module: Any, config: Path, folder: Path) -> None:
    """State under its own names, since only our loader can rebuild it; tied weights are written once."""
    from safetensors.torch import save_model

    if hasattr(module, "config"):
        module.config.save_pretrained(folder)
    elif config.is_file():
        shutil.copyfile(config, folder / "config.json")
    save_model(module, str(folder / "model.safetensors"))
