"""Components and artifacts: what a pass takes and gives, as immutable values with a content digest."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

Format = Literal["torch", "onnx", "peft"]


def sha256_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8. Every digest is taken over this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: object) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


@dataclass(frozen=True, slots=True)
class FileRef:
    """One file by relative POSIX path; `root` (where it lies now) is no part of its identity."""

    path: str
    sha256: str
    bytes: int
    root: Path = field(compare=False, repr=False)

    @classmethod
    def of(cls, root: Path, path: str) -> FileRef:
        full = root / path
        return cls(path, sha256_file(full), full.stat().st_size, root)

    @property
    def location(self) -> Path:
        return self.root / self.path

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "sha256": self.sha256, "bytes": self.bytes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], root: Path) -> FileRef:
        return cls(safe_relative(data["path"]), data["sha256"], data["bytes"], root)


def safe_relative(path: str) -> str:
    """`path` again, when it stays inside its folder; `ModelError` when it is absolute or climbs out."""
    parts = PurePosixPath(path.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in path:
        raise ModelError(f'the path "{path}" leaves the model folder', where=path, fix="files of a model lie inside its folder")
    return path


def files_in(root: Path) -> tuple[FileRef, ...]:
    """Every file below `root`, sorted by path."""
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    return tuple(FileRef.of(root, path) for path in paths)


@dataclass(frozen=True, slots=True)
class Component:
    """One model: its format, its files (the first is opened), signature, carried state, parameter count.

    `signature` is {"inputs": [{name, dtype, shape}], "outputs": […]} with symbolic dimensions as strings.
    `state` is [{input, output, initial, grows_along}] for models that carry state from step to step.
    """

    format: Format
    files: tuple[FileRef, ...]
    signature: Mapping[str, Any]
    parameters: int
    state: tuple[Mapping[str, Any], ...] = ()

    @property
    def folder(self) -> Path:
        return self.files[0].root

    @property
    def main_file(self) -> Path:
        return self.files[0].location

    @property
    def size_bytes(self) -> int:
        return sum(ref.bytes for ref in self.files)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "files": [ref.to_json() for ref in self.files],
            "signature": dict(self.signature),
            "parameters": self.parameters,
            "state": [dict(entry) for entry in self.state],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], root: Path) -> Component:
        files = tuple(FileRef.from_json(entry, root) for entry in data["files"])
        return cls(data["format"], files, data["signature"], data["parameters"], tuple(data["state"]))


@dataclass(frozen=True, slots=True)
class Artifact:
    """An immutable set of components by role, the assets they need, and the program that drives them."""

    components: Mapping[str, Component]
    assets: tuple[FileRef, ...]
    program: Mapping[str, Any]

    @property
    def model(self) -> Component:
        return self.components["model"]

    @property
    def root(self) -> Path:
        """The folder of an artifact in the store or a bundle, which holds one folder a component."""
        return next(iter(self.components.values())).folder.parent

    @property
    def roles(self) -> tuple[str, ...]:
        """The components that the program drives, in the order it does."""
        return tuple(stage["component"] for stage in self.program.get("stages") or (self.program,))

    @property
    def digest(self) -> str:
        return digest(self.to_json())

    def asset(self, path: str) -> FileRef | None:
        return next((ref for ref in self.assets if ref.path == path), None)

    def with_component(self, role: str, component: Component, *, drop: tuple[str, ...] = ()) -> Artifact:
        """The same artifact with one component put in place of what stood there, and the roles in `drop` gone."""
        kept = {name: old for name, old in self.components.items() if name not in drop}
        return replace(self, components={**kept, role: component})

    def with_program(self, **changes: Any) -> Artifact:
        return replace(self, program={**self.program, **changes})

    def with_assets(self, assets: tuple[FileRef, ...]) -> Artifact:
        names = {ref.path for ref in assets}
        return replace(self, assets=(*(ref for ref in self.assets if ref.path not in names), *assets))

    def to_json(self) -> dict[str, Any]:
        return {
            "components": {role: component.to_json() for role, component in sorted(self.components.items())},
            "assets": [ref.to_json() for ref in sorted(self.assets, key=lambda ref: ref.path)],
            "program": dict(self.program),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], root: Path) -> Artifact:
        """Read back an artifact whose files lie under `root` as `<role>/<path>` and `assets/<path>`.

        Raises `ModelError` for roles and paths that would lead out of `root`.
        """
        for role in data["components"]:
            if not re.fullmatch("[a-z][a-z0-9_]*", role) or role == "assets":
                raise ModelError(
                    f'"{role}" is no role of a component', where=str(root), fix="take the artifact from where it was built again"
                )
        stages = data["program"].get("stages") or (data["program"],)
        if any(stage.get("component", "model") not in data["components"] for stage in stages):
            raise ModelError(
                "the program drives a component that is not there", where=str(root), fix="take the artifact from where it was built again"
            )
        return cls(
            {role: Component.from_json(entry, root / role) for role, entry in data["components"].items()},
            tuple(FileRef.from_json(entry, root / "assets") for entry in data["assets"]),
            data["program"],
        )


def placed_files(artifact: Artifact) -> dict[str, FileRef]:
    """Every file of the artifact by the path it has in a store folder or bundle."""
    placed = {f"assets/{ref.path}": ref for ref in artifact.assets}
    for role, component in artifact.components.items():
        placed |= {f"{role}/{ref.path}": ref for ref in component.files}
    return placed
