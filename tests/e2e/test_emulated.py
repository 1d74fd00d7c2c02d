"""Devices that are not here, judged by their own kernels: the real emulator, the real ARM runtime."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepipe.artifact import Artifact
from edgepipe.cost.counting import count
from edgepipe.emulation import can_emulate, emulated, emulator_env, folder_of
from edgepipe.measure import opened
from edgepipe.ort_format import ort_files
from edgepipe.profile import host_profile, load_profile
from edgepipe.runners import Runner, runner_for
from edgepipe.runners.local import LocalRunner
from edgepipe.store import Store
from tests.e2e.command import Project, assert_one_message, copy, manifest_of, own_devices
from tests.e2e.test_bad_output import without_override

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="emulation starts from Linux on x86-64"
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "saturation"
SAMPLES = [{"text": text} for text in ("a good film", "the plot was dull and slow", "böse 👎", "a " * 60)]
ISOLATED = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
NO_COMPILER = {"CC": "no-compiler"}  # counting instructions takes longer than all the rest


@pytest.fixture(scope="module")
def saturating(emulation_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The example's project with the bundle built for a Raspberry Pi 4. Read only."""
    ignored = shutil.ignore_patterns("model", "samples.csv", "build*")
    folder = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("e2e") / "saturation", ignore=ignored)
    project = Project(folder, emulation_cache, NO_COMPILER)
    assert project.execute([sys.executable, "make.py"]).returncode == 0
    project.passes("compress", "--profile", "rpi4", "--recipe", "int8.toml", "--quiet")
    return project


