"""ONNX Runtime's own quantizers, as its documentation has them used: what the builds of edgepipe are set beside."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

import onnx
import onnxruntime as ort
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

    Feeds = dict[str, np.ndarray]

OPSET = 17  # that per-channel scales need more than 13 of, and that the version converter still reaches from 11


class NotQuantized(Exception):
    """Its first line says why."""


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def static_as_is(model: Path, feeds: Sequence[Feeds], into: Path) -> Path:
    """`quantize_static`, QDQ, a scale for each channel, everything else as it comes."""
    return _checked(lambda target: quantize_static(model, target, Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True), into)


def static_prepared(model: Path, feeds: Sequence[Feeds], into: Path) -> Path:
    """The same after the opset is raised and the model prepared, as the documentation asks for."""
    return _checked(
        lambda target: quantize_static(_prepared(model, target), target, Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True),
        into,
    )


def dynamic(model: Path, feeds: Sequence[Feeds], into: Path) -> Path:
    """`quantize_dynamic` with its own options, after the model is prepared; it needs no data."""
    return _checked(lambda target: quantize_dynamic(_prepared(model, target), target), into)


def _prepared(model: Path, target: Path) -> Path:
    """The opset raised, shapes inferred and the graph optimised; without symbolic shapes where their inference fails."""
    raised, prepared = target.with_name("raised.onnx"), target.with_name("prepared.onnx")
    loaded = onnx.load(model)
    current = next(entry.version for entry in loaded.opset_import if entry.domain in ("", "ai.onnx"))
    onnx.save(version_converter.convert_version(loaded, OPSET) if current < OPSET else loaded, raised)
    try:
        quant_pre_process(raised, prepared)
    except Exception:  # an assertion, a bare Exception: it says "incomplete"
        quant_pre_process(raised, prepared, skip_symbolic_shape=True)
    return prepared


QUANTIZERS = {
    "ONNX Runtime static, as it comes": static_as_is,
    f"ONNX Runtime static, opset {OPSET}, prepared": static_prepared,
    "ONNX Runtime dynamic, prepared": dynamic,
}


def _checked(made: object, into: Path) -> Path:
    """The file, alone in its folder, once the runtime has loaded it. Raises `NotQuantized`."""
    into.mkdir(parents=True)
    work = into.with_name(into.name + ".work")
    work.mkdir()
    logging.disable(logging.WARNING)
    try:
        made(work / "model.onnx")  # type: ignore[operator]
    except Exception as error:  # whatever a peer raises is its result
        raise NotQuantized(_line("not made", error)) from error
    finally:
        logging.disable(logging.NOTSET)
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        ort.InferenceSession(work / "model.onnx", options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise NotQuantized(_line("does not load", error)) from error
    return (work / "model.onnx").rename(into / "model.onnx")


def _line(what: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if not text:  # a bare assertion: where it stands is all there is
        text = f"{type(error).__name__} in {traceback.extract_tb(error.__traceback__)[-1].name}"
    return f"{what}: {text[:160]}"
