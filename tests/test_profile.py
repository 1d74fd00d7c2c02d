"""Profiles as data: facts with sources, extending, and whether this machine is of a profile's kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepipe.errors import UsageError
from edgepipe.profile import Cpu, Profile, host_profile, load_profile, profile_names, runs_here

OWN = """
name = "board"
title = "A board"
[cpu]
model = "cortex-a53"
arch = "aarch64"
isa = ["asimd"]
cores = 4
clock_mhz = 1200
[memory]
ram_bytes = 1073741824
[runtime]
threads = 4
[reach]
runner = "ssh"
[sources]
cpu = "data sheet"
memory = "data sheet"
runtime = "ours"
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def cpu(arch: str, *isa: str) -> Cpu:
    return Cpu(model="x", arch=arch, isa=isa, cores=1, clock_mhz=1000)


def test_profile_of_the_users_own_is_read_by_path(tmp_path: Path) -> None:
    profile = load_profile(str(write(tmp_path, OWN)))

    assert (profile.name, profile.cpu.clock_mhz, profile.memory.bandwidth_gb_s) == ("board", 1200, None)


def test_facts_are_named_by_table_and_leave_out_what_is_not_stated(tmp_path: Path) -> None:
    facts = load_profile(str(write(tmp_path, OWN))).facts()

    assert facts["cpu.isa"] == ["asimd"]
    assert facts["memory.ram_bytes"] == 1073741824
    assert "memory.bandwidth_gb_s" not in facts


def test_fact_without_a_source_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, OWN.replace('cpu = "data sheet"', '"cpu.isa" = "data sheet"'))

    with pytest.raises(UsageError) as caught:
        load_profile(str(path))
    assert caught.value.where == str(path)
    assert caught.value.what.startswith("no source for cpu.arch, cpu.clock_mhz, cpu.cores, cpu.model;")


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UsageError, match='unknown profile "rpi44"') as caught:
        load_profile("rpi44")
    assert caught.value.fix is not None
    assert "rpi4" in caught.value.fix


def test_unknown_key_names_file_line_and_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, OWN.replace("clock_mhz", "clock_mzh"))

    with pytest.raises(UsageError) as caught:
        load_profile(str(path))
    assert (caught.value.where, caught.value.fix) == (f"{path}:9", 'did you mean "clock_mhz"?')


def test_unknown_architecture_lists_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'aarch64', 'x86_64' or 'wasm32'"):
        load_profile(str(write(tmp_path, OWN.replace("aarch64", "riscv64"))))


def test_extending_changes_what_is_named_and_keeps_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, 'extends = "rpi4"\nname = "rpi4-8gb"\n[memory]\nram_bytes = 8589934592\n')

    profile, base = load_profile(str(path)), load_profile("rpi4")

    assert (profile.name, profile.memory.ram_bytes) == ("rpi4-8gb", 8589934592)
    assert (profile.cpu, profile.memory.bandwidth_gb_s) == (base.cpu, base.memory.bandwidth_gb_s)


def test_facts_that_an_extension_changes_are_sourced_to_it(tmp_path: Path) -> None:
    path = write(tmp_path, 'extends = "rpi4"\nname = "mine"\n[memory]\nram_bytes = 8589934592\n')

    sources = load_profile(str(path)).sources

    assert sources["memory.ram_bytes"] == "mine.toml (the user's own)"
    assert sources["memory.bandwidth_gb_s"] == load_profile("rpi4").sources["memory.bandwidth_gb_s"]


def test_extending_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path, OWN, "base.toml")

    assert load_profile(str(write(tmp_path, 'extends = "base.toml"\nname = "other"\n'))).cpu.model == "cortex-a53"


def test_extending_this_machine(tmp_path: Path) -> None:
    assert load_profile(str(write(tmp_path, 'extends = "host"\nname = "laptop"\n'))).cpu == host_profile().cpu


def test_extending_an_unknown_profile_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='extends unknown profile "rpi44"'):
        load_profile(str(write(tmp_path, 'extends = "rpi44"\n')))


