"""Runs the command line as a user does: a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

COMMAND = (sys.executable, "-m", "edgepipe")


@dataclass(frozen=True)
class Project:
    """A folder with a model and, mostly, an edgepipe.toml, and the cache its commands use."""

    folder: Path
    cache: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
        """`edgepipe ARGUMENTS` in the folder."""
        return self.execute([*COMMAND, *map(str, arguments)], **settings)

    def execute(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, before: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Any command, with the environment `run` has. `before` runs in the child just before it starts."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
            timeout=900, check=False, preexec_fn=before,
        )  # fmt: skip

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # `edgepipe` and `python` are these
        return {**os.environ, "PATH": path, "EDGEPIPE_CACHE": str(self.cache), "COLUMNS": "200", **self.variables, **(more or {})}

    def passes(self, *arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run what must succeed."""
        done = self.run(*arguments, **settings)
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    def refuses(self, *arguments: str | Path, code: int, says: Sequence[str] = (), **settings: Any) -> str:
        """Run what must fail: this exit code, one message that holds all of `says`, and nothing left behind."""
        before = listing(self.folder)
        done = self.run(*arguments, **settings)
        assert_one_message(done, code, says)
        assert listing(self.folder) == before, "something was left behind"
        assert not leftovers(self.cache)
        return done.stderr

    def with_cache(self, cache: Path) -> Project:
        return Project(self.folder, cache, self.variables)

    def toml(self) -> Path:
        return self.folder / "edgepipe.toml"


def assert_one_message(done: subprocess.CompletedProcess[str], code: int, says: Sequence[str] = ()) -> None:
    assert done.returncode == code, f"exit code {done.returncode}, not {code}\n{done.stderr}{done.stdout}"
    assert "Traceback" not in done.stderr and "a bug in edgepipe" not in done.stderr, done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1, done.stderr
    for words in says:
        assert words in done.stderr, f"{words!r} is not in: {done.stderr}"
    assert done.stdout == ""


def listing(folder: Path) -> dict[str, int]:
    """Every file below a folder with its size, and every folder with -1; link targets are not followed."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size if path.is_file() else -1 for path in sorted(folder.rglob("*"))}


def leftovers(cache: Path) -> list[str]:
    """Scratch folders and half-written files in a cache."""
    work = [path.name for path in (cache / "work").glob("*")]
    return work + [path.as_posix() for name in (".tmp-*", "*.part") for path in (cache / "store").rglob(name)]


def manifest_of(bundle: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def copy(folder: Path, target: Path) -> Path:
    return shutil.copytree(folder, target, symlinks=True)


def own_devices(emulation_cache: Path, folder: Path) -> Path:
    """A cache at `folder` with the emulation that is set up in another, and nothing else of it."""
    (folder / "devices").mkdir(parents=True)
    for home in (emulation_cache / "devices").iterdir():
        if (home / "setup.json").is_file():
            (folder / "devices" / home.name).symlink_to(home)
    return folder
