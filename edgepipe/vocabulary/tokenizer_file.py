"""tokenizer.json as data: its tokens by id, those that must stay, and the same file with fewer tokens under new ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError, PassError
from edgepipe.vocabulary import kind_of
from edgepipe.weights import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edgepipe.artifact import Artifact


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A tokenizer.json that has been read. Nothing in it is changed in place."""

    path: Path
    data: dict[str, Any]

    @property
    def model(self) -> dict[str, Any]:
        model: dict[str, Any] = self.data["model"]
        return model

    @property
    def kind(self) -> Any:
        """The file of `edgepipe.vocabulary` that knows this kind of model."""
        return kind_of(self.model, self.path)

    @property
    def pieces(self) -> dict[int, str]:
        """Id → token, of those the model cuts text into."""
        vocabulary = self.model["vocab"]
        if isinstance(vocabulary, list):
            return {index: piece for index, (piece, _) in enumerate(vocabulary)}
        return {index: piece for piece, index in vocabulary.items()}

    @property
    def tokens(self) -> dict[int, str]:
        """Id → token, with those that were added."""
        return self.pieces | {entry["id"]: entry["content"] for entry in self.data.get("added_tokens") or ()}

    @property
    def unknown(self) -> int | None:
        """The token for what no other stands for."""
        found = self.model.get("unk_id")
        if found is None and isinstance(self.model["vocab"], dict):
            found = self.model["vocab"].get(self.model.get("unk_token"))
        return found

    @property
    def special(self) -> set[int]:
        """Tokens the tokenizer itself asks for: added ones, the unknown one, padding, what stands around every text."""
        found = {entry["id"] for entry in self.data.get("added_tokens") or ()}
        found |= {index for ids in _template_ids(self.data.get("post_processor")) for index in ids}
        if self.data.get("padding"):
            found.add(self.data["padding"]["pad_id"])
        if self.unknown is not None:
            found.add(self.unknown)
        return found

    def characters_of(self, ids: set[int]) -> set[str]:
        """The characters that these tokens are spelled with."""
        pieces, mark = self.pieces, self.model.get("continuing_subword_prefix") or ""
        return {letter for index in ids for letter in pieces.get(index, "").removeprefix(mark)}

    def with_tokens(self, new_ids: Mapping[int, int]) -> TokenizerFile:
        """The same tokenizer with these tokens only, old id → new."""
        data = {**self.data, "model": self.kind.cut(self.model, new_ids)}
        data["added_tokens"] = [{**entry, "id": new_ids[entry["id"]]} for entry in self.data.get("added_tokens") or ()]
        data["post_processor"] = _renumbered(self.data.get("post_processor"), new_ids)
        if padding := self.data.get("padding"):
            data["padding"] = {**padding, "pad_id": new_ids[padding["pad_id"]]}
        return TokenizerFile(self.path, data)

    def opened(self) -> Any:
        """The tokenizer, which cuts no text short."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(json.dumps(self.data, ensure_ascii=False))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def check_ids(self) -> None:
        """`PassError` where the library finds a token under another id than the file says."""
        tokenizer = self.opened()
        for index, token in self.tokens.items():
            if tokenizer.id_to_token(index) != token:
                raise PassError(
                    f'token {index} should be "{token}", and reads back as {tokenizer.id_to_token(index)!r}',
                    where="pass prune-vocab",
                    fix="leave the pass out of the recipe, and report this tokenizer",
                )


def read_tokenizer(artifact: Artifact) -> TokenizerFile:
    """The artifact's own. Raises `ModelError` for a model without one, and for a file that is none."""
    settings = artifact.program["preprocess"]
    asset = artifact.asset(settings.get("tokenizer", ""))
    if settings["kind"] != "text" or asset is None:
        raise ModelError("the model has no tokenizer, so no vocabulary", where="prune-vocab", fix="leave the pass out of the recipe")
    found = TokenizerFile(asset.location, read_json(asset.location))
    try:
        sound = found.kind and found.special <= found.tokens.keys() and all(isinstance(index, int) for index in found.tokens)
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise ModelError(
            "not a tokenizer with a vocabulary", where=str(asset.location), fix="write it again with AutoTokenizer.save_pretrained"
        )
    return found


def _template_ids(post_processor: Any) -> Iterator[list[int]]:
    """The ids that a post-processor puts around a text, wherever it keeps them."""
    if not post_processor:
        return
    for part in post_processor.get("processors", ()):
        yield from _template_ids(part)
    if post_processor["type"] == "TemplateProcessing":
        yield from (entry["ids"] for entry in post_processor["special_tokens"].values())
    elif post_processor["type"] in ("BertProcessing", "RobertaProcessing"):
        yield [post_processor["sep"][1], post_processor["cls"][1]]


def _renumbered(post_processor: Any, new_ids: Mapping[int, int]) -> Any:
    if not post_processor:
        return post_processor
    changed = dict(post_processor)
    if "processors" in changed:
        changed["processors"] = [_renumbered(part, new_ids) for part in changed["processors"]]
    if changed["type"] == "TemplateProcessing":
        tokens = changed["special_tokens"].items()
        changed["special_tokens"] = {name: {**entry, "ids": [new_ids[index] for index in entry["ids"]]} for name, entry in tokens}
    elif changed["type"] in ("BertProcessing", "RobertaProcessing"):
        for name in ("sep", "cls"):
            token, index = changed[name]
            changed[name] = [token, new_ids[index]]
    return changed
