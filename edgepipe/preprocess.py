"""How the driver turns a sample into the model's inputs: settings read off tokenizer, config and preprocessor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import FileRef
from edgepipe.data import given_as_arrays
from edgepipe.errors import ModelError, UsageError
from edgepipe.weights import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.artifact import Component
    from edgepipe.config import Data
    from edgepipe.tasks import TaskSpec

DEFAULT_MAX_LENGTH = 512
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # what the driver makes of an encoding


def _vocabulary(path: Path) -> int:
    """Entries of a tokenizer.json; `ModelError` when it is none."""
    from tokenizers import Tokenizer

    try:
        return int(Tokenizer.from_str(path.read_text(encoding="utf-8")).get_vocab_size(with_added_tokens=False))
    except Exception as error:  # the bindings raise Exception itself
        raise ModelError(
            f"not a readable tokenizer: {str(error).splitlines()[0]}",
            where=str(path),
            fix="write it with AutoTokenizer.from_pretrained(…).save_pretrained(folder)",
        ) from None


def preprocessing(
    folder: Path, model_config: dict[str, Any], component: Component, task: TaskSpec, data: Data
) -> tuple[dict[str, Any], list[FileRef]]:
    """How the driver turns a sample into the model's inputs, and assets that are not in the model folder."""
    inputs = [entry["name"] for entry in component.signature["inputs"]]
    if "input_ids" in inputs:
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(
                "the tokenizer is missing (tokenizer.json)",
                where=str(folder),
                fix="write it with AutoTokenizer.from_pretrained(…).save_pretrained(folder)",
            )
        vocabulary = _vocabulary(folder / "tokenizer.json")
        limit = model_config.get("max_position_embeddings") or model_config.get("n_positions") or DEFAULT_MAX_LENGTH
        if model_config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
            limit -= 2  # their positions start behind the padding index
        if data.max_length and data.max_length > limit:
            raise UsageError(
                f"max_length {data.max_length} is over the model's {limit} positions", where="[data] max_length", fix=f"at most {limit}"
            )
        settings: dict[str, Any] = {
            "kind": "text",
            "tokenizer": "tokenizer.json",
            "max_length": data.max_length or min(limit, _own_length(folder) or DEFAULT_MAX_LENGTH),
            "pad_id": model_config.get("pad_token_id") or 0,
            "vocab_size": model_config.get("vocab_size") or vocabulary,
        }
        if task.name == "token-classification":
            settings["split_words"] = True
        if task.name == "sentence-similarity":
            settings["twin"] = True
        elif data.text_pair:
            settings["pair"] = True
        return settings | _fixed_text_shape(component, settings["max_length"]), []
    if given_as_arrays(data):
        return {"kind": "tensors"}, []
    own = Path(data.preprocessor) if data.preprocessor else folder / "preprocessor_config.json"
    if own.is_file():
        config = read_json(own)
        keep = (
            "do_resize",
            "size",
            "resample",
            "do_center_crop",
            "crop_size",
            "do_rescale",
            "rescale_factor",
            "do_normalize",
            "image_mean",
            "image_std",
        )
        settings = {"kind": "image", **{key: config[key] for key in keep if key in config}}
        if isinstance(settings.get("size"), int):  # how transformers 4.2x wrote it
            settings["size"] = {"height": settings["size"], "width": settings["size"]}
        settings["channels"] = model_config.get("num_channels", len(config.get("image_mean", "rgb")))
        settings |= _fixed_batch(component.signature["inputs"][0]["shape"])
        return settings, [FileRef.of(own.parent, own.name)] if own.parent != folder else []
    if task.name == "image-classification":
        raise ModelError("preprocessor_config.json is missing", where=str(folder), fix='name one with [data] preprocessor = "…"')
    return {"kind": "tensors"}, []


def _own_length(folder: Path) -> int | None:
    """Where a sentence-transformers model cuts its inputs, which may be well under what its positions allow."""
    own = folder / "sentence_bert_config.json"
    return read_json(own).get("max_seq_length") if own.is_file() else None


def _fixed_text_shape(component: Component, max_length: int) -> dict[str, Any]:
    """What a graph that was exported with fixed dimensions or other integers asks of its inputs."""
    inputs = component.signature["inputs"]
    if unknown := [entry["name"] for entry in inputs if entry["name"] not in TEXT_INPUTS]:
        raise ModelError(
            f"the model takes {', '.join(unknown)}, which a tokenizer does not give",
            where=str(component.main_file),
            fix="give it samples as .npz: one array for each input",
        )
    shape = inputs[0]["shape"]
    found: dict[str, Any] = _fixed_batch(shape)
    if len(shape) > 1 and isinstance(shape[1], int):
        found |= {"length": shape[1], "max_length": min(shape[1], max_length)}
    if inputs[0]["dtype"] != "int64":
        found["dtype"] = inputs[0]["dtype"]
    return found


def _fixed_batch(shape: Sequence[Any]) -> dict[str, Any]:
    """{"batch": 1} for a graph that takes one sample at a time only."""
    if not shape or not isinstance(shape[0], int):
        return {}
    if shape[0] != 1:
        raise ModelError(
            f"the model takes batches of {shape[0]} only", where="its first input", fix="export it with a batch of 1, or a dynamic one"
        )
    return {"batch": 1}