@pytest.mark.parametrize("back", ["mine.toml", "./mine.toml", "../{folder}/mine.toml"])
def test_profiles_that_extend_each_other_are_refused(tmp_path: Path, back: str) -> None:
    write(tmp_path, f'extends = "{back.format(folder=tmp_path.name)}"\n', "other.toml")

    with pytest.raises(UsageError, match="in a circle"):
        load_profile(str(write(tmp_path, 'extends = "other.toml"\n')))


def test_extending_a_file_that_names_no_sources_is_a_usage_error(tmp_path: Path) -> None:
    write(tmp_path, OWN[: OWN.index("[sources]")], "base.toml")

    with pytest.raises(UsageError, match="no source for cpu"):
        load_profile(str(write(tmp_path, 'extends = "base.toml"\nname = "other"\n')))


@pytest.mark.parametrize("line", ["cpu = 3", "sources = 3", "extends = 3"])
def test_number_in_place_of_a_table_is_a_usage_error(tmp_path: Path, line: str) -> None:
    text = line if line.startswith("extends") else f'extends = "rpi4"\n{line}\n'

    with pytest.raises(UsageError):
        load_profile(str(write(tmp_path, text)))


@pytest.mark.parametrize(
    ("found", "dot_product", "saturates"),
    [
        (cpu("aarch64", "asimd"), False, False), (cpu("aarch64", "asimd", "asimddp"), True, False), (cpu("x86_64", "avx2"), False, True),
        (cpu("x86_64", "avx2", "avx_vnni"), True, False), (cpu("x86_64", "avx512f", "avx512_vnni"), True, False), (cpu("wasm32", "wasm_simd128"), False, False),
    ],
    ids=["cortex-a72", "cortex-a76", "haswell", "alder-lake", "ice-lake", "wasm"],
)  # fmt: skip
def test_int8_kernels_follow_from_the_instruction_set(found: Cpu, dot_product: bool, saturates: bool) -> None:
    assert (found.int8_dot_product, found.int8_saturates) == (dot_product, saturates)


def test_host_profile_describes_this_machine() -> None:
    profile = host_profile()

    assert profile.memory.ram_bytes > 0
    assert profile.cpu.cores == profile.runtime.threads
    assert runs_here(profile)


def test_profile_with_this_machines_features_runs_here() -> None:
    assert runs_here(host_profile().model_copy(update={"name": "twin"}))


@pytest.mark.parametrize("name", ["rpi4", "browser-wasm"])
def test_device_of_another_kind_does_not_run_here(name: str) -> None:
    assert not runs_here(load_profile(name))


def test_profile_that_lacks_a_deciding_feature_does_not_run_here() -> None:
    host = host_profile()
    flipped = set(host.cpu.isa) ^ {"avx512_vnni", "asimddp"}
    other = host.model_copy(update={"name": "older", "cpu": host.cpu.model_copy(update={"isa": tuple(flipped)})})

    assert not runs_here(other)


@pytest.mark.parametrize(("runner", "here"), [("local", True), ("ssh", True), ("adb", False), ("browser", False)])
def test_phones_and_browsers_are_more_than_their_cpu(runner: str, here: bool) -> None:
    """A board that is reached over ssh may be this very machine; a phone or a tab is not."""
    host = host_profile()
    remote = host.model_copy(update={"name": "remote", "reach": host.reach.model_copy(update={"runner": runner})})

    assert runs_here(remote) is here


def test_profile_file_cannot_pass_for_the_host(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "rpi4"\nname = "host"\ntitle = "a Pi that would be this machine"\n')

    with pytest.raises(UsageError, match="this machine, whatever it is") as caught:
        load_profile(str(path))
    assert caught.value.where == f"{path}:2"


def test_names_hold_the_shipped_profiles_and_the_host() -> None:
    assert {"rpi4", "rpi5", "x86-avx2", "host"} <= set(profile_names())


def test_profiles_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        host_profile().name = "other"


def test_profile_needs_all_its_tables() -> None:
    with pytest.raises(ValueError, match="cpu"):
        Profile.model_validate({"name": "x", "title": "x", "sources": {}})
