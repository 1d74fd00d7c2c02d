"""Every error edgepipe raises for a person, as one tree; each maps to an exit code.

    EdgepipeError                   1   a bug, when raised bare
    ├── UsageError                  2   command line, project file, recipe, profile
    ├── InputError                  3
    │   ├── ModelError                  the model, its adapter or its tokenizer
    │   └── DataError                   the samples
    ├── PassError                   4   a pass failed its checks, or a plugin raised
    ├── DeviceError                 5   a device or tool that cannot be reached
    ├── ResourceError               6   memory, disk or time ran out
    ├── OperatorError              15   the model has an operator that no runtime here knows: there is nothing to judge
    └── Interrupted               130

Budgets that break are no exceptions: they are verdicts, and `AXIS_EXIT_CODES` maps them.
"""

from __future__ import annotations

from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

AXIS_EXIT_CODES = {"accuracy": 10, "size": 11, "latency": 12, "memory": 13, "parity": 14, "operators": 15}
UNPROVEN_EXIT_CODE = 16


class EdgepipeError(Exception):
    """An error in three parts: what is wrong, where, and what to do about it."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  → {self.fix}" if self.fix else text

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments do not survive pickling otherwise
        return (_rebuild, (type(self), self.what, self.where, self.fix))

    def to_json(self) -> dict[str, object]:
        """The object `--json` prints on failure."""
        return {"error": {"code": self.exit_code, "what": self.what, "where": self.where, "fix": self.fix}}


def _rebuild(kind: type[EdgepipeError], what: str, where: str | None, fix: str | None) -> EdgepipeError:
    return kind(what, where=where, fix=fix)


class UsageError(EdgepipeError):
    exit_code = 2


class InputError(EdgepipeError):
    exit_code = 3


class ModelError(InputError):
    pass


class DataError(InputError):
    pass


class PassError(EdgepipeError):
    exit_code = 4


class DeviceError(EdgepipeError):
    exit_code = 5


class ResourceError(EdgepipeError):
    exit_code = 6


class OperatorError(EdgepipeError):
    exit_code = AXIS_EXIT_CODES["operators"]


class Interrupted(EdgepipeError):
    exit_code = 130


@contextmanager
def reading(kind: type[EdgepipeError]) -> Iterator[None]:
    """Turn a file that cannot be read into an error for a person."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise kind(f"cannot be read: {error.strerror}", where=str(error.filename), fix="check the path and its permissions") from None


def nearest(name: str, valid: Iterable[str]) -> str:
    """`did you mean "x"?`, or the valid names when none is near."""
    names = sorted(valid)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else "valid: " + ", ".join(names)
