"""Whether a device is the profile's, and what its state says about times."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from edgepipe.artifact import Artifact
from edgepipe.config import Budget, Task
from edgepipe.errors import AXIS_EXIT_CODES, DeviceError
from edgepipe.profile import host_profile
from edgepipe.result import exit_code
from edgepipe.runners import board, remote, runner_for
from edgepipe.runners.ssh import SshRunner
from edgepipe.tasks import load_task
from edgepipe.verdict import judge
from tests.measurements import measurement
from tests.remote.board import Board, changed_board, measured, profile


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cpu__arch": "aarch64"}, "the device is x86_64, and board is aarch64"),
        ({"runtime__version": "99.1.0"}, "too old: board names 99.1.0"),
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="written for x86-64")
def test_device_of_another_kind_is_refused(device: Board, stored: Artifact, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DeviceError, match=says):
        runner = runner_for(profile(**changes))
        try:
            runner.push(stored)
        finally:
            runner.close()

    assert device.files() == []


def test_facts_that_differ_are_doubts(device: Board) -> None:
    isa = [flag for flag in host_profile().cpu.isa if flag != "avx2"]
    runner = runner_for(profile(cpu__isa=isa, runtime__version="1.0.0", runtime__threads=64))

    doubt = runner.proof("accuracy").doubt
    assert ("has avx2 too" in doubt) == ("avx2" in host_profile().cpu.isa)
    assert "board names 1.0.0" in doubt
    assert "of 64 threads" in runner.proof("latency").doubt
    runner.close()


def test_old_c_library_and_absent_packages_are_told() -> None:
    facts = {"libc": "glibc 2.24", "python": [3, 9, 2]}
    with pytest.raises(DeviceError, match=r"C library is glibc 2\.24, too old"):
        board.check_runtime({}, facts, profile(), ["onnxruntime", "numpy"], "device")
    with pytest.raises(DeviceError, match="the device's C library is none that we know"):
        board.check_runtime({}, {**facts, "libc": ""}, profile(), ["onnxruntime", "numpy"], "device")
    with pytest.raises(DeviceError, match=r"Python 3\.9\.2 has no tokenizers"):
        board.check_runtime({"onnxruntime": "99.0"}, {**facts, "libc": "glibc 2.36"}, profile(), ["onnxruntime", "tokenizers"], "device")


def test_device_that_slows_itself_down_is_timed_again_once_it_is_cool(
    device: Board, stored: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = tmp_path / "flags"
    flags.write_text("0")
    changed_board(monkeypatch, "/sys/devices/platform/soc/soc:firmware/get_throttled", str(flags))
    monkeypatch.setattr("edgepipe.measure.MIN_TIMINGS", 8)
    monkeypatch.setattr(remote, "COOL_STEP_S", 0.05)
    runner = runner_for(profile())
    assert isinstance(runner, SshRunner)
    cooled: list[int] = []
    ends_in(monkeypatch, remote.Watch, "others_share", lambda: flags.write_text("50005" if not cooled else "50000"))
    cool_down = runner.cool_down

    def cool() -> None:
        cooled.append(1)
        threading.Timer(0.3, flags.write_text, ["50000"]).start()
        cool_down()

    monkeypatch.setattr(runner, "cool_down", cool)

    found = measured(runner, stored)

    assert cooled and found.slowed == ""
    runner.close()


def ends_in(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Any) -> None:
    original = getattr(owner, name)

    def changed(self: Any, *args: Any) -> Any:
        act()
        return original(self, *args)

    monkeypatch.setattr(owner, name, changed)


def test_device_that_stays_slow_proves_no_latency(onnx_artifact: Artifact) -> None:
    proofs = {axis: {"provenance": "measured"} for axis in AXIS_EXIT_CODES}
    found = measurement(board={"before": {}, "after": {}, "slowed": ["throttled"]}, proofs=proofs)

    rows = judge(found, onnx_artifact, onnx_artifact, profile(), load_task(Task(name="text-classification")), Budget(max_size_ratio=10))

    told = [row for row in rows if row.axis == "latency" and row.verdict]
    assert found.disturbed and {row.verdict for row in told} == {"unproven"}
    assert all("the device slowed itself down meanwhile (throttled)" in row.reason for row in told)
    assert exit_code(rows, strict=True) == 16 and exit_code(rows, strict=False) == 0


def test_state_before_and_after_tells_what_slowed_a_device() -> None:
    cool = {"slowed": [], "since_start": 5, "throttle_count": 1, "temperature_c": 51.0, "governor": "ondemand", "clock_mhz": 1500}
    hot = {**cool, "slowed": ["throttled"], "since_start": 5, "temperature_c": 82.4}

    assert board.slowed(cool, cool) == []
    assert board.slowed(cool, hot) == ["throttled"]
    assert board.slowed(cool, {**cool, "since_start": 7}) == ["the firmware noted it since"]
    assert board.slowed(cool, {**cool, "throttle_count": 2}) == ["clock held down by temperature"]
    assert board.state_told(cool, hot) == "governor ondemand, 1500 MHz, 51 → 82 °C"


def test_load_of_others_is_the_devices() -> None:
    before, after = {"busy": 100, "ticks": 1000}, {"busy": 500, "ticks": 2000}

    assert board.others_share(before, after, 3.0) == pytest.approx(0.1)
    assert board.others_share(before, after, 9.0) == 0


def test_fast_cores_are_chosen_where_cores_are_unlike() -> None:
    facts = {"usable": [0, 1, 2, 3], "core_khz": {"0": 1800, "1": 1800, "2": 2400, "3": 2400}}

    assert board.pinned(facts, 2) == [2, 3]
    assert board.pinned({**facts, "core_khz": dict.fromkeys("0123", 1800)}, 2) == []
