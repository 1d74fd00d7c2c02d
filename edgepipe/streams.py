"""Models with state: which outputs go in again at the next step, and how a sample becomes steps.

State is found by name, dtype and shape: `state` → `stateN`, `h` → `hn`, `past…` → `present…`, `cache_in` → `cache_out`; or
named by the user in [stream.state].
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepipe.data import given_as_arrays
from edgepipe.driver import driver_module
from edgepipe.errors import DataError, ModelError, UsageError, nearest
from edgepipe.parts import Stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.artifact import Artifact, Component
    from edgepipe.config import Data

STATE_WORDS = {"state", "states", "h", "c", "hidden", "cell", "cache", "memory", "mem", "buffer", "past"}
BEFORE = {"in", "input", "prev", "previous", "old", "initial", "init"}  # how names tell a state that goes in
AFTER = {"out", "output", "new", "next", "final", "n"}
SILERO = ({"input", "state", "sr"}, 512, 64)  # inputs, chunk and context of Silero VAD 5 and 6 (its `OnnxWrapper`)


def stem(name: str) -> tuple[str, ...]:
    """A name without what tells in from out: `stateN`, `new_state` and `state_in` are all ("state",)."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name.replace("present", "past").replace("past_key_values", "past"))
    words = [word.lower() for word in words]
    words = [word[0] if word in ("hn", "cn") else word for word in words]
    kept = [word for word in words if word not in BEFORE | AFTER]
    return tuple(kept[:-1] if kept and kept[-1] == "0" else kept)  # h0 is what hn comes from


def find_state(signature: Mapping[str, Any], named: Mapping[str, str], where: str) -> tuple[dict[str, Any], ...]:
    """[{input, output, initial, grows_along}] of a model's signature; `named` pairs come first.

    Raises `UsageError` for named inputs and outputs that are not there or do not fit each other.
    """
    inputs = {entry["name"]: entry for entry in signature["inputs"]}
    outputs = {entry["name"]: entry for entry in signature["outputs"]}
    pairs: dict[str, str] = {}
    for source, target in named.items():
        for name, side, there in ((source, "input", inputs), (target, "output", outputs)):
            if name not in there:
                raise UsageError(f'the model has no {side} "{name}"', where="[stream.state]", fix=nearest(name, there))
        if not _fits(inputs[source], outputs[target]):
            raise UsageError(
                f'"{target}" ({_shown(outputs[target])}) cannot go in as "{source}" ({_shown(inputs[source])})',
                where="[stream.state]",
                fix="name the output that has the input's type and shape",
            )
        pairs[source] = target
    for source, entry in inputs.items():
        if source in pairs or not STATE_WORDS & set(stem(source)):
            continue
        found = [
            name for name, other in outputs.items() if stem(name) == stem(source) and _fits(entry, other) and name not in pairs.values()
        ]
        if len(found) == 1:
            pairs[source] = found[0]
    if pairs and len(pairs) == len(outputs):
        raise ModelError(
            "every output is state, so the model gives nothing", where=where, fix="export it with its answer as an output of its own"
        )
    return tuple(
        {"input": source, "output": target, "initial": 0, "grows_along": _growing(inputs[source], outputs[target])}
        for source, target in pairs.items()
    )


