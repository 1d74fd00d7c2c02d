"""Puts LoRA adapters on a torch model, after checking layer by layer that they were made for it.

LoRA: Hu et al., arXiv 2106.09685. Every form that PEFT writes goes through PEFT itself: rank and alpha patterns,
rsLoRA (arXiv 2312.03732), DoRA (arXiv 2402.09353), trained biases, modules_to_save, fan-in-fan-out, embeddings.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from edgepipe.artifact import Component

_PREFIX = "base_model.model."
_SAVE_AGAIN = "save the adapter again with peft's save_pretrained"
_LORA_PARTS = (".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector")


def attach(
    module: nn.Module, adapters: Sequence[Component], weights: Sequence[float], base_config: Mapping[str, Any]
) -> tuple[nn.Module, list[str]]:
    """The model with all adapters active, and the parameter prefixes they bring whole (`modules_to_save`).

    `weights` scales each adapter's update (default 1.0). Raises `ModelError` naming the layers that do not fit.
    """
    from peft import PeftModel, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    if base_config.get("quantization_config"):
        raise ModelError(
            "the base model is quantized; merging into it would lose what the adapter learnt", fix="merge into the unquantized base"
        )
    if weights and len(weights) != len(adapters):
        raise UsageError(
            f"{len(weights)} weights for {len(adapters)} adapters", where="merge-lora.weights", fix="give one weight an adapter"
        )
    names = [f"adapter_{number}" for number in range(len(adapters))]
    supplied: list[str] = []
    wrapped: Any = None
    for name, adapter in zip(names, adapters, strict=True):
        state = _once(load_file(adapter.folder / "adapter_model.safetensors"))
        where = str(adapter.folder)
        config = _config(adapter.folder, state)
        if weights and config.bias != "none":
            raise UsageError(
                "weights scale low-rank updates, and this adapter brings trained biases too, which are not one",
                where=f"merge-lora.weights, {where}",
                fix="merge it without weights",
            )
        check_fits(module if wrapped is None else wrapped.get_base_model(), state, where)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if isinstance(wrapped, PeftModel):
                    wrapped.add_adapter(name, config)
                else:
                    wrapped = get_peft_model(module, config, adapter_name=name)
                result = set_peft_model_state_dict(wrapped, state, adapter_name=name)
        except KeyError as error:
            raise ModelError(
                f"the adapter's file lacks {error.args[0]}, which its config says it brings", where=where, fix=_SAVE_AGAIN
            ) from None
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the adapter does not fit the base model: {_reason(error)}", where=where, fix="name the base it was trained on"
            ) from None
        absent = [
            key for key in result.missing_keys if f".{name}" in key and any(part in key for part in (*_LORA_PARTS, "modules_to_save"))
        ]
        if absent or result.unexpected_keys:
            raise ModelError(
                f"the adapter's file and its config disagree about layers: {_some([*absent, *result.unexpected_keys])}",
                where=where,
                fix=_SAVE_AGAIN,
            )
        supplied += _whole_modules(state)
    if len(adapters) > 1 and sum(bool(_whole_modules(load_file(a.folder / "adapter_model.safetensors"))) for a in adapters) > 1:
        raise ModelError(
            "more than one adapter brings a whole module (modules_to_save), and only one can be kept",
            where=", ".join(str(a.folder) for a in adapters),
            fix="merge adapters that share one head",
        )
    wrapped.base_model.set_adapter(names)
    _scale(wrapped, names, weights)
    return wrapped, supplied


def _config(folder: Path, state: Mapping[str, Tensor]) -> Any:
    """The adapter's config, freed of its task: PEFT's task classes would give every adapter a head of its own, also
    those that were saved without one."""
    from peft import LoraConfig

    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"the adapter's config cannot be read: {error}", where=str(folder / "adapter_config.json"), fix=_SAVE_AGAIN
        ) from None
    if getattr(config, "alora_invocation_tokens", None):
        raise ModelError(
            "an activated LoRA works only behind its invocation tokens, so it cannot be merged",
            where=str(folder),
            fix="train it as plain LoRA",
        )
    config.inference_mode, config.task_type = True, None
    if not config.modules_to_save:  # PEFT before 0.4 left it to the task class
        config.modules_to_save = [prefix[:-1] for prefix in _whole_modules(state) if ".base_layer." not in prefix] or None
    return config


def _reason(error: Exception) -> str:
    """The lines of PyTorch's or PEFT's message that name layers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _some(lines[1:]) if len(lines) > 1 and "state_dict" in lines[0] else (lines or [type(error).__name__])[0]


