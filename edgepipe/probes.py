"""Inputs to compare models on: real samples where there are any, else generated from the signature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.readers import Sample

    Feeds = Mapping[str, np.ndarray]

SINGLES, SPREAD = 4, 24


def encoder_for(artifact: Artifact) -> Any:
    """The driver's own encoder, so that what is compared here is what runs there."""
    from edgepipe.driver import driver_module

    settings = artifact.program["preprocess"]
    names = [entry["name"] for entry in artifact.model.signature["inputs"]]
    folder = artifact.assets[0].root if artifact.assets else artifact.model.folder
    return driver_module().ENCODERS[settings["kind"]](str(folder), settings, names)


def feeds_of(artifact: Artifact, samples: Sequence[Sample], *, encoder: Any = None) -> Feeds:
    encoder = encoder or encoder_for(artifact)
    feeds: Feeds = encoder.feeds([part for sample in samples for part in encoder.parts(sample)])
    return feeds


def single_runs(artifact: Artifact, samples: Sequence[Sample]) -> Iterator[Feeds]:
    """The model's inputs for each run that the samples make, one at a time."""
    encoder = encoder_for(artifact)
    for sample in samples:
        for part in encoder.parts(sample):
            yield encoder.feeds([part])


def probe_feeds(artifact: Artifact, samples: Sequence[Sample]) -> list[Feeds]:
    """A few samples of unlike length one by one, then the same together, padded."""
    if not samples:
        return generated(artifact)
    encoder = encoder_for(artifact)
    if artifact.program["preprocess"]["kind"] == "tensors":  # arrays as the model takes them: no batch to make
        return [encoder.feeds(encoder.parts(sample)) for sample in samples[:SINGLES]]
    by_length = sorted(samples[:SPREAD], key=lambda sample: len(str(sample.get("text", sample.get("tokens", "")))))
    step = max(1, (len(by_length) - 1) // max(1, SINGLES - 1))
    parts = [part for sample in by_length[::step][:SINGLES] for part in encoder.parts(sample)]
    singles = [encoder.feeds([part]) for part in parts]
    return singles if artifact.program["preprocess"].get("batch") else [*singles, encoder.feeds(parts)]


def generated(artifact: Artifact) -> list[Feeds]:
    """Random inputs of several shapes; symbolic dimensions are given sizes that fit together."""
    import numpy as np

    feeds: list[Feeds] = []
    vocabulary = artifact.program["preprocess"].get("vocab_size", 100)
    limit = artifact.program["preprocess"].get("max_length", 33)
    fixed = artifact.program["preprocess"].get("batch")
    for wanted, wished in ((1, 8), (1, 33), (3, 16)):
        batch, length = fixed or wanted, min(wished, limit)
        rng = np.random.default_rng(length)
        sizes = {"batch": batch, "batch_size": batch, "N": batch, "sequence": length, "sequence_length": length}
        feed: dict[str, Any] = {}
        for entry in artifact.model.signature["inputs"]:
            if entry["name"] == "pixel_values":
                feed["pixel_values"] = rng.standard_normal(image_shape(artifact, batch)).astype(np.float32)
                continue
            shape = [
                dim if isinstance(dim, int) else sizes.get(str(dim), batch if index == 0 else length)
                for index, dim in enumerate(entry["shape"])
            ]
            dtype = np.dtype(entry["dtype"])
            if entry["name"] == "attention_mask":
                feed[entry["name"]] = np.ones(shape, dtype)
            elif entry["name"] == "token_type_ids":
                feed[entry["name"]] = np.zeros(shape, dtype)
            elif dtype.kind in "iu":
                feed[entry["name"]] = rng.integers(0, min(100, vocabulary), shape).astype(dtype)
            elif dtype.kind == "b":
                feed[entry["name"]] = np.ones(shape, dtype)
            else:
                feed[entry["name"]] = rng.standard_normal(shape).astype(dtype)
        feeds.append(feed)
    return feeds


def image_shape(artifact: Artifact, batch: int) -> tuple[int, int, int, int]:
    """[batch, channels, height, width] as the preprocessor makes it."""
    settings = artifact.program["preprocess"]
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, int):
        size = {"height": size, "width": size}
    side = (size or {}).get("shortest_edge", 224)
    return batch, settings.get("channels", 3), (size or {}).get("height", side), (size or {}).get("width", side)


def fixed_feeds(artifact: Artifact, batch: int, length: int) -> Feeds:
    """Inputs of one fixed shape: `length` tokens a row for text; images and tensors have their own."""
    import numpy as np

    settings = artifact.program["preprocess"]
    inputs = artifact.model.signature["inputs"]
    rng = np.random.default_rng(0)
    if settings["kind"] == "image":
        return {inputs[0]["name"]: rng.standard_normal(image_shape(artifact, batch)).astype(np.float32)}
    if settings["kind"] == "text":
        length = settings.get("length") or min(length, settings["max_length"])
        vocabulary = {"input_ids": (0, min(1000, settings["vocab_size"])), "attention_mask": (1, 2), "token_type_ids": (0, 1)}
        return {
            entry["name"]: rng.integers(*vocabulary.get(entry["name"], (0, 2)), (batch, length)).astype(entry["dtype"]) for entry in inputs
        }
    return generated(artifact)[0]
