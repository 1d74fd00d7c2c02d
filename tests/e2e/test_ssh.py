"""The ssh runner through a real OpenSSH server, whose shell is an ARM machine's."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from edgepipe.artifact import Artifact
from edgepipe.config import Task
from edgepipe.errors import DeviceError
from edgepipe.measure import measure
from edgepipe.profile import Profile, Reach, load_profile
from edgepipe.progress import Silent
from edgepipe.runners import runner_for
from edgepipe.runners.ssh import SshRunner
from edgepipe.store import Store
from edgepipe.tasks import load_task
from tests.arm_machine import ArmMachine, libraries, make_machine

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux", reason="the ARM machine is emulated on x86-64 Linux"
)


@dataclass(frozen=True)
class Server:
    """A board on a loopback port, and the client's configuration that knows it."""

    machine: ArmMachine
    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def profile(self, name: str = "rpi4") -> Profile:
        return load_profile(name).model_copy(update={"reach": Reach(runner="ssh", address=f"pi@127.0.0.1:{self.port}")})

    def config(self, **changes: str) -> Path:
        """The user's ssh configuration, with changes."""
        options = {"UserKnownHostsFile": f"{self.folder}/known", "IdentityFile": f"{self.folder}/key", "IdentitiesOnly": "yes", **changes}
        path = self.folder / f"config-{len(list(self.folder.glob('config-*')))}"
        path.write_text("".join(f"{key} {value}\n" for key, value in options.items()))
        return path


@pytest.fixture(scope="session")
def server(user_cache: Path) -> Iterator[Server]:
    """OpenSSH's server as any user: it finds the user `pi`, whose shell enters the machine, in a list of its own."""
    folder = Path(tempfile.mkdtemp(prefix="edgepipe-board-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPIPE_CACHE", str(user_cache))
        from edgepipe.device_setup import set_up

        for part in ("emulator", "arm64"):
            set_up(part, Silent())
        machine = make_machine(user_cache, folder / "machine")
    for name in ("hostkey", "otherkey", "key", "strange"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, key in (("known", "hostkey"), ("known-other", "otherkey")):
        (folder / name).write_text(f"[127.0.0.1]:{port} {' '.join((folder / f'{key}.pub').read_text().split()[:2])}\n")
    user, group = os.getuid(), os.getgid()
    sshd_user = "" if user else "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(f"pi:x:{user}:{group}:pi:{machine.home}:{machine.shell}\n{sshd_user}")
    (folder / "group").write_text(f"pi:x:{group}:\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/hostkey\nAuthorizedKeysFile {folder}/key.pub\nPidFile none\nUsePAM no\n"
        "StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    if user == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where OpenSSH locks up what it does before a login
    wrapped = {
        "LD_LIBRARY_PATH": libraries(machine.tools), "LD_PRELOAD": "libnss_wrapper.so",
        "NSS_WRAPPER_PASSWD": str(folder / "passwd"), "NSS_WRAPPER_GROUP": str(folder / "group"),
    }  # fmt: skip
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [str(machine.tools / "usr/sbin/sshd"), "-D", "-e", "-f", str(folder / "sshd_config")], env={**os.environ, **wrapped}, stderr=log
    )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield Server(machine, folder, port, process)
    process.kill()
    process.wait()
    log.close()
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def known(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_SSH_CONFIG", str(server.config()))


@pytest.fixture(scope="session")
def stored(onnx_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Store(tmp_path_factory.mktemp("store")).put(onnx_artifact)


def test_model_is_measured_on_an_arm_machine(server: Server, stored: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepipe.measure.MIN_TIMINGS", 8)
    monkeypatch.setattr("edgepipe.measure.SHAPES", {"text": ((1, 16),)})
    runner = runner_for(server.profile())
    assert isinstance(runner, SshRunner)
    samples = [
        {"text": f"a good film {word}", "label": "positive"} for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")
    ]

    found = measure(stored, stored, runner, load_task(Task(name="text-classification")), samples, 2, Silent())

    assert runner.facts["arch"] == "aarch64"
    assert runner.facts["parts"] == [0xD08]
    assert runner.facts["packages"]["onnxruntime"] == server.profile().runtime.version
    assert found.runner == "ssh" and found.parity["cosine"] > 0.9999
    assert len(found.timings[0].candidate_ms) == 8
    assert found.board["after"]["clock_mhz"] is None and found.board["slowed"] == []
    for axis in ("accuracy", "parity", "memory", "operators"):
        assert (runner.proof(axis).provenance, runner.proof(axis).doubt) == ("measured", "")
    cores = os.sched_getaffinity(0)  # of the machine beneath
    assert runner.proof("latency").doubt == ("" if len(cores) >= 4 else f"taken with {len(cores)} of 4 threads")
    runner.close()
    assert list(server.machine.home.iterdir()) == []


def test_connection_cut_while_running_leaves_nothing_behind(server: Server, stored: Artifact) -> None:
    runner = runner_for(server.profile())
    assert isinstance(runner, SshRunner)
    folder = runner.push(stored)
    pids = server.machine.home / ".cache" / "edgepipe-agent" / "pids"
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(runner.open, folder, threads=1)
        assert wait_for(lambda: list(pids.iterdir()))
        for pid in connections(server):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(DeviceError, match="the connection to the device was cut"):
            opening.result(60)
    runner.close()

    assert wait_for(lambda: not list(server.machine.home.iterdir()))


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def connections(server: Server) -> list[int]:
    """The server's processes for connections."""
    return [child.pid for child in psutil.Process(server.process.pid).children(recursive=True) if child.name() == "sshd"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"UserKnownHostsFile": "/dev/null", "GlobalKnownHostsFile": "/dev/null"}, "host key of the device is not known here"),
        ({"UserKnownHostsFile": "{folder}/known-other"}, "host key of the device has changed"),
        ({"IdentityFile": "{folder}/strange"}, "did not let us in: .*Permission denied"),
        ({"Nonsense": "yes"}, "ssh's configuration is not right"),
        ({"Port": "1"}, "the device cannot be reached: .*Connection refused"),
    ],
)
def test_what_openssh_refuses_is_told(server: Server, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], says: str) -> None:
    config = server.config(**{key: value.format(folder=server.folder) for key, value in changes.items()})
    monkeypatch.setenv("EDGEPIPE_SSH_CONFIG", str(config))
    address = "pi@127.0.0.1" if "Port" in changes else f"pi@127.0.0.1:{server.port}"
    profile = load_profile("rpi4").model_copy(update={"reach": Reach(runner="ssh", address=address)})

    with pytest.raises(DeviceError, match=says) as told:
        runner_for(profile)

    assert told.value.exit_code == 5 and told.value.fix


def test_device_of_another_core_proves_no_outputs(server: Server) -> None:
    runner = runner_for(server.profile("rpi5"))

    assert "the device lacks asimddp" in runner.proof("accuracy").doubt
    assert "the device's cores are cortex-a72, and rpi5's cortex-a76" in runner.proof("latency").doubt
    runner.close()


def test_absent_python_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_DEVICE_PYTHON", "python3.99")

    with pytest.raises(DeviceError, match=r"has no python3: .*python3\.99: not found"):
        runner_for(server.profile())
