"""What else names tokens by their ids in a tokenizer.json follows them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from edgepipe.vocabulary.selection import choose_tokens
from edgepipe.vocabulary.tokenizer_file import TokenizerFile
from tests.vocabulary.models import tokenizer_file


def with_specials_last(kind: str, processor: dict[str, Any]) -> TokenizerFile:
    """A tokenizer whose special tokens come behind all others, and that adds one which is no piece."""
    data = json.loads(json.dumps(tokenizer_file("wordpiece" if kind == "wordpiece" else "bpe").data))
    special = {entry["content"] for entry in data["added_tokens"]}
    order = sorted(data["model"]["vocab"], key=lambda piece: (piece in special, data["model"]["vocab"][piece]))
    data["model"]["vocab"] = {piece: index for index, piece in enumerate(order)}
    for entry in data["added_tokens"]:
        entry["id"] = data["model"]["vocab"][entry["content"]]
    data["added_tokens"].append({**data["added_tokens"][0], "content": "<user>", "id": len(order), "special": False})
    vocabulary = data["model"]["vocab"]
    data["post_processor"] = _numbered(processor, vocabulary)
    pad = "[PAD]" if kind == "wordpiece" else "<pad>"
    data["padding"] = {
        "strategy": {"Fixed": 16},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": vocabulary[pad],
        "pad_type_id": 0,
        "pad_token": pad,
    }
    return TokenizerFile(tokenizer_file("bpe").path, data)


def _numbered(part: Any, vocabulary: dict[str, int]) -> Any:
    """`@token` → its id."""
    if isinstance(part, dict):
        return {name: _numbered(value, vocabulary) for name, value in part.items()}
    if isinstance(part, list):
        return [_numbered(value, vocabulary) for value in part]
    return vocabulary[part[1:]] if isinstance(part, str) and part.startswith("@") else part


def template(start: str, end: str) -> dict[str, Any]:
    def one(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    tokens = {token: {"id": token, "ids": [f"@{token}"], "tokens": [token]} for token in (start, end)}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [one(start), text, one(end), {"Sequence": {"id": "B", "type_id": 1}}, one(end)]
    return {"type": "TemplateProcessing", "single": [one(start), text, one(end)], "pair": pair, "special_tokens": tokens}


PROCESSORS = {
    "template": ("wordpiece", template("[CLS]", "[SEP]")),
    "bert": ("wordpiece", {"type": "BertProcessing", "sep": ["[SEP]", "@[SEP]"], "cls": ["[CLS]", "@[CLS]"]}),
    "roberta": (
        "bpe",
        {"type": "RobertaProcessing", "sep": ["</s>", "@</s>"], "cls": ["<s>", "@<s>"], "trim_offsets": True, "add_prefix_space": False},
    ),
    "sequence": (
        "bpe",
        {
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                template("<s>", "</s>"),
            ],
        },
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_special_tokens_behind_the_others_keep_their_part(name: str) -> None:
    whole = with_specials_last(*PROCESSORS[name])
    selection = choose_tokens(whole, Counter(), special=whole.special, reserved=set(), size=None, min_count=1, every_character=True)

    shorter = whole.with_tokens(selection.new_ids)

    assert len(shorter.tokens) < len(whole.tokens)
    shorter.check_ids()
    before, after = whole.opened().encode("xyz <user>", "q"), shorter.opened().encode("xyz <user>", "q")
    assert after.tokens == before.tokens
    assert after.ids == [selection.new_ids[index] for index in before.ids]
    assert "<user>" in after.tokens
    padding = shorter.data["padding"]
    assert shorter.tokens[padding["pad_id"]] == padding["pad_token"]
    assert shorter.data["padding"]["strategy"] == {"Fixed": 16}
