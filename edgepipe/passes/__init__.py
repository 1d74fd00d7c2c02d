"""The registry of passes. A new pass is a new file here and a line in `BUILT_IN`; nothing else changes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgepipe.errors import PassError, UsageError, nearest
from edgepipe.importing import import_file
from edgepipe.toml import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import ModuleType

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.data import Split

    PassFunction = Callable[[Artifact, Any, Context], Artifact]

BUILT_IN = (
    "merge_lora",
    "prune_layers",
    "prune_heads",
    "prune_ffn",
    "prune_channels",
    "prune_width",
    "factorize",
    "prune_vocab",
    "recover",
    "quantization_aware_training",
    "sparsify",
    "export_onnx",
    "fix_inputs",
    "optimize_graph",
    "quantize_static",
    "quantize_dynamic",
    "quantize_weights",
    "convert_float16",
    "map_weights",
)


class PassOptions(Table):
    """Base of every options model: frozen, unknown keys refused."""

    @property
    def needed_data(self) -> tuple[Split, ...]:
        """Splits that the pass cannot do without as these options have it, of those it declares as optional."""
        return ()


@dataclass(frozen=True, slots=True)
class Check:
    """A condition that must hold after a pass: a name in `edgepipe.checks` and its limit (None: reported only)."""

    name: str
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class PassSpec:
    """One registered pass: what it takes and gives by role, where it may stand, what it uses, what must hold after."""

    name: str
    function: PassFunction
    options: type[PassOptions]
    takes: Mapping[str, str]
    gives: Mapping[str, str]
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()
    data: tuple[Split, ...] = ()
    optional_data: tuple[Split, ...] = ()  # used where it is given
    checks: tuple[Check, ...] = ()
    libraries: tuple[str, ...] = ()  # whose versions are part of the cache key
    teacher: bool = False  # learns from the uncompressed model
    baseline: bool = False  # its step also makes the float32 model that the result is compared with
    source: str = field(default="", compare=False)

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n\n")[0].replace("\n", " ")


_REGISTRY: dict[str, PassSpec] = {}


def register_pass(
    name: str,
    *,
    takes: Mapping[str, str],
    gives: Mapping[str, str],
    options: type[PassOptions] = PassOptions,
    after: tuple[str, ...] = (),
    before: tuple[str, ...] = (),
    facts: tuple[str, ...] = (),
    costs: tuple[str, ...] = (),
    data: tuple[Split, ...] = (),
    optional_data: tuple[Split, ...] = (),
    checks: tuple[Check, ...] = (Check("loads"),),
    libraries: tuple[str, ...] = ("onnx", "onnxruntime"),
    teacher: bool = False,
    baseline: bool = False,
) -> Callable[[PassFunction], PassFunction]:
    """Register a pass: `function(artifact, options, ctx) -> artifact`, no base class.

    `takes` and `gives` map roles to formats ({"model": "onnx"}); `after`/`before` name passes it must follow or
    precede when both are in a recipe; `checks` are run by the pipeline on what it returns; `teacher` passes find the
    uncompressed model in their context; `baseline` passes also make
    the float32 model the result is compared with. Raises `UsageError` for a name that is taken.
    """

    def register(function: PassFunction) -> PassFunction:
        where = inspect.getsourcefile(function) or function.__module__
        other = _REGISTRY.get(name)
        if other is not None and other.function.__module__ != function.__module__:
            raise UsageError(f'there is a pass named "{name}" already', where=where, fix="choose another name")
        if not (isinstance(options, type) and issubclass(options, PassOptions)):
            raise UsageError(f'the options of "{name}" are no edgepipe.PassOptions', where=where, fix="derive a class from it")
        _REGISTRY[name] = PassSpec(
            name,
            function,
            options,
            dict(takes),
            dict(gives),
            after,
            before,
            facts,
            costs,
            data,
            optional_data,
            checks,
            libraries,
            teacher,
            baseline,
            source_of(function),
        )
        return function

    return register


def source_of(defined: Any) -> str:
    """The text of the module that defines a function or class; of one typed at a prompt, what Python compiled of it."""
    try:
        return inspect.getsource(inspect.getmodule(defined) or defined)
    except (OSError, TypeError):
        code = getattr(defined, "__code__", None)
        return code.co_code.hex() + repr(code.co_consts) if code else repr(defined)


def passes() -> dict[str, PassSpec]:
    """Every pass by name: built in, of installed packages, of loaded plugins."""
    from importlib.metadata import entry_points

    _load_built_in()
    for point in entry_points(group="edgepipe.passes"):
        if point.name not in _REGISTRY:
            try:
                point.load()
            except (Exception, SystemExit) as error:
                raise PassError(
                    f'the installed pass "{point.name}" does not load: {type(error).__name__}: {error}',
                    where=point.value,
                    fix="mend or uninstall its package",
                ) from error
    return dict(_REGISTRY)


def _load_built_in() -> None:
    for module in BUILT_IN:
        import_module(f"edgepipe.passes.{module}")


def get_pass(name: str) -> PassSpec:
    known = passes()
    if name not in known:
        raise UsageError(f'unknown pass "{name}"', where="recipe", fix=nearest(name, known))
    return known[name]


def load_plugin(path: Path) -> ModuleType:
    """Import a local file that registers passes. `PassError` when it raises."""
    if not path.is_file():
        raise UsageError("no such plugin file", where=str(path), fix="check --plugin")
    if path.suffix != ".py":
        raise UsageError("a plugin is a Python file", where=str(path), fix="name a .py file")
    _load_built_in()  # first, so that it is the plugin that is told of a name that is taken
    try:
        return import_file(path, f"edgepipe_plugin_{path.stem}")
    except (Exception, SystemExit) as error:
        raise PassError(
            f"the plugin does not load: {type(error).__name__}: {error}", where=str(path), fix="run it by itself to see the traceback"
        ) from error
