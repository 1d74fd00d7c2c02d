"""A model's tables with fewer rows: token embeddings, the output layer over the vocabulary, and the token ids in its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError
from edgepipe.factorized import parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

WITH_IDS = ("_token_id", "_token_ids")  # how settings end that name tokens by their ids
TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")
ID_STRUCTURES = ("bad_words_ids", "force_words_ids", "forced_decoder_ids", "sequence_bias")  # of generation; none outlives new ids


def embedding_of(module: Any) -> nn.Embedding:
    """The table of token embeddings of a transformers model. Raises `ModelError` where there is none to find."""
    from torch import nn

    found = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None
    table = parts(found)[0] if found is not None else None
    if not isinstance(table, nn.Embedding):
        raise ModelError(
            "the model has no table of token embeddings that can be found",
            where=type(module).__name__,
            fix="transformers models for text have one; leave prune-vocab out of the recipe",
        )
    return table


def ids_of(settings: Mapping[str, Any]) -> set[int]:
    """The tokens that a config, or the settings of generation, name by their ids."""
    return {index for _, ids in _named(settings) for index in ids}


def places_after_padding(module: Any) -> int:
    """How many tokens from the first must keep their ids, because positions are counted from behind the padding token's."""
    tables = (getattr(part, "position_embeddings", None) for part in module.modules())
    paddings = [padding for table in tables if (padding := getattr(table, "padding_idx", None)) is not None]
    return max(paddings, default=-1) + 1


def keep_tokens(module: Any, kept: Sequence[int]) -> None:
    """Cut a transformers model down to these tokens, in order, and its config with it."""
    import torch
    from torch import nn

    table, head = embedding_of(module), module.get_output_embeddings()
    rows, new_ids = torch.as_tensor(list(kept)), {old: new for new, old in enumerate(kept)}
    cut: dict[int, Any] = {}  # weights that are tied stay tied
    for owner, name in _places(module, table, head):
        old = getattr(owner, name)
        if id(old) not in cut:
            cut[id(old)] = nn.Parameter(old.detach()[rows].clone(), requires_grad=old.requires_grad), old
        setattr(owner, name, cut[id(old)][0])
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.weight is table.weight:
            part.num_embeddings, part.padding_idx = len(rows), new_ids.get(part.padding_idx)
        elif isinstance(part, nn.Linear):
            part.out_features = part.weight.shape[0]
    module.config.vocab_size = len(rows)
    for settings in (module.config, getattr(module, "generation_config", None)):
        if settings is not None:
            before = settings.to_dict()
            for name, value in renumbered(before, new_ids).items():
                if value != before[name]:
                    setattr(settings, name, value)


def renumbered(settings: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Settings with the new ids of the tokens they name. Ids that no row ever had stay; what forbids or forces tokens goes."""
    changed = {name: (None if name in ID_STRUCTURES else value) for name, value in settings.items()}
    for name in TOKEN_LISTS:
        if isinstance(listed := settings.get(name), list):
            changed[name] = [new_ids[index] for index in listed if index in new_ids]
    for name, ids in _named(settings):
        new = [new_ids.get(index, index) for index in ids]
        changed[name] = new if isinstance(settings[name], list) else new[0]
    return changed


def _named(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    for name, value in settings.items():
        ids = value if isinstance(value, list) else [value]
        if name.endswith(WITH_IDS) and ids and all(type(index) is int for index in ids):
            yield name, ids


def _places(module: Any, table: Any, head: Any) -> list[tuple[Any, str]]:
    """Where the model holds the table, and what has one row a token at its end: (layer, parameter)."""
    weights, found = {id(table.weight)}, []
    if head is not None:
        last = parts(head)[-1]
        weights |= {id(last.weight)} | ({id(last.bias)} if getattr(last, "bias", None) is not None else set())
        path = next(name for name, part in module.named_modules() if part is head).rpartition(".")[0]
        own = module.get_submodule(path)._parameters.get("bias")  # BERT keeps the bias of its head beside it
        if own is not None and own.shape == (table.num_embeddings,):
            weights.add(id(own))
    for part in module.modules():
        found += [(part, name) for name, value in part._parameters.items() if id(value) in weights]
    return found