@pytest.fixture(scope="module")
def stored(onnx_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Store(tmp_path_factory.mktemp("store")).put(onnx_artifact)


def inside(profile: str, script: Path, *arguments: str) -> Any:
    """What a Python script prints as JSON on the profile's CPU."""
    emulation = emulated(load_profile(profile))
    done = subprocess.run(
        emulation.run(script, *arguments), env=emulator_env(emulation), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the CPU a program sees there


def test_programs_see_the_boards_cpu_and_not_this_machines(emulation: Path, tmp_path: Path) -> None:
    script = tmp_path / "look.py"
    script.write_text(
        "import ctypes, json, platform\n"
        "info = dict(line.split('\\t: ') for line in open('/proc/cpuinfo').read().split('\\n\\n')[0].splitlines() if '\\t: ' in line)\n"
        "getauxval = ctypes.CDLL(None).getauxval\n"
        "getauxval.restype = ctypes.c_ulong\n"
        "possible = open('/sys/devices/system/cpu/possible').read().strip()\n"
        "print(json.dumps([platform.machine(), info['CPU part'], possible, bool(getauxval(16) >> 20 & 1)]))\n"  # HWCAP_ASIMDDP
    )

    with ThreadPoolExecutor(2) as pool:
        seen = dict(zip(("rpi4", "rpi5"), pool.map(lambda name: inside(name, script), ("rpi4", "rpi5")), strict=True))

    assert seen == {"rpi4": ["aarch64", "0xd08", "0-3", False], "rpi5": ["aarch64", "0xd0b", "0-3", True]}


def test_one_int8_file_runs_dot_products_on_a_pi_5_and_none_on_a_pi_4(emulation: Path, saturating: Project, tmp_path: Path) -> None:
    model = saturating.folder / "build" / "model" / "model.onnx"

    def counted(name: str) -> dict[str, int]:
        emulation = emulated(load_profile(name))
        feeds = {"input_ids": np.ones((1, 8), np.int64)}
        return count(emulation.command, emulation.python, emulator_env(emulation), model, feeds, plugin_folder=tmp_path / name).total

    with ThreadPoolExecutor(2) as pool:
        four, five = pool.map(counted, ("rpi4", "rpi5"))

    assert four["dot"] == 0
    assert five["dot"] > 100
    assert four["imul"] > 4 * five["imul"]  # multiplications of integers, which do the same there


# --- the agent


def test_float32_model_gives_the_same_on_a_pi_as_here(emulation: Path, stored: Artifact) -> None:
    found = {}
    for runner in (runner_for(load_profile("rpi4")), LocalRunner()):
        with opened(runner, runner.push(stored), threads=1) as model:
            found[runner.name] = model.predict(SAMPLES)

    assert set(found) == {"emulated", "local"}
    for there, here in zip(found["emulated"], found["local"], strict=True):
        assert there.outputs[0]["logits"] == pytest.approx(here.outputs[0]["logits"], abs=1e-5)


def test_memory_is_the_programs_and_not_the_emulators(emulation: Path, stored: Artifact) -> None:
    def peak(runner: Runner) -> int:
        with opened(runner, runner.push(stored), threads=1) as model:
            model.predict(SAMPLES)
            return model.usage()[0]

    there, here = (peak(runner) for runner in (runner_for(load_profile("x86-avx2")), LocalRunner()))

    assert there == pytest.approx(here, rel=0.25)


def test_file_in_the_runtimes_own_format_gives_the_same_on_arm(emulation: Path, stored: Artifact, tmp_path: Path) -> None:
    ort = ort_files(stored, tmp_path)["ort/model.ort"]
    script = tmp_path / "both.py"
    script.write_text(
        "import json, sys\n"
        "import numpy as np, onnxruntime\n"
        "ids = np.array([[2, 7, 9, 30, 3], [2, 5, 5, 8, 3]])\n"
        "feeds = {'input_ids': ids, 'attention_mask': np.ones_like(ids)}\n"
        "run = lambda path: onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, feeds)[0].tolist()\n"
        "print(json.dumps([run(path) for path in sys.argv[1:]]))\n"
    )

    plain, own = inside("rpi4", script, str(stored.model.main_file), str(ort))

    assert own == plain
    assert len(own) == 2


# --- saturation


def rows_of(manifest: dict[str, Any], axis: str) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in manifest["results"] if row["axis"] == axis}


def test_int8_file_holds_on_the_pi_it_was_built_for(saturating: Project) -> None:
    manifest = manifest_of(saturating.folder / "build")

    assert [step["name"] for step in manifest["passes"]] == ["quantize-dynamic"]
    assert "reduced_range" not in manifest["program"]  # sums are 32 bits wide there
    accuracy = rows_of(manifest, "accuracy")
    assert (accuracy["accuracy"]["value"], accuracy["accuracy drop"]["verdict"]) == (100.0, "held")
    assert {row["provenance"] for axis in ("accuracy", "parity", "memory") for row in rows_of(manifest, axis).values()} == {"emulated"}
    assert {row["verdict"] for row in rows_of(manifest, "parity").values()} <= {"held", None}
    assert rows_of(manifest, "memory")["peak of a fresh process"]["verdict"] == "held"


def test_latency_is_unproven_without_a_compiler_and_never_a_time_under_emulation(saturating: Project) -> None:
    (row,) = rows_of(manifest_of(saturating.folder / "build"), "latency").values()

    assert (row["value"], row["verdict"], row["provenance"]) == (None, "unproven", "predicted")
    assert "no-compiler" in row["reason"]


def test_same_file_is_caught_where_sums_saturate(saturating: Project) -> None:
    done = saturating.run("validate", "build", "--profile", "rpi4", "--profile", "x86-avx2", "--json", "--quiet")

    assert done.returncode == 10, done.stderr
    four, old_pc = json.loads(done.stdout)
    assert (four["verdict"], four["exit_code"]) == ("unproven", 0)  # latency has no figure
    assert (old_pc["verdict"], old_pc["exit_code"]) == ("broken", 10)
    assert rows_of(old_pc, "accuracy")["accuracy drop"]["verdict"] == "broken"
    assert rows_of(old_pc, "accuracy")["accuracy"]["value"] < 70
    parity = rows_of(old_pc, "parity")
    assert {parity[name]["verdict"] for name in ("cosine to a plain session", "label agreement")} == {"broken"}
    if can_emulate(load_profile("x86-avx2")):  # else this machine is one
        assert "Haswell" in parity["label agreement"]["reason"]
    assert rows_of(four, "accuracy")["accuracy drop"]["verdict"] == "held"
    assert [one["components"] for one in (four, old_pc)] == [four["components"]] * 2


def test_built_for_that_pc_only_the_node_that_saturates_gets_seven_bits(saturating: Project) -> None:
    saturating.passes("compress", "--profile", "x86-avx2", "--recipe", "int8.toml", "--out", "build-x86-avx2", "--quiet")

    manifest = manifest_of(saturating.folder / "build-x86-avx2")
    assert list(manifest["program"]["reduced_range"]) == ["classify"]
    assert "64,770" in manifest["program"]["reduced_range"]["classify"]
    assert rows_of(manifest, "accuracy")["accuracy"]["value"] == 100
    assert {row["verdict"] for row in rows_of(manifest, "parity").values()} <= {"held", None}
    assert "classify" in (saturating.folder / "build-x86-avx2" / "report.html").read_text(encoding="utf-8")


def test_report_on_a_terminal_tells_it_too(saturating: Project) -> None:
    done = saturating.run("validate", "build", "--profile", "x86-avx2")

    assert done.returncode == 10
    assert "✗ broken" in done.stdout
    assert "latency is predicted for ARM cores only" in done.stdout or not can_emulate(load_profile("x86-avx2"))


# --- edgepipe devices


@pytest.fixture
def anywhere(emulation_cache: Path, tmp_path: Path) -> Project:
    """The command line in an empty folder, with emulation set up."""
    (tmp_path / "empty").mkdir()
    return Project(tmp_path / "empty", emulation_cache)


def test_devices_are_listed_with_what_their_figures_are_worth(anywhere: Project) -> None:
    listed = {entry["profile"]: entry for entry in json.loads(anywhere.passes("devices", "list", "--json").stdout)}

    assert listed["host"]["axes"]["latency"] == "measured"
    assert (listed["rpi4"]["by"], listed["rpi4"]["axes"]["accuracy"]) == ("emulated", "emulated")
    table = anywhere.passes("devices", "list").stdout
    assert all(name in table for name in listed)


def test_doctor_names_what_is_missing_and_the_command_that_gets_it(anywhere: Project, tmp_path: Path) -> None:
    told = anywhere.with_cache(tmp_path / "nothing").passes("devices", "doctor", "rpi4").stdout

    assert "rpi4: accuracy unproven" in told
    assert "→ edgepipe devices setup rpi4" in told
    assert "edgepipe devices setup" not in anywhere.passes("devices", "doctor", "rpi4").stdout
    assert "latency unproven" in anywhere.passes("devices", "doctor", "rpi4", env=NO_COMPILER).stdout
    everything = json.loads(anywhere.passes("devices", "doctor", "--json").stdout)
    assert {"rpi4", "x86-avx2", "browser-wasm"} <= {entry["profile"] for entry in everything}


def test_device_is_shown_with_the_cpu_that_stands_for_it(anywhere: Project) -> None:
    assert "cortex-a72" in anywhere.passes("devices", "show", "rpi4").stdout
    shown = json.loads(anywhere.passes("devices", "show", "jetson-orin", "--json").stdout)
    assert (shown["emulated_cpu"], shown["nearest_only"]) == ("cortex-a76", True)


def test_set_up_needs_no_network_the_second_time(anywhere: Project) -> None:
    names = [name for name in ("rpi4", "x86-avx2") if can_emulate(load_profile(name))]
    setup = [*ISOLATED, sys.executable, "-m", "edgepipe", "devices", "setup", *names]

    done = anywhere.execute(setup)

    assert done.returncode == 0, done.stderr
    assert all(f"{name}: emulation is set up" in done.stdout for name in names)


def test_set_up_without_a_network_says_so_and_leaves_nothing(anywhere: Project, tmp_path: Path) -> None:
    fresh = anywhere.with_cache(tmp_path / "fresh")

    done = fresh.execute([*ISOLATED, sys.executable, "-m", "edgepipe", "devices", "setup", "rpi4"])

    assert_one_message(done, 5, ("network",))
    assert [path.name for path in (fresh.cache / "devices").iterdir()] == ["downloads"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("setup", "rpi44"), ('unknown profile "rpi44"', 'did you mean "rpi4"?')),
        (("setup", "host"), ("nothing is to be set up",)),
        (("setup", "x86-vnni"), ()),
        (("show", "nothing"), ("unknown profile",)),
        (("setup",), ("PROFILE",)),
    ],
)
def test_wrong_use_is_refused(anywhere: Project, arguments: tuple[str, ...], says: tuple[str, ...]) -> None:
    anywhere.refuses("devices", *arguments, code=2, says=says)


