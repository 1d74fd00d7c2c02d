"""What goes to a device: only what is missing, from where it was cut off, checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from edgepipe.artifact import Artifact, sha256_file
from edgepipe.errors import DeviceError, ResourceError
from edgepipe.runners import remote, runner_for
from edgepipe.runners.ssh import SshRunner
from tests.remote.board import Board, changed_board, profile


def cut_after(runner: SshRunner, chunks: int, cut: Any) -> list[int]:
    """Have the way cut after so many chunks; gives the offsets that were sent."""
    sent: list[int] = []
    send = runner._control.send

    def counted(do: str, data: bytes = b"", **more: Any) -> dict[str, Any]:
        if do == "put":
            if len(sent) == chunks:
                cut()
            sent.append(more["offset"])
        return send(do, data, **more)

    runner._control.send = counted  # type: ignore[method-assign]
    return sent


def test_push_that_was_cut_goes_on_where_it_was(device: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1 << 16)
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20))
    sha256 = sha256_file(big)
    first = runner_for(profile())
    assert isinstance(first, SshRunner)
    cut_after(first, 4, lambda: first._control._process.stdin.close())  # type: ignore[union-attr]
    with pytest.raises((DeviceError, ValueError)):
        first._tree("big", {"big": big})
    first.close()
    assert (device.agent / "files" / f"{sha256}.part").stat().st_size == 4 << 16

    second = runner_for(profile())
    assert isinstance(second, SshRunner)
    sent = cut_after(second, 10**9, lambda: None)
    folder = second._tree("big", {"big": big})

    assert sent == [offset << 16 for offset in range(4, 16)]
    assert (folder / "big").read_bytes() == big.read_bytes()
    second.close()
    assert device.files() == []


def test_part_of_another_file_is_sent_anew(device: Board, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"right" * 1000)
    (device.agent / "files").mkdir(parents=True)
    (device.agent / "files" / f"{sha256_file(big)}.part").write_bytes(b"wrong" * 500)
    runner = runner_for(profile())
    assert isinstance(runner, SshRunner)

    assert (runner._tree("big", {"big": big}) / "big").read_bytes() == big.read_bytes()
    runner.close()


def test_kept_file_that_was_tampered_with_is_sent_anew(device: Board, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"right" * 1000)
    (device.agent / "files").mkdir(parents=True)
    (device.agent / "files" / sha256_file(big)).write_bytes(b"wrong" * 1000)
    runner = runner_for(profile())
    assert isinstance(runner, SshRunner)

    assert (runner._tree("big", {"big": big}) / "big").read_bytes() == big.read_bytes()
    runner.close()


def test_too_little_room_over_there_is_told_before_anything_is_sent(
    device: Board, stored: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_board(monkeypatch, "shutil.disk_usage(self.base).free", "100")

    with pytest.raises(ResourceError, match=r"disk is full: .* bytes are to go there, and 100 are free"):
        runner_for(profile())
    assert device.files() == []


def test_disk_that_fills_up_is_told(device: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    changed_board(monkeypatch, "handle.write(data)", "raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))")

    with pytest.raises(ResourceError, match=r"disk is full .*No space left"):
        runner_for(profile())
    assert device.files() == []


def test_interrupted_push_keeps_what_came(device: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1000)
    big = tmp_path / "big"
    big.write_bytes(b"right" * 1000)
    runner = runner_for(profile())
    assert isinstance(runner, SshRunner)

    def interrupt() -> None:
        raise KeyboardInterrupt

    cut_after(runner, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner._tree("big", {"big": big})
    runner.close()

    assert (device.agent / "files" / f"{sha256_file(big)}.part").stat().st_size == 2000


def test_pushed_files_stay_when_asked_for(device: Board, stored: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_KEEP_ON_DEVICE", "1")
    runner = runner_for(profile())
    runner.push(stored)
    runner.close()

    kept = {path.name for path in (device.agent / "files").iterdir()}
    assert stored.model.files[0].sha256 in kept
    assert not (device.agent / "run").exists()


def test_wheels_of_a_folder_serve_a_device_without_internet(
    device: Board, stored: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "house", "onnxruntime", "9.9.9", "VALUE = 9")
    write_wheel(tmp_path / "house", "numpy", "9.9.9", "", tag="cp27-cp27m-win32")
    monkeypatch.setenv("EDGEPIPE_WHEELHOUSE", str(tmp_path / "house"))
    runner = runner_for(profile(runtime__version="9.9.9"))
    assert isinstance(runner, SshRunner)

    runner.push(stored)

    assert (device.agent / "run" / "site" / "onnxruntime.py").read_text() == "VALUE = 9"
    assert not (device.agent / "run" / "site" / "numpy.py").exists()
    assert runner.proof("accuracy").doubt == ""
    runner.close()


def write_wheel(folder: Path, name: str, version: str, text: str, tag: str = "py3-none-any") -> None:
    import zipfile

    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
        archive.writestr(f"{name}.py", text)
