"""Setting a device's stand-in up: pinned, checked, resumed, and whole or not there. The tools are small scripts here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgepipe import device_setup, emulation
from edgepipe.device_setup import set_up, set_up_profile
from edgepipe.emulation import folder_of, is_intact, is_set_up, lock_digest
from edgepipe.errors import DeviceError, EdgepipeError, ResourceError, UsageError
from edgepipe.profile import host_profile, load_profile
from edgepipe.progress import Silent

APT_GET = """\
#!/bin/sh
echo "apt-get $*" >> "$ARCHIVE/calls"
[ -e "$ARCHIVE/offline" ] && { echo "E: Failed to fetch http://deb.example/ Could not resolve" >&2; exit 100; }
[ -e "$ARCHIVE/unread" ] && echo "W: Failed to fetch http://deb.example/ Could not resolve" >&2  # and yet it succeeds
case "$*" in *" update") exit 0;; esac
for word; do case "$word" in
  *=*) for found in "$ARCHIVE/${word%%=*}_${word#*=}"_*.deb; do [ -e "$found" ] && cp "$found" .; done;;
  *) for found in "$ARCHIVE/${word}"_*.deb; do [ -e "$found" ] && cp "$found" .; done;;
esac; done; true
"""
APT_CACHE = """\
#!/bin/sh
[ -e "$ARCHIVE/unread" ] && exit 0
for found in "$ARCHIVE"/*.deb; do
  name=$(basename "$found" .deb); rest=${name#*_}
  echo " ${name%%_*} | ${rest%%_*} | http://deb.example bookworm/main"
done
"""
DPKG = '#!/bin/sh\nmkdir -p "$3" && exec tar -xf "$2" -C "$3"\n'
FULL = '#!/bin/sh\necho "dpkg-deb: error: failed to write: No space left on device" >&2; exit 2\n'


def deb(folder: Path, name: str, version: str, arch: str, text: str = "program") -> Path:
    """A stand-in for a package: a tar archive with one file."""
    path = folder / f"{name}_{version}_{arch}.deb"
    with tarfile.open(path, "w") as archive:
        data = f"{text} of {name} {version}".encode()
        entry = tarfile.TarInfo(f"usr/bin/{name}")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Archive:
    """A package archive of a few small packages, and the tools that fetch from it."""

    folder: Path
    bin: Path

    def tool(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def calls(self) -> list[str]:
        """What apt-get was asked, by its last words."""
        log = self.folder / "calls"
        return [line.split("/dev/null")[-1] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """Two parts with a package or two each, in a cache and with lock files of this test's own."""
    made = Archive(tmp_path / "archive", tmp_path / "bin")
    made.folder.mkdir()
    made.bin.mkdir()
    for name, script in (("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("dpkg", DPKG)):
        made.tool(name, script)
    pinned = {
        "emulator": [deb(made.folder, "qemu", "7.2", "amd64"), deb(made.folder, "glib", "2.74", "amd64")],
        "arm64": [deb(made.folder, "python", "3.11", "arm64")],
    }
    wheel = made.folder / "runtime-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("runtime/__init__.py", "")
    lock = {
        part: {path.name.split("_")[0]: {"version": path.name.split("_")[1], "sha256": sha256(path)} for path in paths}
        for part, paths in pinned.items()
    }
    folder = tmp_path / "devices" / "emulation"
    folder.mkdir(parents=True)
    (folder / emulation.LOCK).write_text(json.dumps(lock))
    (folder / emulation.WHEELS).write_text(f"runtime==1.0 --hash=sha256:{sha256(wheel)}\n")
    (folder / "packages.toml").write_text('release = "bookworm"\n')
    (folder / "cpus.toml").write_text("")
    script = f"import shutil, sys; shutil.copy({str(wheel)!r}, sys.argv[1])"
    monkeypatch.setattr(device_setup, "wheel_command", lambda folder, wanted: [sys.executable, "-c", script, str(folder)])
    for module in (device_setup, emulation):
        monkeypatch.setattr(module, "resource", lambda name: tmp_path / name)
    monkeypatch.setenv("PATH", f"{made.bin}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ARCHIVE", str(made.folder))
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "cache"))
    lock_digest.cache_clear()
    is_intact.cache_clear()
    yield made
    lock_digest.cache_clear()
    is_intact.cache_clear()


def refused(part: str = "emulator") -> EdgepipeError:
    """The error of a set-up that fails; whatever it is, nothing half-made is left and nothing counts as set up."""
    with pytest.raises(EdgepipeError) as caught:
        set_up(part, Silent())
    assert_nothing_half_made(part)
    return caught.value


def assert_nothing_half_made(part: str) -> None:
    devices = folder_of(part).parent
    assert not is_set_up(part)
    assert [path.name for path in devices.glob("*") if path.name != "downloads"] == []


def record(part: str) -> dict[str, object]:
    return dict(json.loads((folder_of(part) / "setup.json").read_text()))


def test_part_is_fetched_checked_and_unpacked_once(archive: Archive) -> None:
    home = set_up("emulator", Silent())

    assert (home / "usr" / "bin" / "qemu").read_text() == "program of qemu 7.2"
    assert is_set_up("emulator")
    assert record("emulator")["packages"] == ["glib_2.74_amd64.deb", "qemu_7.2_amd64.deb"]
    assert record("emulator")["newer_than_pinned"] == []
    before = archive.calls()
    assert set_up("emulator", Silent()) == home
    assert archive.calls() == before


def test_root_has_its_wheels_where_its_python_looks(archive: Archive) -> None:
    home = set_up("arm64", Silent())

    assert (home / "root" / "usr" / "lib" / "python3" / "dist-packages" / "runtime" / "__init__.py").is_file()
    assert (home / "root" / "usr" / "bin" / "python").is_file()
    assert record("arm64")["wheels"] == ["runtime-1.0-py3-none-any.whl"]


def test_apt_touches_nothing_of_the_system(archive: Archive) -> None:
    set_up("emulator", Silent())

    state = folder_of("emulator").parent / "downloads" / "emulator" / ".apt"
    for line in (archive.folder / "calls").read_text().splitlines():
        assert f"Dir::State={state}/state" in line
        assert f"Dir::Cache={state}/cache" in line
        assert "Dir::State::status=/dev/null" in line
        assert " install" not in line


def test_download_with_another_digest_is_refused_and_removed(archive: Archive) -> None:
    deb(archive.folder, "qemu", "7.2", "amd64", text="malware")

    error = refused()

    assert isinstance(error, DeviceError)
    assert "sha256 differs" in error.what
    assert error.where == "qemu_7.2_amd64.deb"
    assert not list(folder_of("emulator").parent.rglob("qemu_*.deb"))
    deb(archive.folder, "qemu", "7.2", "amd64")
    set_up("emulator", Silent())


def test_version_the_archive_no_longer_has_is_taken_as_it_is_now_and_told(archive: Archive) -> None:
    (archive.folder / "qemu_7.2_amd64.deb").unlink()
    deb(archive.folder, "qemu", "7.2+deb12u1", "amd64")

    home = set_up("emulator", Silent())

    assert (home / "usr" / "bin" / "qemu").read_text().endswith("7.2+deb12u1")
    assert record("emulator")["newer_than_pinned"] == ["qemu 7.2+deb12u1"]


def test_archives_that_are_here_already_are_not_fetched_again(archive: Archive) -> None:
    downloads = folder_of("emulator").parent / "downloads" / "emulator"
    downloads.mkdir(parents=True)
    shutil.copy(archive.folder / "glib_2.74_amd64.deb", downloads)

    set_up("emulator", Silent())

    assert [call.split("download ")[-1] for call in archive.calls() if "download" in call] == ["qemu=7.2"]


def test_set_up_that_was_cut_off_goes_on_without_the_network(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(device_setup, "_drop_unused", interrupt)
        set_up("arm64", Silent())
    assert_nothing_half_made("arm64")
    (archive.folder / "offline").touch()
    monkeypatch.setattr(device_setup, "wheel_command", lambda folder, wanted: ["false"])

    set_up("arm64", Silent())

    assert is_set_up("arm64")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_a_killed_set_up_left_behind_goes_with_the_next(archive: Archive) -> None:
    devices = folder_of("emulator").parent
    gone = subprocess.Popen(["true"])
    gone.wait()
    half = devices / f".tmp-{gone.pid}-{device_setup.scratch_prefix().split('-')[1]}-abc"
    (half / "usr").mkdir(parents=True)

    set_up("emulator", Silent())

    assert not half.exists()


@pytest.mark.parametrize("damage", ["changed", "no record", "no file"])
def test_set_up_that_was_damaged_is_unpacked_again_without_the_network(archive: Archive, damage: str) -> None:
    home = set_up("emulator", Silent())
    (archive.folder / "offline").touch()
    if damage == "changed":
        (home / "usr" / "bin" / "qemu").write_text("malware")
    else:
        (home / ("setup.json" if damage == "no record" else "usr/bin/qemu")).unlink()
    is_intact.cache_clear()

    set_up("emulator", Silent())

    assert (home / "usr" / "bin" / "qemu").read_text() == "program of qemu 7.2"
    assert is_intact(home)
    assert sorted(path.name for path in home.parent.iterdir()) == ["downloads", home.name]


def test_missing_tool_is_named_with_its_package(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    error = refused()

    assert isinstance(error, DeviceError)
    assert "apt-get is not on this machine" in error.what
    assert error.fix is not None and "apt-get install apt" in error.fix and "EDGEPIPE_CACHE/devices" in error.fix


def test_archive_that_lacks_a_package_leads_to_own_sources(archive: Archive) -> None:
    (archive.folder / "qemu_7.2_amd64.deb").unlink()

    error = refused()

    assert isinstance(error, DeviceError)
    assert "have no qemu for amd64" in error.what
    assert error.fix is not None and "EDGEPIPE_APT_SOURCES" in error.fix and "bookworm" in error.fix


def test_own_sources_are_what_apt_reads(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_APT_SOURCES", str(tmp_path / "sources.list"))

    set_up("emulator", Silent())

    assert f"Dir::Etc::sourcelist={tmp_path / 'sources.list'}" in (archive.folder / "calls").read_text()


@pytest.mark.parametrize("fails", [True, False])
def test_network_that_is_away_is_an_error_of_the_network(archive: Archive, fails: bool) -> None:
    (archive.folder / ("offline" if fails else "unread")).touch()

    error = refused()

    assert isinstance(error, DeviceError)
    assert "Failed to fetch" in error.what
    assert error.fix is not None and "network" in error.fix


def test_python_without_pip_is_told_how_to_get_it(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; sys.exit('/usr/bin/python3: No module named pip')"
    monkeypatch.setattr(device_setup, "wheel_command", lambda folder, wanted: [sys.executable, "-c", script])

    error = refused("arm64")

    assert error.fix is not None and "ensurepip" in error.fix


def test_disk_that_runs_full_under_a_tool_is_told_as_that(archive: Archive) -> None:
    archive.tool("dpkg", FULL)

    error = refused()

    assert isinstance(error, ResourceError)
    assert "the disk is full" in error.what


def test_profiles_that_need_or_have_no_emulation_are_refused(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nothing is to be set up"):
        set_up_profile(host_profile(), Silent())
    monkeypatch.setattr(device_setup, "can_emulate", lambda profile: False)
    with pytest.raises(UsageError, match="cannot be emulated here"):
        set_up_profile(load_profile("iphone-current"), Silent())
