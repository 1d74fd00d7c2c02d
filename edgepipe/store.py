"""The content-addressed store under `EDGEPIPE_CACHE`, and the only code that writes it.

    store/trees/<digest>/       an artifact laid out: artifact.json and its files
    store/results/<key>.json    what a pass or a validation gave, by cache key
    store/unfinished/<key>/     checkpoints of a pass that has not ended
    work/<pid>-<machine>-…/     scratch folders of running builds

Safe without locks: everything is written under a temporary name, fsynced and renamed, and two builds that
write the same name write the same bytes. What is read back is checked against its digest.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Artifact, FileRef, placed_files, sha256_file
from edgepipe.errors import ModelError, ResourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ABANDONED_S = 86400  # another machine's process cannot be asked after, but no scratch folder lies untouched for a day
UNFINISHED_S = 3600  # a tree is laid out in seconds; one that is this old belongs to a build that was killed


def cache_root() -> Path:
    """`EDGEPIPE_CACHE`, or the platform's user cache folder."""
    if named := os.environ.get("EDGEPIPE_CACHE"):
        return Path(named).expanduser().resolve()
    from platformdirs import user_cache_path

    return user_cache_path("edgepipe")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into an error for a person."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError("the disk is full", where=str(path), fix="free some space, or `edgepipe cache prune`") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise UsageError(f"cannot be written: {error.strerror}", where=str(path), fix="choose a folder you may write to") from None
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or none: temporary name, fsync, rename."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@dataclass(frozen=True, slots=True)
class Store:
    root: Path

    @classmethod
    def default(cls) -> Store:
        return cls(cache_root())

    def put(self, artifact: Artifact) -> Artifact:
        """Keep an artifact; the one returned has its files in the store."""
        if kept := self.get(artifact.digest):
            return kept
        tree = self.root / "store" / "trees" / artifact.digest
        self._lay_out(artifact, tree)
        return Artifact.from_json(artifact.to_json(), tree)

    def get(self, artifact_digest: str) -> Artifact | None:
        """The artifact of that digest, or None when it is not there whole and unchanged."""
        tree = self.root / "store" / "trees" / artifact_digest
        if not artifact_digest or not tree.is_dir():
            return None
        try:
            artifact = Artifact.from_json(json.loads((tree / "artifact.json").read_text(encoding="utf-8")), tree)
            whole = artifact.digest == artifact_digest and all(
                sha256_file(ref.location) == ref.sha256 for ref in placed_files(artifact).values()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError):
            whole = False
        if not whole:
            self._discard(tree)
            return None
        os.utime(tree)
        return artifact

    def put_result(self, key: str, result: Mapping[str, Any]) -> None:
        write_atomic(self._result_path(key), json.dumps(result, indent=1, sort_keys=True).encode())

    def get_result(self, key: str) -> dict[str, Any] | None:
        try:
            result = json.loads(self._result_path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        os.utime(self._result_path(key))
        return result if isinstance(result, dict) else None

    @contextmanager
    def workdir(self) -> Iterator[Path]:
        """A scratch folder on the store's disk; leftovers of killed builds go first."""
        parent = self.root / "work"
        with disk_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
        drop_leftovers(parent)
        with disk_errors(parent):
            folder = Path(tempfile.mkdtemp(dir=parent, prefix=scratch_prefix()))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def unfinished(self, key: str) -> Path:
        """Where a pass keeps what it needs to go on after it was killed."""
        return self.root / "store" / "unfinished" / key

    def finished(self, key: str) -> None:
        """The pass has ended: its checkpoints go."""
        shutil.rmtree(self.unfinished(key), ignore_errors=True)

    def keep_log(self, log: Path) -> Path:
        """Keep a failed run's log as `logs/last-failure.log`; gives where."""
        kept = self.root / "logs" / "last-failure.log"
        write_atomic(kept, log.read_bytes())
        return kept

    def entries(self) -> list[dict[str, Any]]:
        """Artifacts kept, least recently used first: digest, bytes, age in seconds."""
        found = []
        for tree in (self.root / "store" / "trees").glob("*"):
            if tree.name.startswith("."):
                continue
            size = sum(p.stat().st_size for p in tree.rglob("*") if p.is_file())
            found.append({"digest": tree.name, "size_bytes": size, "age_s": round(time.time() - tree.stat().st_mtime)})
        return sorted(found, key=lambda entry: -entry["age_s"])

    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in (self.root / "store").rglob("*") if path.is_file())

    def prune(self, max_size_bytes: int) -> int:
        """Drop artifacts, then results, least recently used first, until the store is within bounds; gives bytes freed.

        What a build that is running has used stays.
        """
        before = self.size_bytes()
        self._drop_unfinished()
        spared = {entry["digest"] for entry in self.entries() if self._in_use(entry["digest"])}
        for entry in self.entries():
            if self.size_bytes() <= max_size_bytes:
                break
            if entry["digest"] in spared:
                continue
            shutil.rmtree(self.root / "store" / "trees" / entry["digest"], ignore_errors=True)
            self._drop_dangling_results()
        for path in sorted((self.root / "store" / "results").glob("*.json"), key=lambda path: path.stat().st_mtime):
            if self.size_bytes() <= max_size_bytes:
                break
            path.unlink(missing_ok=True)
        return before - self.size_bytes()

    def _in_use(self, artifact_digest: str) -> bool:
        """Whether the artifact was used after the oldest build that is running began."""
        import psutil

        pids = {int(_owner(folder.name)[0]) for folder in (self.root / "work").glob("*") if _running(folder.name)}
        begun = [psutil.Process(pid).create_time() for pid in pids if psutil.pid_exists(pid)]
        return bool(begun) and (self.root / "store" / "trees" / artifact_digest).stat().st_mtime >= min(begun)

    def _result_path(self, key: str) -> Path:
        return self.root / "store" / "results" / f"{key}.json"

    def _lay_out(self, artifact: Artifact, tree: Path) -> None:
        with disk_errors(tree):
            tree.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(dir=tree.parent, prefix=".tmp-"))
            try:
                for place, ref in placed_files(artifact).items():
                    target = building / place
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._place(ref, target)
                write_atomic(building / "artifact.json", json.dumps(artifact.to_json(), indent=1, sort_keys=True).encode())
                os.rename(building, tree)
            except OSError as error:
                shutil.rmtree(building, ignore_errors=True)
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another build was first: same bytes
                    raise

    def _place(self, ref: FileRef, target: Path) -> None:
        """A file of its own in the tree: onnx refuses external data that has a second hard link."""
        if ref.location.is_relative_to(self.root / "work"):  # ours, and about to go: no second copy
            os.replace(ref.location, target)
        else:
            shutil.copyfile(ref.location, target)
        with target.open("rb") as written:
            os.fsync(written.fileno())
        target.chmod(0o444)  # a pass that wrote in place would change what others read

    def _discard(self, tree: Path) -> None:
        """Take a damaged tree away in one step, so that no build sees half of it."""
        aside = Path(tempfile.mkdtemp(dir=tree.parent, prefix=".tmp-"))
        try:
            tree.rename(aside / "damaged")
        except OSError:  # another build was first
            pass
        shutil.rmtree(aside, ignore_errors=True)

    def _drop_unfinished(self) -> None:
        for folder in (self.root / "store" / "unfinished").glob("*"):
            if time.time() - max((p.stat().st_mtime for p in folder.rglob("*")), default=0.0) > ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
        for tree in (self.root / "store" / "trees").glob(".tmp-*"):
            if time.time() - tree.stat().st_mtime > UNFINISHED_S:
                shutil.rmtree(tree, ignore_errors=True)

    def _drop_dangling_results(self) -> None:
        for path in (self.root / "store" / "results").glob("*.json"):
            try:
                kept = json.loads(path.read_text(encoding="utf-8")).get("artifact")
            except (OSError, ValueError, AttributeError):
                kept = "damaged"
            if kept and not (self.root / "store" / "trees" / kept).is_dir():
                path.unlink(missing_ok=True)


def scratch_prefix() -> str:
    """`<pid>-<machine>-`: whose a scratch folder is. Machines may share a cache, and number their processes alike."""
    return f"{os.getpid()}-{_machine()}-"


def drop_leftovers(folder: Path, prefix: str = "") -> None:
    """Delete what killed builds left in `folder`: folders named `prefix` + `scratch_prefix()` + … of processes that are gone."""
    for old in folder.iterdir():
        name = old.name.removeprefix(prefix)
        pid, machine = _owner(name)
        if not old.name.startswith(prefix) or not pid.isdigit():
            continue
        gone = not _running(name) if machine == _machine() else time.time() - old.stat().st_mtime > ABANDONED_S
        if gone:
            shutil.rmtree(old, ignore_errors=True)


def _machine() -> str:
    import platform

    return re.sub(r"\W", "", platform.node()) or "here"


def _owner(name: str) -> tuple[str, str]:
    """(process, machine) of a scratch folder's name."""
    pid, machine, *_ = [*name.split("-"), "", ""]
    return pid, machine


def _running(name: str) -> bool:
    import psutil

    pid, machine = _owner(name)
    return machine == _machine() and pid.isdigit() and psutil.pid_exists(int(pid))