def _fits(source: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    known = all(a == b for a, b in zip(source["shape"], target["shape"], strict=False) if isinstance(a, int) and isinstance(b, int))
    return source["dtype"] == target["dtype"] and len(source["shape"]) == len(target["shape"]) and known


def _shown(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']} [{', '.join(map(str, entry['shape']))}]"


def _growing(source: Mapping[str, Any], target: Mapping[str, Any]) -> int | None:
    """The axis along which a cache grows: its length before has another name than its length after."""
    if "past" not in stem(source["name"]):
        return None
    pairs = enumerate(zip(source["shape"], target["shape"], strict=True))
    return next((axis for axis, (a, b) in pairs if isinstance(a, str) and isinstance(b, str) and a != b and "past" in a), None)


def with_state(component: Component, program: dict[str, Any], given: Stream | None, data: Data) -> tuple[Component, dict[str, Any]]:
    """The component with its state, and the program that carries it; both as they are where there is none.

    Raises `UsageError` where the project or the task asks for a stream and no state is found.
    """
    where, settings = str(component.main_file), given or Stream()
    state = find_state(component.signature, settings.state, where)
    if state:
        return replace(component, state=state), stream_program(component, state, settings, program["task"], data)
    if settings != Stream() or program["task"] == "voice-activity":
        inputs, outputs = (", ".join(entry["name"] for entry in component.signature[side]) for side in ("inputs", "outputs"))
        raise UsageError(
            f"no state was found: the model takes {inputs} and gives {outputs}",
            where=where,
            fix="name the pairs in the project file: [stream.state] INPUT = OUTPUT",
        )
    return component, program


def stream_program(component: Component, state: Sequence[Mapping[str, Any]], given: Stream, task: str, data: Data) -> dict[str, Any]:
    """The program of a model with state: kind, constants and how samples become steps.

    Audio where the project says how much a step takes, or the model is Silero VAD's; else tensors with a leading time
    axis. Raises `UsageError` for constants that are no inputs, and for audio into a model of several inputs.
    """
    inputs = {entry["name"]: entry for entry in component.signature["inputs"]}
    silero, chunk, context = SILERO
    known = set(inputs) == silero
    audio = (given.chunk is not None or known) and not (given_as_arrays(data) and given.chunk is None)
    constants: dict[str, Any] = dict(given.constants)
    if known and audio:
        constants.setdefault("sr", given.rate)
    carried = {entry["input"] for entry in state}
    for name in constants:
        if name not in inputs or name in carried:
            raise UsageError(
                f'"{name}" is no input that could be constant', where="[stream.constants]", fix=nearest(name, set(inputs) - carried)
            )
    program: dict[str, Any] = {"kind": "stream", "component": "model", "task": task, "constants": constants}
    free = [name for name in inputs if name not in carried and name not in constants]
    if not audio:
        if task == "voice-activity":
            raise UsageError(
                "nothing says how much audio a step of this model takes",
                where="[stream] chunk",
                fix="chunk = 512 and context = 64, for example",
            )
        return {**program, "preprocess": {"kind": "tensors", "batch": 1}}
    if len(free) != 1:
        raise UsageError(
            f"audio goes into one input, and the model has {', '.join(free) or 'none'}",
            where="[stream]",
            fix="name those that never change in [stream.constants], and those that are state in [stream.state]",
        )
    own = (chunk, context) if known and given.chunk is None else (given.chunk, given.context)
    return {**program, "preprocess": {"kind": "audio", "rate": given.rate, "chunk": own[0], "context": own[1], "batch": 1}}


def sample_inputs(artifact: Artifact) -> list[dict[str, Any]]:
    """What a sample of arrays must hold, as a signature lists it: of a stream, every input that is neither state nor
    constant, with a leading time axis."""
    program = artifact.program
    if program["kind"] == "pipeline":
        return []
    inputs = artifact.model.signature["inputs"]
    if program["kind"] == "single":
        return list(inputs)
    fixed = {*program["constants"], *(entry["input"] for entry in artifact.model.state)}
    return [{**entry, "shape": ["steps", *entry["shape"]]} for entry in inputs if entry["name"] not in fixed]


def step_shapes(artifact: Artifact) -> dict[str, tuple[int, ...]]:
    """Input → the shape it has at every step, of a stream of audio; those that are fixed already are left out."""
    settings = artifact.program["preprocess"]
    if settings["kind"] != "audio" or any(entry["grows_along"] is not None for entry in artifact.model.state):
        return {}
    carried = {entry["input"] for entry in artifact.model.state}
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in sample_inputs(artifact):
        shapes[entry["name"]] = (*[1] * (len(entry["shape"]) - 2), settings["context"] + settings["chunk"])
    for entry in artifact.model.signature["inputs"]:
        if entry["name"] in carried:
            shapes[entry["name"]] = tuple(dim if isinstance(dim, int) and dim > 0 else 1 for dim in entry["shape"])
    known = {entry["name"]: tuple(entry["shape"]) for entry in artifact.model.signature["inputs"]}
    return {name: shape for name, shape in shapes.items() if shape != known[name]}


def check_audio(artifact: Artifact, samples: Sequence[Mapping[str, Any]]) -> None:
    """Raises `DataError` for audio that the driver does not read, or of another rate than the model's."""
    settings = artifact.program["preprocess"]
    if settings["kind"] != "audio":
        return
    stream = driver_module().neighbour("stream")
    for sample in samples:
        if "audio" not in sample:
            continue
        try:
            stream.open_audio(sample["audio"], settings["rate"]).close()
        except (ValueError, OSError) as error:
            fix = f"make it so: ffmpeg -i IN -ac 1 -ar {settings['rate']} -c:a pcm_s16le OUT.wav"
            raise DataError(str(getattr(error, "strerror", None) or error), where=str(sample["audio"]), fix=fix) from None
