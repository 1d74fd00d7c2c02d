"""CPUs under emulation: how they describe themselves, what stands for them, and what is told where nothing can."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgepipe import emulation
from edgepipe.emulation import LOCK, can_emulate, cpu_view, emulated, folder_of, is_intact, lock_digest, missing, qemu_cpu
from edgepipe.errors import DeviceError, EdgepipeError, ResourceError, UsageError
from edgepipe.profile import Cpu, Profile, load_profile, profile_names, with_devices
from edgepipe.readiness import of_profile
from edgepipe.resources import resource
from edgepipe.runners import runner_for
from edgepipe.runners.agent import AgentModel
from edgepipe.runners.emulated import EmulatedRunner, emulator_bytes
from tests.emulation import fake_set_up


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test's own."""
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "cache"))
    is_intact.cache_clear()
    yield tmp_path / "cache"
    is_intact.cache_clear()


def arm(model: str = "board-core", *isa: str, cores: int = 2) -> Cpu:
    return Cpu(model=model, arch="aarch64", isa=isa or ("fp", "asimd"), cores=cores, clock_mhz=1000)


# --- what the CPU says of itself


def test_boards_describe_themselves_as_their_kernels_do(cache: Path, golden: Callable[[str, str], None]) -> None:
    fake_set_up("arm64")
    texts = []
    for name in ("rpi3", "rpi4", "rpi5", "jetson-orin"):
        view = cpu_view(load_profile(name).cpu)
        system = view / "sys" / "devices" / "system" / "cpu"
        first = (view / "proc" / "cpuinfo").read_text().split("\n\n")[0]
        midr = (system / "cpu0" / "regs" / "identification" / "midr_el1").read_text()
        clock = (system / "cpu0" / "cpufreq" / "cpuinfo_max_freq").read_text()
        texts.append(f"{name}\ncores {(system / 'present').read_text()}{first}\nMIDR {midr}kHz {clock}")

    golden("emulated_cpus.txt", "\n".join(texts))


def test_every_core_is_described_and_a_single_one_too(cache: Path) -> None:
    fake_set_up("arm64")

    many, one = (cpu_view(arm(cores=cores)) for cores in (6, 1))

    assert (many / "proc" / "cpuinfo").read_text().count("processor\t:") == 6
    for core in range(6):
        assert (many / f"sys/devices/system/cpu/cpu{core}/topology/core_id").read_text() == f"{core}\n"
    assert (many / "sys/devices/system/cpu/possible").read_text() == "0-5\n"
    assert (one / "sys/devices/system/cpu/possible").read_text() == "0\n"


def test_view_shares_the_root_and_keeps_what_is_its_own(cache: Path) -> None:
    home = fake_set_up("arm64")

    view = cpu_view(arm())

    assert (view / "usr" / "bin" / "python3.11").samefile(home / "root" / "usr" / "bin" / "python3.11")
    assert cpu_view(arm()) == view
    assert cpu_view(arm("other-core", "asimd", "asimddp")) != view
    assert sorted(path.name for path in view.iterdir()) == ["etc", "lib", "proc", "sys", "usr"]


def test_view_is_made_whole_or_not_at_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_set_up("arm64")
    real = Path.write_text

    def fails_late(path: Path, *args: object, **settings: object) -> int:
        if path.name == "cpuinfo_max_freq":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *args, **settings)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fails_late)
        with pytest.raises(ResourceError, match="disk is full"):
            cpu_view(arm())

    assert list((home / "cpus").iterdir()) == []
    assert (cpu_view(arm()) / "proc" / "cpuinfo").is_file()


def test_view_that_was_changed_is_made_again(cache: Path) -> None:
    fake_set_up("arm64")
    view = cpu_view(arm())
    (view / "proc" / "cpuinfo").write_text("CPU part\t: 0xbad\n")

    again = cpu_view(arm())

    assert again == view
    assert "0xbad" not in (again / "proc" / "cpuinfo").read_text()


def test_view_of_a_core_with_a_name_of_any_kind_stays_in_its_folder(cache: Path) -> None:
    home = fake_set_up("arm64")

    for name in ("../../out", "ARM Cortex-A72 r0p3 / 1.8 GHz", "x" * 300):
        assert cpu_view(arm(name)).parent == home / "cpus"


# --- which of the emulator's CPUs stands for it


@pytest.mark.parametrize(
    ("isa", "name"),
    [
        (("fp", "asimd"), "cortex-a72"),
        (("fp", "asimd", "asimddp"), "cortex-a76"),
        (("fp", "asimd", "asimddp", "i8mm", "sve"), "max,sve=off,sme=off"),
    ],
)
def test_core_the_emulator_does_not_know_is_chosen_by_its_instructions(isa: tuple[str, ...], name: str) -> None:
    assert qemu_cpu(arm("some-core", *isa)) == (name, name)


