"""Project file and recipe: what a user writes in TOML, read into frozen models.

Precedence, highest first: command-line flag > `--set` > project file > recipe > profile > default.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from edgepipe.errors import UsageError, nearest
from edgepipe.parts import Parts, Stream
from edgepipe.toml import Table, located, parse, read_toml

PROJECT_FILE = "edgepipe.toml"
CACHE_SCHEME = "cache://"


class Budget(Table):
    """Limits that the build must hold. Ratios compare with the uncompressed float32 model on the same target."""

    max_accuracy_drop: float = Field(default=1.0, ge=0, description="points below the uncompressed model, paired, on test")
    accuracy_margin: float = Field(default=1.0, ge=0, description="how far the drop's 95 % bound may lie above the limit, points")
    max_size_ratio: float = Field(default=0.3, gt=0, description="component bytes over the float32 model's")
    max_size_bytes: int | None = Field(default=None, gt=0)
    max_latency_ratio: float = Field(default=1.0, gt=0, description="median latency over the float32 model's on the same target")
    max_latency_ms: float | None = Field(default=None, gt=0, description="median at the task's own input lengths, batch 1")
    max_memory_ratio: float = Field(default=0.25, gt=0, le=1, description="peak resident memory over the device's RAM")
    max_memory_bytes: int | None = Field(default=None, gt=0)
    min_parity_cosine: float = Field(default=0.999, ge=-1, le=1, description="outputs on target against a plain host session")
    max_parity_abs: float | None = Field(default=None, gt=0, description="largest absolute difference of those outputs")
    min_label_agreement: float = Field(
        default=0.99, ge=0, le=1, description="share of samples with the same label, on target and in a plain host session"
    )
    min_batch_agreement: float | None = Field(
        default=None, ge=0, le=1, description="share of samples whose label stays when batched or padded (default: reported only)"
    )

    @field_validator("max_size_bytes", "max_memory_bytes", mode="before")
    @classmethod
    def _bytes_with_unit(cls, value: object) -> object:
        return parse_bytes(value) if isinstance(value, str) else value


class Data(Table):
    """Where samples come from, and which columns hold what."""

    file: str | None = Field(default=None, description="one file for all four roles, split by a fixed seed")
    train: str | None = None
    calibration: str | None = None
    dev: str | None = None
    test: str | None = None
    unlabelled: str | None = Field(default=None, description="samples without labels, which recovery learns from through its teacher")
    text: str = Field(default="text", description="column with the text, or the first of a pair")
    text_pair: str | None = Field(default=None, description="column with the second text of a pair")
    label: str = Field(default="label", description="column with the label, tags or score")
    label_map: dict[str, str] = Field(default_factory=dict, description="label as in the data → label as in the model")
    preprocessor: str | None = Field(default=None, description="preprocessor_config.json, for images beside an ONNX file")
    encoding: str = "utf-8"
    max_length: int | None = Field(
        default=None, gt=0, description="tokens; longer inputs are cut (default: the model's limit, at most 512)"
    )
    allow_overlap: tuple[str, ...] = Field(default=(), description='pairs of splits that may share samples: ["train/calibration"]')
    near_duplicates: float = Field(default=0.8, ge=0, le=1, description="texts of two splits may not be this similar, 0.3 to 1; 0: any may")
    shared_passage: int = Field(default=50, ge=0, description="words in a row that texts of two splits may not share, from 8; 0: any may")

    @field_validator("near_duplicates")
    @classmethod
    def _similarity(cls, value: float) -> float:
        if 0 < value < 0.3:
            raise ValueError("below 0.3 most texts are alike; write 0 to compare none")
        return value

    @field_validator("shared_passage")
    @classmethod
    def _passage(cls, value: int) -> int:
        if 0 < value < 8:
            raise ValueError("a phrase of fewer than 8 words is no passage; write 0 to look for none")
        return value

    @field_validator("allow_overlap")
    @classmethod
    def _pairs_of_splits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pair in value:
            names = pair.split("/")
            if len(set(names)) != 2 or not set(names) <= {"train", "calibration", "dev", "test", "unlabelled"}:
                raise ValueError(f'"{pair}" is no pair of train, calibration, dev, test and unlabelled; write "train/calibration"')
        return value


class Task(Table):
    name: str
    labels: tuple[str, ...] = Field(default=(), description="label names in the order of the model's outputs, where its config names none")
    compare: Literal["auto", "argmax", "closeness"] = Field(default="auto", description="fidelity: what must agree")


class Project(Table):
    """`edgepipe.toml`, or `[tool.edgepipe]` in pyproject.toml. Paths are relative to the file."""

    name: str | None = Field(default=None, description="what reports call the model (default: its folder's name)")
    model: str | None = Field(default=None, description='folder, ONNX file, "cache://…" or "hf://org/name@revision"')
    adapters: tuple[str, ...] = Field(default=(), description="LoRA adapter folders, merged in this order")
    model_factory: str | None = Field(default=None, description="FILE.py:function that builds the torch module")
    teacher: str | None = Field(
        default=None, description="folder of another model that recovery learns from (default: the uncompressed model)"
    )
    profiles: tuple[str, ...] = ()
    task: Task | None = None
    data: Data = Data()
    budget: Budget = Budget()
    recipe: str | None = None
    out: str = "build"
    plugins: tuple[str, ...] = ()
    passes: dict[str, dict[str, Any]] = Field(default_factory=dict, description="[passes.NAME] options, over the recipe's")
    licences: dict[str, str] = Field(default_factory=dict, description="model, adapter, data → licence, for the model card")
    program: Literal["ocr"] | None = Field(default=None, description="what the [components] are together, instead of a model")
    components: dict[str, str] = Field(default_factory=dict, description="role → ONNX file: detector, classifier, recogniser")
    compress: tuple[str, ...] = Field(default=(), description="roles that passes run on (default: all)")
    characters: str | None = Field(
        default=None, description="file with the recogniser's characters, one a line (default: those in its metadata)"
    )
    stream: Stream = Field(default=Stream(), description="how a model with state is driven")

    @property
    def parts(self) -> Parts:
        """What is said of a program of several components, or with state."""
        return Parts(
            program=self.program, components=self.components, compress=self.compress, characters=self.characters, stream=self.stream
        )

    @field_validator("task", mode="before")
    @classmethod
    def _task_by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class Step(Table):
    """One pass of a recipe."""

    name: str = Field(alias="pass")
    on: tuple[str, ...] = Field(default=(), description="roles of the components it runs on, where there are several (default: all)")
    options: dict[str, Any] = Field(default_factory=dict)
    reason: str = Field(default="the recipe says so", description="why the pass is here; shown in plan, manifest and report")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Recipe(Table):
    """An ordered list of passes."""

    steps: tuple[Step, ...] = Field(alias="step", min_length=1)
    left_out: tuple[str, ...] = Field(default=(), description="what the planner did not choose, and why")
    tune: bool = Field(
        default=False, description="let the build choose by measurement how each layer is quantized; what it chose replaces those steps"
    )

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def find_project(start: Path) -> Path | None:
    """The project file that governs `start`: in it, or in the nearest folder above."""
    for folder in (start, *start.parents):
        if (folder / PROJECT_FILE).is_file():
            return folder / PROJECT_FILE
        pyproject = folder / "pyproject.toml"
        if pyproject.is_file() and _tool_table(pyproject) is not None:
            return pyproject
    return None


def _tool_table(pyproject: Path) -> dict[str, Any] | None:
    try:
        table = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {}).get("edgepipe")
    except (OSError, ValueError):  # somebody else's broken file is not ours to complain about
        return None
    return table if isinstance(table, dict) else None


def load_project(path: Path) -> Project:
    """Read a project file; every path in it becomes absolute."""
    prefix: tuple[str, ...] = ()
    data = read_toml(path)
    if path.name == "pyproject.toml":
        prefix = ("tool", "edgepipe")
        data = data.get("tool", {}).get("edgepipe", {})
    project = parse(Project, data, source=path, prefix=prefix)
    base = path.parent.resolve()
    splits = {
        key: resolve_path(value, base)
        for key in ("file", "train", "calibration", "dev", "test", "unlabelled", "preprocessor")
        if (value := getattr(project.data, key))
    }
    return project.model_copy(
        update={
            "model": resolve_path(project.model, base) if project.model else None,
            "components": {role: resolve_path(value, base) for role, value in project.components.items()},
            "characters": resolve_path(project.characters, base) if project.characters else None,
            "adapters": tuple(resolve_path(value, base) for value in project.adapters),
            "teacher": resolve_path(project.teacher, base) if project.teacher else None,
            "model_factory": resolve_path(project.model_factory, base) if project.model_factory else None,
            "profiles": tuple(resolve_path(v, base) if v.endswith(".toml") else v for v in project.profiles),
            "data": project.data.model_copy(update=splits),
            "recipe": resolve_path(project.recipe, base) if project.recipe else None,
            "out": resolve_path(project.out, base),
            "plugins": tuple(resolve_path(value, base) for value in project.plugins),
        }
    )


def pass_places(path: Path, passes: dict[str, dict[str, Any]]) -> dict[tuple[str, str], str]:
    """(pass, option) → `file:line` of the project file's [passes] options."""
    prefix = ("tool", "edgepipe") if path.name == "pyproject.toml" else ()
    return {(name, key): located(path, (*prefix, "passes", name, key)) for name, options in passes.items() for key in options}


