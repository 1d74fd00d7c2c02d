"""The OCR program: the artifact that detector, classifier and recogniser make together (`devices/ocr.py` drives it).

Models of the PP-OCR family (Du et al., arXiv 2009.09941). The recogniser's characters are kept as a file of the artifact:
its ONNX metadata, where they mostly are, does not outlive the passes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Artifact, FileRef, digest
from edgepipe.errors import ModelError, UsageError, nearest
from edgepipe.store import cache_root, write_atomic
from edgepipe.weights import check_onnx_finite, load_onnx, onnx_component

if TYPE_CHECKING:
    from edgepipe.artifact import Component
    from edgepipe.parts import Parts

CHARACTERS = "characters.txt"
# What PP-OCR's models were made for: sizes in pixels, thresholds of probabilities (RapidOCR 1.4's config.yaml).
STAGES: dict[str, dict[str, Any]] = {
    "detector": {"longest": 960, "binarize": 0.3, "threshold": 0.5, "unclip": 1.6, "smallest": 3},
    "classifier": {"height": 48, "width": 192, "threshold": 0.9},
    "recogniser": {"height": 48, "width": 320, "threshold": 0.5, "characters": CHARACTERS},
}


def ocr_artifact(parts: Parts, task: str) -> Artifact:
    """The artifact of a project's [components]: a recogniser, and before it a detector and a classifier where they are given.

    Raises `UsageError` for roles that are missing or unknown, `ModelError` for files that are no such models.
    """
    for role in parts.components:
        if role not in STAGES:
            raise UsageError(f'an OCR program has no component "{role}"', where="[components]", fix=nearest(role, STAGES))
    if "recogniser" not in parts.components:
        raise UsageError("an OCR program needs a recogniser", where="[components]", fix='name it: recogniser = "rec.onnx"')
    components = {role: _component(role, Path(parts.components[role])) for role in STAGES if role in parts.components}
    stages = [{"component": role, **settings} for role, settings in STAGES.items() if role in components]
    characters = _characters(parts, components["recogniser"])
    program = {"kind": "pipeline", "task": task, "stages": stages, "preprocess": {"kind": "pixels", "batch": 1}}
    return Artifact(components, (characters,), program)


def _component(role: str, path: Path) -> Component:
    if not path.is_file() or path.suffix != ".onnx":
        what = "is no ONNX file" if path.exists() else "is not there"
        raise ModelError(f"the {role}'s file {what}", where=str(path), fix=f'name an .onnx file in [components] {role} = "…"')
    check_onnx_finite(load_onnx(path), path)
    component: Component = onnx_component(path.parent, path.name)
    inputs = component.signature["inputs"]
    if len(inputs) != 1 or len(inputs[0]["shape"]) != 4 or inputs[0]["dtype"] != "float32":
        raise ModelError(
            f"the {role} does not take one image [batch, 3, height, width] in float32", where=str(path), fix="name a PP-OCR model as ONNX"
        )
    if (batch := inputs[0]["shape"][0]) not in (1, -1) and isinstance(batch, int):
        raise ModelError(f"the {role} takes batches of {batch} only", where=str(path), fix="export it with a batch of 1, or a dynamic one")
    return component


def _lines(text: str) -> list[str]:
    """Without `splitlines`: a list may hold characters that it takes for ends of lines."""
    return text.removesuffix("\n").split("\n") if text else []


def _characters(parts: Parts, recogniser: Component) -> FileRef:
    """The character list as a file of its own, kept by its content below EDGEPIPE_CACHE."""
    where = str(recogniser.main_file)
    if parts.characters:
        where = parts.characters
        try:
            found = _lines(Path(where).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"not readable as a list of characters: {error}", where=where, fix="one character a line, in UTF-8") from None
    else:
        metadata = {entry.key: entry.value for entry in load_onnx(recogniser.main_file).metadata_props}
        found = _lines(metadata.get("character", ""))
    if not found:
        raise UsageError(
            'the recogniser has no list of characters ("character" in its ONNX metadata)',
            where=where,
            fix='name a file with one character a line: characters = "keys.txt"',
        )
    classes = recogniser.signature["outputs"][0]["shape"][-1]
    if isinstance(classes, int) and classes > 0 and classes != len(found) + 2:
        raise UsageError(
            f"{len(found)} characters are listed, but the recogniser tells {classes} apart (one is the blank, one the space)",
            where=where,
            fix="name the list that it was trained with",
        )
    folder = cache_root() / "characters" / digest(found)[:16]
    if not (folder / CHARACTERS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / CHARACTERS, ("\n".join(found) + "\n").encode())
    return FileRef.of(folder, CHARACTERS)