def test_cache_that_cannot_be_written_is_told(anywhere: Project, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)

    done = anywhere.with_cache(locked).run("devices", "setup", "rpi4", before=without_override)

    assert_one_message(done, 2, ("cannot be written",))


def test_disk_that_runs_full_leaves_no_half_set_up(anywhere: Project, user_cache: Path, tmp_path: Path) -> None:
    devices = tmp_path / "full" / "devices"
    devices.mkdir(parents=True)
    script = (
        f'mount -t tmpfs -o size=4m tmpfs "{devices}" || exit 99; ln -s "{user_cache}/devices/downloads" "{devices}/downloads"; '
        f'"{sys.executable}" -m edgepipe devices setup rpi4; code=$?; ls -A "{devices}" > "{tmp_path}/left"; exit $code'
    )
    mounting = ["unshare", "--mount", *ISOLATED[2:]]

    done = anywhere.with_cache(tmp_path / "full").execute([*mounting, "sh", "-c", script])

    assert_one_message(done, 6, ("the disk is full",))
    assert (tmp_path / "left").read_text().split() == ["downloads"]


def test_validate_refuses_an_emulation_that_was_changed(saturating: Project, emulation: Path, tmp_path: Path) -> None:
    tampered = tmp_path / "cache"
    (tampered / "devices").mkdir(parents=True)
    for home in (folder_of("emulator"), folder_of("arm64")):
        copy(home.resolve(), tampered / "devices" / home.name)
    (tampered / "devices" / folder_of("arm64").name / "root" / "usr" / "lib" / "python3.11" / "base64.py").write_text("raise SystemExit")
    shutil.copytree(emulation / "store", tampered / "store")

    saturating.with_cache(tampered).refuses("validate", "build", "--profile", "rpi4", code=5, says=("changed since", "devices setup rpi4"))


def test_host_profile_is_measured_here_whatever_is_set_up(emulation: Path) -> None:
    assert runner_for(host_profile()).name == "local"


def test_kernel_costs_are_counted_and_say_that_dot_products_pay(emulation_cache: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, own_devices(emulation_cache, tmp_path / "cache"))

    table = json.loads(project.passes("devices", "measure", "rpi5", "--out", "costs.json", "--json").stdout)

    assert (table["source"], table["cpu"]) == ("counted", "cortex-a76")
    times = {(entry["kernel"], entry["precision"], *entry["shape"]): entry["ms"] for entry in table["entries"]}
    assert all(ms > 0 for ms in times.values())
    assert times["matmul", "float32", 128, 384, 1536] > 2 * times["matmul", "int8-dynamic", 128, 384, 1536]
    shipped = json.loads(project.passes("devices", "show", "rpi4", "--json").stdout)["costs"]["entries"]
    there = {(entry["kernel"], entry["precision"], *entry["shape"]): entry["ms"] for entry in shipped}
    assert there["matmul", "float32", 128, 384, 1536] < 2 * there["matmul", "int8-dynamic", 128, 384, 1536]
    assert json.loads((tmp_path / "costs.json").read_text(encoding="utf-8")) == table