def resolve_path(value: str, base: Path) -> str:
    """An absolute path: `cache://x` below EDGEPIPE_CACHE, others relative to `base`; hub names stay."""
    if value.startswith("hf://"):
        return value
    if value.startswith(CACHE_SCHEME):
        from edgepipe.store import cache_root

        return str(cache_root() / value.removeprefix(CACHE_SCHEME))
    return str((base / Path(value).expanduser()).absolute())


def load_recipe(path: Path) -> Recipe:
    return parse(Recipe, read_toml(path), source=path)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML that `load_recipe` reads back."""
    lines = ["tune = true\n"] if recipe.tune else []
    lines += ["left_out = [", *(f"  {toml_value(text)}," for text in recipe.left_out), "]\n"] if recipe.left_out else []
    for step in recipe.steps:
        lines += ["[[step]]", f"pass = {toml_value(step.name)}", f"reason = {toml_value(step.reason)}"]
        lines += [f"on = {toml_value(step.on)}"] if step.on else []
        if step.options:
            lines.append("[step.options]")
            lines += [f"{_toml_key(key)} = {toml_value(value)}" for key, value in step.options.items()]
        lines.append("")
    return "\n".join(lines)


def toml_value(value: object) -> str:
    import json

    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_key(str(key))} = {toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON allows in strings and TOML does not


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def parse_bytes(text: str) -> int:
    """`"20MB"`, `"16 MiB"`, `"1024"` → bytes (MB is 10^6)."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    number = text.strip().rstrip("BKMGIbkmgi")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = round(float(number) * units[unit])
        if size >= 0:
            return size
    except (ValueError, KeyError, OverflowError):
        pass
    raise ValueError(f'"{text}" is no size; write 20MB or 16MiB')


def parse_value(text: str) -> Any:
    """A value as TOML would read it; a bare word is a string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def with_budget(budget: Budget, settings: tuple[str, ...]) -> Budget:
    """`--budget KEY=VALUE` over a budget."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise UsageError(f'"{setting}" is not KEY=VALUE', where="--budget", fix="for example --budget max_size_bytes=20MB")
        if key.strip() not in Budget.model_fields:
            raise UsageError(f'unknown budget "{key.strip()}"', where="--budget", fix=nearest(key.strip(), Budget.model_fields))
        changes[key.strip()] = parse_value(value.strip())
    return parse(Budget, {**budget.model_dump(), **changes}, source="--budget")


def pass_settings(settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """`--set pass.option=value` as {pass: {option: value}}."""
    result: dict[str, dict[str, Any]] = {}
    for setting in settings:
        path, sign, value = setting.partition("=")
        name, dot, option = path.strip().partition(".")
        if not sign or not dot:
            raise UsageError(
                f'"{setting}" is not PASS.OPTION=VALUE', where="--set", fix="for example --set quantize-dynamic.per_channel=false"
            )
        result.setdefault(name, {})[option] = parse_value(value.strip())
    return result