def test_core_the_emulator_has_is_taken_as_it_is() -> None:
    assert qemu_cpu(load_profile("rpi4").cpu) == ("cortex-a72", "")
    assert qemu_cpu(load_profile("rpi5").cpu) == ("cortex-a76", "")
    assert qemu_cpu(load_profile("jetson-orin").cpu) == ("cortex-a76", "cortex-a76")


@pytest.mark.parametrize("name", sorted(set(profile_names()) - {"host"}))
def test_profiles_that_emulation_can_stand_for(name: str, on_x86_linux: None) -> None:
    assert can_emulate(load_profile(name)) == (name not in ("browser-wasm", "x86-vnni"))


def test_nothing_is_emulated_from_another_system_or_where_the_device_is_this_machine(
    on_x86_linux: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not can_emulate(load_profile("host"))
    for name, value in (("system", "Darwin"), ("machine", "aarch64")):
        with monkeypatch.context() as patch:
            patch.setattr(f"platform.{name}", lambda value=value: value)

            assert not can_emulate(load_profile("rpi4"))


# --- what is set up


@pytest.fixture
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The lock files in a folder to change."""
    folder = tmp_path / "devices" / "emulation"
    folder.mkdir(parents=True)
    for path in (resource("devices") / "emulation").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(emulation, "resource", lambda name: tmp_path / name)
    lock_digest.cache_clear()
    yield folder
    lock_digest.cache_clear()


def test_digest_of_the_lock_changes_with_what_is_asked_for(own_lock: Path) -> None:
    before = {part: lock_digest(part) for part in ("emulator", "arm64")}
    lock = json.loads((own_lock / LOCK).read_text())
    lock["emulator"]["qemu-user"]["version"] += "+security"
    (own_lock / LOCK).write_text(json.dumps(lock))
    lock_digest.cache_clear()

    assert lock_digest("emulator") != before["emulator"]
    assert lock_digest("arm64") == before["arm64"]

    with (own_lock / "wheels.lock.txt").open("a") as wheels:
        wheels.write("more==1.0 --hash=sha256:00\n")
    lock_digest.cache_clear()

    assert lock_digest("arm64") != before["arm64"]


def test_device_whose_emulation_is_missing_is_stood_in_for_and_told_how_to_get_it(cache: Path, on_x86_linux: None) -> None:
    profile = load_profile("rpi4")

    runner = runner_for(profile)

    assert runner.name == "local"
    for axis in ("accuracy", "parity", "memory", "latency", "operators"):
        assert runner.proof(axis).provenance == "host"
        assert "edgepipe devices setup rpi4" in runner.proof(axis).doubt
    assert missing(profile) == ["emulator", "arm64"]
    ready = of_profile(profile)
    assert (ready.by, ready.axes["accuracy"]) == ("nothing", "host")
    assert "edgepipe devices setup rpi4" in [command for _, command in ready.lacking]
    with pytest.raises(DeviceError, match="not set up") as caught:
        emulated(profile)
    assert "edgepipe devices setup rpi4" in str(caught.value)


def test_device_whose_emulation_is_set_up_is_judged_by_it(cache: Path, on_x86_linux: None) -> None:
    fake_set_up("emulator")
    fake_set_up("arm64")

    runner = runner_for(load_profile("jetson-orin"))

    assert isinstance(runner, EmulatedRunner)
    assert runner.proof("accuracy").provenance == "emulated"
    assert not runner.proof("accuracy").doubt
    assert "cortex-a76" in runner.proof("accuracy").note
    assert runner.proof("latency").provenance == "predicted"
    command = runner.emulation.run(Path("/agent.py"), "x")
    assert command[0].endswith("/usr/bin/qemu-aarch64")
    assert command[-3].endswith("/usr/bin/python3.11")
    assert of_profile(load_profile("jetson-orin")).by == "emulated"


def test_figures_of_two_cpus_or_two_set_ups_are_not_mixed_up(cache: Path, on_x86_linux: None) -> None:
    fake_set_up("emulator")
    home = fake_set_up("arm64")

    four, five, old_pc = (emulated(load_profile(name)).digest for name in ("rpi4", "rpi5", "x86-avx2"))

    assert len({four, five, old_pc}) == 3
    record = json.loads((home / "setup.json").read_text())
    (home / "setup.json").write_text(json.dumps({**record, "packages": ["other"]}))
    assert emulated(load_profile("rpi4")).digest != four


@pytest.mark.parametrize("damage", ["changed", "removed", "added", "record"])
def test_set_up_that_was_changed_since_is_refused_with_the_command_that_mends_it(cache: Path, on_x86_linux: None, damage: str) -> None:
    fake_set_up("emulator")
    home = fake_set_up("arm64")
    python = home / "root" / "usr" / "bin" / "python3.11"
    if damage == "changed":
        python.write_bytes(b"no progrom")
    elif damage == "removed":
        python.unlink()
    elif damage == "added":
        (home / "root" / "sitecustomize.py").write_text("")
    else:
        (home / "setup.json").write_text("{")

    with pytest.raises(DeviceError, match="changed since") as caught:
        runner_for(load_profile("rpi4"))

    assert caught.value.exit_code == 5
    assert caught.value.fix is not None and "edgepipe devices setup rpi4" in caught.value.fix
    assert caught.value.where == str(folder_of("arm64"))


def test_emulator_that_cannot_be_started_is_an_error_for_a_person(cache: Path, on_x86_linux: None) -> None:
    fake_set_up("emulator")
    fake_set_up("arm64")

    with pytest.raises(DeviceError, match="qemu-aarch64 cannot be run: Permission denied"):
        runner_for(load_profile("rpi4")).open(Path("/nowhere"), threads=1)


def test_agent_that_is_busy_is_closed_at_once_and_its_caller_freed() -> None:
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the model
    script = "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    model = AgentModel(process, log, where="runner test", limit_s=60)
    failed: list[BaseException | None] = []
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(model.usage)
        time.sleep(0.2)
        start = time.monotonic()
        model.close()
        failed.append(asking.exception(timeout=20))

    assert isinstance(failed[0], EdgepipeError)
    assert process.returncode is not None
    assert time.monotonic() - start < 20


# --- memory


SMAPS = """\
00400000-00500000 r-xp 00000000 00:01 11 {emulator}/usr/bin/qemu-aarch64
Size:               1024 kB
Rss:                 100 kB
Pss:                 100 kB
VmFlags: rd ex mr mw me
00700000-00900000 rw-p 00000000 00:00 0                                  [heap]
Rss:                  20 kB
7f0000000000-7f0008000000 rwxp 00000000 00:00 0
Rss:                   3 kB
7f1000000000-7f1008000000 rw-p 00000000 00:00 0
Rss:                5000 kB
7f2000000000-7f2008000000 r--p 00000000 00:01 12 /models/with a space/weights.data
Rss:                7000 kB
7f3000000000-7f3000001000 r-xp 00000000 00:01 13 /somewhere{emulator}/x.so
Rss:                9000 kB
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                   4 kB
"""


def test_emulators_own_memory_is_its_code_buffer_files_and_heap() -> None:
    home = "/cache/devices/emulator-1"

    assert emulator_bytes(SMAPS.format(emulator=home), home) == (100 + 20 + 3 + 4) * 1024
    assert emulator_bytes("", home) == 0


# --- --device


def profiles(*names: str) -> list[Profile]:
    return [load_profile(name) for name in names]


def test_device_is_reached_at_the_address_that_was_given() -> None:
    four, five = with_devices(profiles("rpi4", "rpi5"), ["rpi5=pi@raspberrypi.local:2222"])

    assert (five.reach.runner, five.reach.address) == ("ssh", "pi@raspberrypi.local:2222")
    assert not four.reach.address
    (phone,) = with_devices(profiles("android-current"), ["emulator-5554"])
    assert (phone.reach.runner, phone.reach.address) == ("adb", "emulator-5554")


@pytest.mark.parametrize(
    ("names", "device", "says"),
    [
        (("rpi4",), "rpi5=pi@host", ("names no profile of this run", "rpi4")),
        (("rpi4", "rpi5"), "pi@host", ("which of the profiles is it?", "rpi4, rpi5")),
        (("rpi4",), "rpi4=", ("names no address",)),
        (("rpi4",), "", ("names no address",)),
        (("browser-wasm",), "browser-wasm=here", ("has no address",)),
        (("host",), "host=localhost", ("has no address",)),
    ],
)
def test_device_that_leads_nowhere_is_refused(names: tuple[str, ...], device: str, says: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        with_devices(profiles(*names), [device])

    assert all(words in str(caught.value) for words in says), str(caught.value)
    assert "--device" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "isa", "runs_as"),
    [
        ("cortex-a76", ("asimd",), "cortex-a72"),
        ("cortex-a72", ("asimd", "asimddp"), "cortex-a76"),
        ("cortex-a76", ("asimddp", "i8mm"), "max,sve=off,sme=off"),
    ],
)
def test_stated_features_go_before_the_cores_name(model: str, isa: tuple[str, ...], runs_as: str) -> None:
    cpu = load_profile("rpi4").cpu.model_copy(update={"model": model, "isa": isa})

    assert qemu_cpu(cpu) == (runs_as, runs_as)
