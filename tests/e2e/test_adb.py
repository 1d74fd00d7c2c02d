"""The adb runner: the real `adb` talks to the device side of its protocol (`tests/fake_adbd.py`) on an emulated ARM machine.

No phone was met.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgepipe.artifact import Artifact
from edgepipe.driver import driver_module
from edgepipe.errors import DeviceError, UsageError
from edgepipe.profile import Profile, Reach, load_profile
from edgepipe.progress import Silent
from edgepipe.runners import runner_for
from edgepipe.runners.adb import AdbRunner
from edgepipe.store import Store
from tests.arm_machine import ADB, libraries, make_machine, unpacked
from tests.fake_adbd import FakeAdbd

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux", reason="the ARM machine is emulated on x86-64 Linux"
)

# A phone has no Python of its own, and Android's services where one asks for its heat.
DUMPSYS = "#!/bin/sh\necho 'IsStatusOverride: false'\necho 'Thermal Status: 2'\n"


@dataclass(frozen=True)
class Phone:
    device: FakeAdbd
    storage: Path  # /data/local/tmp
    folder: Path

    def profile(self) -> Profile:
        return load_profile("rpi4").model_copy(update={"reach": Reach(runner="adb", address=f"127.0.0.1:{self.device.port}")})


@pytest.fixture(scope="session")
def phone(user_cache: Path) -> Iterator[Phone]:
    folder = Path(tempfile.mkdtemp(prefix="edgepipe-phone-"))
    for place in ("storage", "bin", "home", "system"):
        (folder / place).mkdir()
    (folder / "system" / "dumpsys").write_text(DUMPSYS)
    (folder / "system" / "dumpsys").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPIPE_CACHE", str(user_cache))
        from edgepipe.device_setup import set_up

        for part in ("emulator", "arm64"):
            set_up(part, Silent())
        binds = {folder / "storage": "/data/local/tmp", folder / "system": "/system/bin"}
        machine = make_machine(user_cache, folder / "machine", binds=binds)
        tools = unpacked(user_cache, "adb", "amd64", ADB)
    adb = folder / "bin" / "adb"
    adb.write_text(
        f"#!/bin/sh\nLD_LIBRARY_PATH='{libraries(tools)}' HOME='{folder}/home' exec '{tools}/usr/lib/android-sdk/platform-tools/adb' \"$@\"\n"
    )
    adb.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    device = FakeAdbd(machine.shell, {"/data/local/tmp": folder / "storage"})
    env = {**os.environ, "ANDROID_ADB_SERVER_PORT": port}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{adb.parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("ANDROID_ADB_SERVER_PORT", port)
        yield Phone(device, folder / "storage", folder)
    device.close()
    subprocess.run([str(adb), "kill-server"], env=env, capture_output=True, check=False)
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def arm_root(user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE", str(user_cache))  # where the root that goes to the phone lies


@pytest.fixture(scope="session")
def stored(onnx_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Store(tmp_path_factory.mktemp("store")).put(onnx_artifact)


def test_model_runs_on_a_device_that_has_no_python(phone: Phone, stored: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_for(phone.profile())
    assert isinstance(runner, AdbRunner)
    watch = runner.watch()
    model = runner.open(runner.push(stored), threads=1)

    found = model.predict([{"text": "a good film"}])[0].outputs[0]["logits"]
    usage = model.usage()
    watch.others_share(usage[1])
    model.close()

    assert found == pytest.approx(
        driver_module().Driver(str(stored.model.folder.parent)).predict({"text": "a good film"})[0]["logits"], abs=1e-4
    )
    assert runner.facts["arch"] == "aarch64" and usage[0] > 20_000_000
    assert runner.facts["packages"]["onnxruntime"] == phone.profile().runtime.version
    assert watch.board()["slowed"] == ["Android's thermal status 2"]
    assert (runner.proof("accuracy").provenance, runner.proof("accuracy").doubt) == ("measured", "")
    with pytest.raises(DeviceError, match="another build uses the device"):
        runner_for(phone.profile())
    assert list(phone.storage.glob("edgepipe-root-*")), "the other build's root is not ours to take away"
    runner.close()
    assert list(phone.storage.iterdir()) == []


def test_cable_pulled_while_running_is_told(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_root(runner: AdbRunner) -> None:
        runner._shell("mkdir -p " + runner._root)

    monkeypatch.setattr(AdbRunner, "_bring_root", no_root)
    monkeypatch.setattr(AdbRunner, "python", lambda _: "python3")  # the machine's own: this is about the way
    runner = runner_for(phone.profile())
    assert isinstance(runner, AdbRunner)
    threading.Timer(0.2, phone.device.cut).start()

    with pytest.raises(DeviceError, match=r"the connection to the device was cut|cannot be reached"):
        for _ in range(200):
            runner._control.send("state")
    runner.close()

    assert wait_for(lambda: not (phone.storage / "edgepipe-agent").exists())


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def test_device_that_is_not_there_is_told(phone: Phone) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    for address, says in ((f"127.0.0.1:{closed}", "cannot be reached"), ("ABC123", "device 'ABC123' not found")):
        profile = load_profile("rpi4").model_copy(update={"reach": Reach(runner="adb", address=address)})
        with pytest.raises(DeviceError, match=says) as told:
            runner_for(profile)
        assert told.value.fix


def test_no_adb_here_is_told(phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DeviceError, match="adb is not on this machine"):
        runner_for(phone.profile())


def test_address_is_never_an_option_of_adb() -> None:
    profile = load_profile("rpi4").model_copy(update={"reach": Reach(runner="adb", address="-H evil")})

    with pytest.raises(UsageError, match="is no device of adb"):
        runner_for(profile)