def untie(wrapped: Any) -> None:
    """Give each owner of a shared weight its own, where an adapter changes one of them: merging into the shared one
    would change them all (a masked language model's decoder with its embeddings)."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in wrapped.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, name))
    for layer in wrapped.modules():
        if isinstance(layer, BaseTunerLayer) and isinstance(weight := _weight(layer), nn.Parameter):
            for module, name in owners.get(id(weight), [])[1:]:
                setattr(module, name, nn.Parameter(weight.detach().clone(), requires_grad=False))


def note_untied(module: Any) -> None:
    """Say in the config that input and output embeddings differ, where they do: a loader would tie them again."""
    if not getattr(module.config, "tie_word_embeddings", False):
        return
    ours, theirs = module.get_input_embeddings(), module.get_output_embeddings()
    if ours is not None and theirs is not None and ours.weight is not theirs.weight:
        module.config.tie_word_embeddings = False


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the biases that PEFT writes twice under bias="all": `x.bias` again as `x.modules_to_save.bias`."""
    return {
        key: tensor
        for key, tensor in state.items()
        if not (key.endswith(".modules_to_save.bias") and key.replace(".modules_to_save", "") in state)
    }


def check_fits(base: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Every layer the adapter changes must be in the base model, with the shape it was trained on."""
    layers = dict(base.named_modules())
    missing, unlike = set(), set()
    for key, tensor in state.items():
        path = key.removeprefix(_PREFIX)
        part = next((p for p in _LORA_PARTS if p in path), None)
        if part is None:
            continue
        layer = layers.get(path.split(part)[0])
        if layer is None:
            missing.add(path.split(part)[0])
            continue
        weight = _weight(layer)
        if weight is not None and part in (".lora_A", ".lora_B"):
            width = tensor.shape[1] if part == ".lora_A" else tensor.shape[0]
            if width not in weight.shape:
                unlike.add(f"{path.split(part)[0]} ({width} against {' × '.join(map(str, weight.shape))})")
    if missing:
        raise ModelError(
            f"the adapter changes layers the base model does not have: {_some(sorted(missing))}",
            where=where,
            fix="name the base it was trained on",
        )
    if unlike:
        raise ModelError(
            f"the adapter was trained on a base of other widths: {_some(sorted(unlike))}",
            where=where,
            fix="name the base it was trained on",
        )


def _weight(layer: Any) -> Tensor | None:
    base = getattr(layer, "base_layer", layer)  # a layer an earlier adapter already wraps
    weight: Tensor | None = getattr(base, "weight", None)
    return weight


def _whole_modules(state: Mapping[str, Tensor]) -> list[str]:
    """Prefixes of parameters the adapter brings whole, in the base model's names."""
    keys = [key.removeprefix(_PREFIX) for key in state if not any(part in key for part in _LORA_PARTS)]
    return sorted({key.rsplit(".", 1)[0] + "." for key in keys if not key.endswith(".bias") or key.rsplit(".", 1)[0] + ".weight" in keys})


def _scale(wrapped: Any, names: Sequence[str], weights: Sequence[float]) -> None:
    if not weights:
        return
    for layer in wrapped.modules():
        scaling = getattr(layer, "scaling", None)
        if isinstance(scaling, dict):
            for name, weight in zip(names, weights, strict=True):
                if name in scaling:
                    scaling[name] *= weight


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
