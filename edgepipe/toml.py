"""The one TOML loader: text → plain data → pydantic model, with errors that name file, line and key."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from edgepipe.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

M = TypeVar("M", bound=BaseModel)

FIXES = {
    "tuple_type": 'write a list: ["…"]',
    "bool_parsing": "write true or false",
    "dict_type": "write a table",
    "value_error": "see docs/configuration.md for what it takes",
}
_HEADER = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*=""")
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""")


class Table(BaseModel):
    """Base of every table that a user writes: unknown keys refused, values frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; a missing, unreadable or malformed one is a `UsageError` with its line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path), fix="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path), fix="it must be a UTF-8 text file") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        where = f"{path}:{line.group(1)}" if line else f"{path}:{text.count(chr(10)) + 1}"
        raise UsageError(f"not valid TOML: {error}", where=where, fix="mend the syntax at that line") from None


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Line number (from 1) of every key and table header; entries of `[[x]]` have their index in the path."""
    lines: dict[tuple[str, ...], int] = {}
    counts: dict[tuple[str, ...], int] = {}  # of arrays of tables: index of the entry we are in
    table: tuple[str, ...] = ()
    open_value: list[str] = []  # lines of a value that goes on: a multi-line string or array
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines breaks at U+2028 too, which TOML does not
        if open_value:
            open_value.append(line)
            if _complete(open_value):
                open_value = []
        elif header := _HEADER.match(line):
            table = _entry(_parts(header.group(2)), counts)
            if header.group(1) == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, str(counts[table]))
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_parts(key.group(1))), number)
            open_value = [] if _complete([line]) else [line]
    return lines


def _entry(path: tuple[str, ...], counts: Mapping[tuple[str, ...], int]) -> tuple[str, ...]:
    """The path with the index of the entry that `[x.y]` belongs to where `[[x]]` is an array."""
    found: tuple[str, ...] = ()
    for part in path[:-1]:
        found = (*found, part)
        if found in counts:
            found = (*found, str(counts[found]))
    return (*found, path[-1])


def _complete(lines: list[str]) -> bool:
    try:
        tomllib.loads("\n".join(lines) + "\n")
    except tomllib.TOMLDecodeError:
        return False
    return True


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(a or b or c for a, b, c in _PART.findall(dotted))


def parse(
    model: type[M], data: Mapping[str, Any], *, source: Path | str | Callable[[tuple[str, ...]], str], prefix: tuple[str, ...] = ()
) -> M:
    """Validate `data` against `model`.

    `source` is the file the data came from (its lines are looked up), as a string the flag, or, where each key may
    come from elsewhere, what gives a key's place; `prefix` is where in the file the data stands. Raises `UsageError`
    naming file, line, key and the nearest valid key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors()  # a misspelt key is why the right one is missing, so it is told of first
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        loc = tuple(str(part) for part in first["loc"])
        where = source if isinstance(source, str) else source(loc) if callable(source) else located(source, prefix + loc)
        what, fix = _explain(model, first, loc, prefix)
    raise UsageError(what, where=where, fix=fix)


def located(path: Path, loc: tuple[str, ...]) -> str:
    """`file:line` of a key, or of the nearest table above it."""
    try:
        lines = key_lines(path.read_text(encoding="utf-8"))
    except OSError:
        return str(path)
    for end in range(len(loc), 0, -1):
        if loc[:end] in lines:
            return f"{path}:{lines[loc[:end]]}"
    return str(path)


def _explain(model: type[BaseModel], error: Any, loc: tuple[str, ...], prefix: tuple[str, ...]) -> tuple[str, str | None]:
    key, table = loc[-1] if loc else "", ".".join(prefix + loc[:-1])
    place = f" in [{table}]" if table else ""
    if error["type"] == "extra_forbidden":
        return f'unknown key "{key}"{place}', nearest(key, _keys_at(model, loc[:-1]))
    if error["type"] == "missing":
        return f'missing key "{key}"{place}', f'add "{key} = …"'
    message = error["msg"].removeprefix("Value error, ")
    if not loc:  # a rule over the whole table, which its own message explains
        return f"{message}{place}", None
    shown = repr(error["input"])
    return f'"{key}"{place}: {message} (it is {shown[:80]})', FIXES.get(error["type"], "give it a value of that kind")


def _keys_at(model: type[BaseModel], loc: tuple[str, ...]) -> list[str]:
    """The keys that the model found by walking `loc` allows."""
    current: Any = model
    for part in loc:
        fields = getattr(current, "model_fields", {})
        by_name = {(field.alias or name): field.annotation for name, field in fields.items()}
        if part in by_name:
            current = _first_model(by_name[part])
    return [(field.alias or name) for name, field in getattr(current, "model_fields", {}).items()]


def _first_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if found := _first_model(inner):
            return found
    return None
