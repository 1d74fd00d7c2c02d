"""The one loader of torch models: transformers folders, sentence-transformers, pruned ones, a user's factory.

Weights are read from safetensors or weights-only .bin files; nothing a model folder contains is executed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError
from edgepipe.model_factory import from_factory, made
from edgepipe.structure import STRUCTURE_FILE, apply_structure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from edgepipe.artifact import Artifact, Component

_BELONG = "check that config.json and the weights belong together"
AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "sentence-similarity": "AutoModel",
}


def load_torch(artifact: Artifact, *, adapter_weights: Sequence[float] = ()) -> nn.Module:
    """The artifact's torch model in float32 and eval mode, with its adapters unmerged on top when it has any.

    Raises `ModelError` naming weights that are missing, and layers an adapter does not fit.
    """
    adapters = [component for role, component in artifact.components.items() if component.format == "peft"]
    module, missing = _load_base(artifact)
    if adapters:
        from edgepipe.adapters import attach

        module, supplied = attach(module, adapters, adapter_weights, _config(artifact.model))
        missing = [key for key in missing if not key.startswith(tuple(supplied))]
    if missing:
        raise ModelError(
            f"weights are missing for {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}",
            where=str(artifact.model.folder),
            fix="the model has no trained head for this task: name its adapter with --adapter, or another --task",
        )
    if sentence_pooling(artifact) and not artifact.program.get("factory"):  # around the adapters, which name their layers from the encoder
        from edgepipe.sentence_encoder import SentenceEncoder

        module = SentenceEncoder(module, **sentence_pooling(artifact))
    return module.eval()


def _config(component: Component) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((component.folder / "config.json").read_text(encoding="utf-8"))
    return data


def _load_base(artifact: Artifact) -> tuple[nn.Module, list[str]]:
    program, folder = artifact.program, artifact.model.folder
    if program.get("factory"):
        return from_factory(program["factory"], folder), []
    if (folder / STRUCTURE_FILE).is_file():
        return _restructured(artifact), []
    return _from_transformers(artifact)


def sentence_pooling(artifact: Artifact) -> dict[str, Any]:
    """How token embeddings become a sentence embedding: {pooling, normalize}; empty for models that do not pool."""
    folder = artifact.model.folder
    task = artifact.program["task"]
    modules = folder / "modules.json"
    if task != "sentence-similarity" and not (task == "fidelity" and modules.is_file()):
        return {}
    if not modules.is_file():
        return {"pooling": "mean", "normalize": True}
    kinds = [entry["type"].rsplit(".", 1)[-1] for entry in json.loads(modules.read_text(encoding="utf-8"))]
    config = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    modes = [
        key.removeprefix("pooling_mode_").removesuffix("_token") for key, on in config.items() if key.startswith("pooling_mode_") and on
    ]
    names = {"mean_tokens": "mean", "cls": "cls", "max_tokens": "max"}
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown or len(modes) != 1 or modes[0] not in names:
        raise ModelError(
            f"sentence-transformers modules not known here: {', '.join(unknown or modes)}",
            where=str(modules),
            fix="Transformer, Pooling (mean, cls or max) and Normalize are",
        )
    return {"pooling": names[modes[0]], "normalize": "Normalize" in kinds}


def _auto_class(artifact: Artifact) -> Any:
    import transformers

    task = artifact.program["task"]
    if task in AUTO_CLASSES:
        return getattr(transformers, AUTO_CLASSES[task])
    if sentence_pooling(artifact):
        return transformers.AutoModel
    names = _config(artifact.model).get("architectures") or ["AutoModel"]
    found = getattr(transformers, names[0], None)
    if found is None:
        raise ModelError(
            f'the architecture "{names[0]}" is not in transformers',
            where=str(artifact.model.folder / "config.json"),
            fix="build it with --model-factory FILE.py:function",
        )
    return found


def _labels(artifact: Artifact) -> dict[str, Any]:
    labels = artifact.program.get("labels")
    if not labels:
        return {}
    return {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


def _from_transformers(artifact: Artifact) -> tuple[nn.Module, list[str]]:
    import torch

    folder = artifact.model.folder
    if _config(artifact.model).get("quantization_config"):
        raise ModelError(
            "the model is already quantized, so its weights cannot be pruned or merged",
            where=str(folder),
            fix="start from the model before quantization",
        )
    pickles = [ref.location for ref in artifact.model.files if ref.path.endswith(".bin")]
    for path in pickles:
        _check_weights_only(path)
    try:
        module, info = _auto_class(artifact).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=not pickles,
            weights_only=True,
            ignore_mismatched_sizes=True,
            **_labels(artifact),
        )
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        text = str(error).strip() or type(error).__name__
        raise ModelError(f"transformers cannot load the model: {text.splitlines()[0]}", where=str(folder), fix=_BELONG) from None
    if mismatched := sorted(
        entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]
    ):  # transformers 5 adds the shapes
        shape = " × ".join(map(str, module.state_dict()[mismatched[0]].shape))
        raise ModelError(
            f"weights do not have the shape config.json says: {', '.join(mismatched[:5])} (the first should be {shape})",
            where=str(folder),
            fix=_BELONG,
        )
    if left := _left_out(module, info["unexpected_keys"]):
        raise ModelError(f"config.json tells of fewer layers than the weights hold: {', '.join(left[:5])}", where=str(folder), fix=_BELONG)
    return module, _used(sorted(info["missing_keys"]), artifact)


def _left_out(module: Any, unexpected: Sequence[str]) -> list[str]:
    """Weights that belong inside a part of the encoder, yet found no place there. Heads of other tasks are none."""
    base = getattr(module, module.base_model_prefix, module)
    parts = {name for name, _ in base.named_children()}
    inside = [key for key in unexpected if key.removeprefix(f"{module.base_model_prefix}.").split(".")[0] in parts]
    return sorted(key for key in inside if key.endswith(".weight"))  # old checkpoints hold buffers that are no weights


def _check_weights_only(path: Path) -> None:
    """`ModelError` for a .bin file that holds anything but finite tensors; transformers would hide the reason."""
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            "the .bin file holds more than weights; loading it would run code",
            where=str(path),
            fix="save it again with safetensors: model.save_pretrained(folder)",
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError):
        raise ModelError("the .bin file is truncated or corrupt", where=str(path), fix="copy or download the file again") from None
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(
                f'tensor "{name}" holds NaN or infinite values', where=str(path), fix="take a checkpoint from before training diverged"
            )


def _used(missing: list[str], artifact: Artifact) -> list[str]:
    """Without the keys of a pooler that a sentence encoder never runs."""
    return [key for key in missing if not (key.startswith("pooler.") and sentence_pooling(artifact))]


def _restructured(artifact: Artifact) -> nn.Module:
    """A pruned model: built from its config, cut to the widths in structure.json, then filled."""
    from safetensors.torch import load_file

    folder = artifact.model.folder
    module = _empty(artifact)
    tied = _tied(module)
    apply_structure(module, folder)
    state: dict[str, Any] = {}
    for ref in artifact.model.files:
        if ref.path.endswith(".safetensors"):
            state |= load_file(ref.location)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(
            f"the weights do not have the widths structure.json says: {str(error).splitlines()[-1].strip()}",
            where=str(folder),
            fix="take the folder as the pruning pass wrote it",
        ) from None
    missing = [key for key in _used(missing, artifact) if not tied.get(key, set()) & state.keys()]
    if unexpected or missing:
        raise ModelError(
            f"weights are missing or unexpected: {[*missing, *unexpected][:5]}",
            where=str(folder),
            fix="take the folder as the pruning pass wrote it",
        )
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    return module


def _tied(module: nn.Module) -> dict[str, set[str]]:
    """Parameter → all names that it goes by. One of them is saved."""
    names: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {name: group for group in names.values() for name in group}


def skeleton(artifact: Artifact, config: Any = None) -> nn.Module:
    """The artifact's model as its config, or its user's factory, builds it: shapes without values. `config` instead of its own."""
    import torch

    with torch.device("meta"):
        if factory := artifact.program.get("factory"):
            return made(factory, artifact.model.folder)
        return _empty(artifact, config)


def _empty(artifact: Artifact, config: Any = None) -> nn.Module:
    from transformers import AutoConfig

    config = config or AutoConfig.from_pretrained(artifact.model.folder, local_files_only=True, **_labels(artifact))
    auto = _auto_class(artifact)
    if hasattr(auto, "from_config"):
        module: nn.Module = auto.from_config(config, attn_implementation="eager")
    else:
        config._attn_implementation = "eager"
        module = auto(config)
    return module
