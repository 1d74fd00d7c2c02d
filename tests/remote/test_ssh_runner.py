"""The ssh runner against this machine, with a script in place of `ssh`: the way there, agents, locks. The real one: e2e/test_ssh.py."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from edgepipe.artifact import Artifact
from edgepipe.driver import driver_module
from edgepipe.errors import DeviceError, EdgepipeError, ResourceError, UsageError
from edgepipe.runners import link, runner_for
from edgepipe.runners.ssh import Address, SshRunner
from tests.remote.board import Board, changed_board, measured, profile, wait_for


def test_agent_over_there_predicts_what_the_driver_does(runner: SshRunner, stored: Artifact) -> None:
    model = runner.open(runner.push(stored), threads=1)

    found = model.predict([{"text": "a good film"}])
    model.close()

    expected = driver_module().Driver(str(stored.model.folder.parent)).predict({"text": "a good film"})
    assert found[0].outputs[0]["logits"].tolist() == expected[0]["logits"].tolist()


def test_whole_measurement_is_of_the_device(runner: SshRunner, stored: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepipe.measure.MIN_TIMINGS", 8)

    found = measured(runner, stored)

    assert found.runner == "ssh"
    assert found.timings and found.memory["candidate"] > 20_000_000
    assert found.board["before"]["ticks"] < found.board["after"]["ticks"]
    assert {runner.proof(axis).provenance for axis in ("accuracy", "latency", "memory")} == {"measured"}
    assert "board" not in json.dumps({**found.to_json(), "board": found.board}).replace('"board": {', "")  # no address


def test_hosts_are_checked_and_nobody_is_asked(device: Board, stored: Artifact) -> None:
    runner = runner_for(profile())
    runner.open(runner.push(stored), threads=1).close()
    runner.close()

    calls = (device.folder / "calls").read_text().splitlines()
    assert len(calls) == 2
    for call in calls:
        assert "-o BatchMode=yes -o StrictHostKeyChecking=yes " in call
        assert " -- pi@board exec " in call


def test_nothing_is_left_behind(device: Board, stored: Artifact) -> None:
    runner = runner_for(profile())
    model = runner.open(runner.push(stored), threads=1)
    assert device.files()
    model.close()
    runner.close()

    assert list(device.home.iterdir()) == []


def test_what_a_start_up_file_prints_is_passed_over(device: Board, stored: Artifact) -> None:
    device.does("before", "echo 'Welcome to board!'; printf 'no newline'; echo to stderr >&2")

    model = (runner := runner_for(profile())).open(runner.push(stored), threads=1)

    assert len(model.predict([{"text": "good"}])) == 1
    model.close()
    runner.close()


@pytest.mark.parametrize(
    ("instead", "kind", "says"),
    [
        ("echo 'ssh: connect to host board port 22: Connection refused' >&2; exit 255", DeviceError, "cannot be reached"),
        ("echo 'Host key verification failed.' >&2; exit 255", DeviceError, "is not known here"),
        ("echo '@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @' >&2; exit 255", DeviceError, "has changed"),
        ("echo 'pi@board: Permission denied (publickey).' >&2; exit 255", DeviceError, "did not let us in"),
        ("echo 'Bad configuration option: foo' >&2; exit 255", DeviceError, "configuration"),
        ("exit 255", DeviceError, "was cut"),
        ("echo 'sh: 1: exec: python3: not found' >&2; exit 127", DeviceError, "has no python3"),
        ("echo 'This account is not available.'; exit 1", DeviceError, "This account is not available"),
        ("echo 'edgepipe needs Python 3.8, and this is 3.5.3 ' >&2; exit 1", DeviceError, r"python3 is 3\.5\.3"),
        ("exec sleep 20", ResourceError, "did not answer within"),
        ("exec yes hello", ResourceError, "did not answer within|ended"),
    ],
)  # fmt: skip
def test_a_way_that_leads_nowhere_is_told(
    device: Board, monkeypatch: pytest.MonkeyPatch, instead: str, kind: type[EdgepipeError], says: str
) -> None:
    device.does("instead", instead)
    monkeypatch.setattr(link, "START_S", 1.0)

    with pytest.raises(kind, match=says) as told:
        runner_for(profile())

    assert told.value.fix and told.value.where == "device pi@board"


def test_no_ssh_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DeviceError, match="ssh is not on this machine"):
        runner_for(profile())


def test_address_is_never_an_option_of_ssh() -> None:
    assert Address.of("pi@10.0.0.7:2222") == Address("pi@10.0.0.7", "2222")
    assert Address.of("pi@[fe80::1%eth0]:22") == Address("pi@fe80::1%eth0", "22")
    assert Address.of("my-board") == Address("my-board")
    for bad in ("-oProxyCommand=touch /tmp/x", "pi@-oX", "a b", "pi@host;reboot", "pi@host:x"):
        with pytest.raises(UsageError, match="is no address"):
            Address.of(bad)


def test_two_builds_do_not_use_one_device(device: Board, runner: SshRunner) -> None:
    with pytest.raises(DeviceError, match=f"another build uses the device .*process {os.getpid()}, since"):
        runner_for(profile())


def test_lock_and_agents_of_a_dead_build_are_no_hindrance(device: Board, stored: Artifact) -> None:
    first = runner_for(profile())
    assert isinstance(first, SshRunner)
    first.open(first.push(stored), threads=1)
    agent = int(next((device.agent / "pids").iterdir()).name)
    first._control._process.kill()  # `exec` all the way: this is the bootstrap itself, which tidies up no more

    second = runner_for(profile())

    assert wait_for(lambda: not Path(f"/proc/{agent}").exists() or "Z" in Path(f"/proc/{agent}/stat").read_text().split()[2])
    assert list((device.agent / "pids").iterdir()) == []
    second.close()
    first.close()
    assert device.files() == []


@pytest.mark.parametrize(
    ("with_signal", "kind", "says"),
    [(signal.SIGKILL, ResourceError, "for want of memory"), (signal.SIGILL, DeviceError, "an instruction that this CPU lacks")],
)
def test_agent_that_a_signal_ends_is_told(
    device: Board, runner: SshRunner, stored: Artifact, with_signal: int, kind: type[EdgepipeError], says: str
) -> None:
    model = runner.open(runner.push(stored), threads=1)
    os.kill(int(next((device.agent / "pids").iterdir()).name), with_signal)

    with pytest.raises(kind, match=says):
        model.predict([{"text": "good"}])
    model.close()


def test_connection_cut_while_running_is_told_and_the_device_tidies_up(device: Board, stored: Artifact) -> None:
    device.does("instead", 'sh -c "$line"; echo "client_loop: send disconnect: Broken pipe" >&2; exit 255')
    runner = runner_for(profile())
    assert isinstance(runner, SshRunner)
    model = runner.open(runner.push(stored), threads=1)
    os.kill(int(next((device.agent / "pids").iterdir()).name), signal.SIGKILL)

    with pytest.raises(DeviceError, match="the connection to the device was cut: client_loop"):
        model.predict([{"text": "good"}])
    runner._control._process.stdin.close()  # type: ignore[union-attr]

    assert wait_for(lambda: device.files() == [])
    runner.close()


def test_agent_that_hangs_is_told(device: Board, runner: SshRunner, stored: Artifact) -> None:
    model = runner.open(runner.push(stored), threads=1)
    model._limit_s = 0.5
    os.kill(int(next((device.agent / "pids").iterdir()).name), signal.SIGSTOP)

    with pytest.raises(ResourceError, match="did not answer within"):
        model.predict([{"text": "good"}])
    model.close()


def test_silence_is_taken_for_a_way_that_is_gone(device: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    changed_board(monkeypatch, "IDLE_S = 180", "IDLE_S = 0.3")
    changed_board(monkeypatch, "SAMPLE_S = 5", "SAMPLE_S = 0.1")
    runner = runner_for(profile())

    assert wait_for(lambda: device.files() == [])
    runner.close()


def test_pings_keep_the_device(device: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    changed_board(monkeypatch, "IDLE_S = 180", "IDLE_S = 0.6")
    changed_board(monkeypatch, "SAMPLE_S = 5", "SAMPLE_S = 0.1")
    monkeypatch.setattr(link, "PING_S", 0.1)
    runner = runner_for(profile())
    time.sleep(1.5)

    assert device.files()
    runner.close()
