"""prune-vocab: keep the tokens that the task's data use, and rewrite the tokenizer for them.

Abdaoui et al., "Load What You Need: Smaller Versions of Multilingual BERT", arXiv 2010.05609, section 3.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from edgepipe.artifact import sha256_file
from edgepipe.errors import DataError, ModelError, UsageError, reading
from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.data import Split

CHOSEN_ON: tuple[Split, ...] = ("train", "unlabelled", "calibration")


class PruneVocab(PassOptions):
    size: int | None = Field(default=None, ge=1, description="tokens that stay at most, special ones included (default: all that are used)")
    min_count: int = Field(
        default=1, ge=1, description="how often training, unlabelled and calibration data together must use a token for it to stay"
    )
    keep_characters: bool = Field(
        default=True, description="every single character stays, so that any text still tokenizes; bytes of byte-level tokenizers always do"
    )
    reserve: tuple[str, ...] = Field(default=(), description="tokens, words or texts whose tokens stay, whatever the data say")
    reserve_file: str | None = Field(
        default=None, description="a text file whose lines are such texts; its path from the working directory"
    )
    reserve_sha256: str | None = Field(default=None, description="of that file; found out where it is not given, else it must be true")

    @model_validator(mode="before")
    @classmethod
    def _content_of_the_file(cls, given: Any) -> Any:
        """What stays depends on what the file says, not on its name."""
        if not isinstance(given, dict) or not given.get("reserve_file"):
            return given
        path = Path(str(given["reserve_file"]))
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        found = sha256_file(path)
        if given.get("reserve_sha256") not in (None, found):
            raise ValueError(f"{path} is another file than the one that reserve_sha256 tells of")
        return {**given, "reserve_sha256": found}


@register_pass(
    "prune-vocab",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=PruneVocab,
    after=("merge-lora",),
    before=("recover", "quantization-aware-training", "export-onnx"),
    optional_data=(*CHOSEN_ON, "dev"),
    checks=(Check("smaller"), Check("same-signature"), Check("equal-on-kept-text", 1e-5), Check("fallback-share"), Check("loads")),
    libraries=("torch", "transformers", "tokenizers"),
)
def prune_vocab(artifact: Artifact, options: PruneVocab, ctx: Context) -> Artifact:
    """Keep the tokens that the data use; others fall to shorter ones. Tokenizer and model shrink together."""
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.structure import transformer_of
    from edgepipe.vocabulary.assets import tokens_named, write_assets
    from edgepipe.vocabulary.selection import choose_tokens, tokens_of
    from edgepipe.vocabulary.table import embedding_of, ids_of, keep_tokens, places_after_padding
    from edgepipe.vocabulary.tokenizer_file import read_tokenizer

    tokenizer = read_tokenizer(artifact)
    module = load_torch(artifact)
    inner = transformer_of(module)
    rows = embedding_of(inner).num_embeddings
    if beyond := [token for index, token in tokenizer.tokens.items() if index >= rows]:
        raise ModelError(
            f'the model has no embedding for {len(beyond)} of its tokens, the first is "{beyond[0]}"',
            where=str(tokenizer.path),
            fix="take the tokenizer that the model was trained with, or train it with resize_token_embeddings",
        )
    settings = artifact.program["preprocess"]
    named = tokens_named(artifact)
    special = tokenizer.special | {index for index, token in tokenizer.tokens.items() if token in named}
    special |= ids_of(inner.config.to_dict()) | {settings["pad_id"], *range(places_after_padding(inner))}
    selection = choose_tokens(
        tokenizer,
        _counted(artifact, options, ctx),
        special=special & set(range(rows)),
        reserved=tokens_of(tokenizer, _reserved(options)),
        size=options.size,
        min_count=options.min_count,
        every_character=options.keep_characters,
    )
    if len(selection.kept) == rows:
        raise UsageError(
            f"no token would go: all {rows:,} are special, characters, reserved, or used by the data",
            where="prune-vocab",
            fix="set a size, raise min_count, or leave the pass out of the recipe",
        )
    told = {name: getattr(selection, name) for name in ("special", "characters", "reserved", "used")}
    ctx.record("vocabulary", {"before": rows, "kept": len(selection.kept), **told})
    shorter = tokenizer.with_tokens(selection.new_ids)
    shorter.check_ids()
    keep_tokens(inner, selection.kept)
    after = artifact.with_component("model", save_torch(module, artifact, ctx.workdir))
    after = after.with_assets(write_assets(artifact, shorter, selection.new_ids, ctx.workdir / "assets"))
    return after.with_program(preprocess={**settings, "vocab_size": len(selection.kept), "pad_id": selection.new_ids[settings["pad_id"]]})


def _counted(artifact: Artifact, options: PruneVocab, ctx: Context) -> Counter[int]:
    """How often the data use each token. Raises `DataError` where nothing says what is used."""
    from edgepipe.probes import encoder_for
    from edgepipe.vocabulary.selection import count_tokens

    splits = [split for split in CHOSEN_ON if ctx.has(split)]
    if not splits and not _reserved(options):
        raise DataError(
            "it needs training or calibration data, which say what tokens are used",
            where="pass prune-vocab",
            fix="give train, unlabelled or calibration data, or texts with reserve_file",
        )
    encoder, counts = encoder_for(artifact), Counter[int]()
    for number, split in enumerate(splits):
        ctx.progress(f"counting tokens of the {split} data", number, len(splits))
        counts += count_tokens(encoder, ctx.data(split))
    return counts


def _reserved(options: PruneVocab) -> list[str]:
    if options.reserve_file is None:
        return list(options.reserve)
    with reading(UsageError):
        text = Path(options.reserve_file).read_text(encoding="utf-8", errors="replace")
    return [*options.reserve, *filter(None, map(str.strip, text.splitlines()))]
