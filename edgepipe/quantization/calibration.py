"""Runs calibration data through a model and keeps statistics of its tensors, never the tensors: memory is the same for
100 samples and for 10,000.

Samples run one by one, so that no padding is counted. The wanted tensors become outputs of a copy of the graph; where a
sample's tensors together pass a limit they are fetched in several runs.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.errors import DataError
from edgepipe.quantization.branches import lift
from edgepipe.quantization.changed_model import editable, open_changed
from edgepipe.quantization.observers import Observer, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    Feeds = Mapping[str, np.ndarray]

FETCHED_BYTES = 512_000_000  # of wanted tensors, in one run
PROBE = "edgepipe_size_of_"


def observe(
    model_path: Path,
    tensors: Mapping[str, Wanted],
    feeds: Iterable[Feeds],
    *,
    threads: int = 1,
    disabled_optimizers: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    fetched_bytes: int = FETCHED_BYTES,
) -> dict[str, Observer]:
    """An observer of each wanted tensor, after every sample of `feeds` (read once, in order) has run.

    Tensors that no sample reaches have `reached` False (`unreached` lists them): those in a branch of an If that none
    takes, in the body of a Loop or Scan, and names that the model does not have. Raises `DataError` naming the sample
    that does not run, or when there is none.
    """
    observers = {name: Observer(name, wanted) for name, wanted in tensors.items()}
    found = stream(
        model_path,
        list(tensors),
        feeds,
        threads=threads,
        disabled_optimizers=disabled_optimizers,
        progress=progress,
        fetched_bytes=fetched_bytes,
    )
    for name, values in found:
        observers[name].update(values)
    return observers


def stream(
    model_path: Path,
    tensors: Sequence[str],
    feeds: Iterable[Feeds],
    *,
    threads: int = 1,
    disabled_optimizers: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    fetched_bytes: int = FETCHED_BYTES,
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values) of each wanted tensor for one sample after the other; `observe` says the rest."""
    fetched = _Fetched(model_path, list(tensors), threads, disabled_optimizers, fetched_bytes)
    total = len(feeds) if isinstance(feeds, Sized) else 0
    number = 0
    for number, sample in enumerate(feeds, start=1):
        if progress:
            progress("calibrating", number - 1, total)
        for group in fetched.groups(sample, number):
            for name, values in _run(group, sample, number).items():
                yield fetched.lifted.get(name, name), values
        for name in fetched.inputs:
            yield name, sample[name]
    if number == 0:
        raise DataError("there are no calibration samples", where="calibration data", fix="give it samples")


def unreached(observers: Mapping[str, Observer]) -> tuple[str, ...]:
    """Names of tensors that no sample reached: what takes them has no range, and stays in float32."""
    return tuple(name for name, one in observers.items() if not one.reached)


@dataclass(frozen=True, slots=True)
class _Group:
    """Tensors that are fetched in one run."""

    names: tuple[str, ...]
    session: Any


class _Fetched:
    """The wanted tensors in groups of limited size, and a session for each group."""

    def __init__(self, path: Path, wanted: list[str], threads: int, disabled: Sequence[str], limit: int) -> None:
        self.path, self.threads, self.disabled, self.limit = path, threads, disabled, limit
        model = editable(path)
        graph, asked = model.graph, set(wanted)
        given = [name for node in graph.node for name in node.output]
        lifted = lift(model, asked.difference(given))
        self.lifted = {outer: name for name, outer in lifted.items()}
        given = [name for node in graph.node for name in node.output]  # in the graph's order
        self.names = [name for name in given if name in asked or name in self.lifted]
        self.inputs = [value.name for value in graph.input if value.name in asked]
        self._groups: list[_Group] = []
        self._safe = 0.0  # input bytes with which no group passes the limit

    def groups(self, sample: Feeds, number: int) -> list[_Group]:
        """Those that hold for this sample: sizes are looked at again when a sample is much larger than those before."""
        size = sum(value.nbytes for value in sample.values())
        if self.names and size > self._safe:
            parts, most = self._parts(sample, number)
            self._safe = size * max(1.0, (self.limit / max(most, 1)) ** 0.5)  # attention grows with the square of the length
            if parts != [group.names for group in self._groups]:
                self._groups = []  # the old sessions go before new ones come
                self._groups = [_Group(part, self._open(part)) for part in parts]
        return self._groups

    def _parts(self, sample: Feeds, number: int) -> tuple[list[tuple[str, ...]], int]:
        """The names in groups, and the bytes of the largest."""
        sizes = _run(_Group(tuple(PROBE + name for name in self.names), self._open_sizes()), sample, number)
        parts: list[list[str]] = [[]]
        used = [0]
        for name in self.names:
            size = 4 * int(sizes[PROBE + name])
            if parts[-1] and used[-1] + size > self.limit:
                parts.append([])
                used.append(0)
            parts[-1].append(name)
            used[-1] += size
        return [tuple(part) for part in parts], max(used)

    def _open(self, names: Sequence[str]) -> Any:
        import onnx

        model = self._lifted_model()
        present = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
        return self._session(model)

    def _open_sizes(self) -> Any:
        """A session that gives the number of values in each tensor instead of the values."""
        import onnx

        model = self._lifted_model()
        model.graph.node.extend(onnx.helper.make_node("Size", [name], [PROBE + name]) for name in self.names)
        model.graph.output.extend(onnx.ValueInfoProto(name=PROBE + name) for name in self.names)
        return self._session(model)

    def _lifted_model(self) -> Any:
        model = editable(self.path)
        lift(model, self.lifted.values())
        return model

    def _session(self, model: Any) -> Any:
        # The arena keeps the largest block of every size it ever gave out, so that memory would grow with unlike samples.
        return open_changed(model, self.path.parent, threads=self.threads, disabled_optimizers=self.disabled, basic=True, arena=False)


def _run(group: _Group, sample: Feeds, number: int) -> dict[str, np.ndarray]:
    import numpy as np

    taken = {value.name for value in group.session.get_inputs()}
    try:
        values = group.session.run(list(group.names), {name: value for name, value in sample.items() if name in taken})
    except Exception as error:  # onnxruntime's own kinds share no parent but this
        raise DataError(
            f"the model does not run on it: {str(error).splitlines()[0]}",
            where=f"calibration sample {number}",
            fix="give samples as the model takes them: every input, each of its type and shape",
        ) from None
    return {name: value for name, value in zip(group.names, values, strict=True) if isinstance(value, np.ndarray)}
