"""The shipped profiles: every one loads, and every fact says where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgepipe.operators import support_table
from edgepipe.profile import Profile, load_profile
from edgepipe.resources import resource
from edgepipe.toml import read_toml

FILES = sorted(resource("profiles").glob("*.toml"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def profile(path: Path) -> Profile:
    return load_profile(path.stem)


def test_there_are_profiles() -> None:
    assert {"rpi4", "rpi5", "x86-avx2", "x86-vnni", "browser-wasm"} <= {path.stem for path in FILES}


def test_profile_is_named_after_its_file(profile: Profile, path: Path) -> None:
    assert profile.name == path.stem
    assert profile.title


def test_every_fact_has_a_source_that_can_be_looked_up(profile: Profile) -> None:
    for fact in profile.facts():
        source = profile.sources.get(fact) or profile.sources[fact.split(".")[0]]
        assert re.search(r"https?://|edgepipe pins|export/operators/make\.py", source), f"{profile.name}: {fact}"


def test_every_source_belongs_to_a_stated_fact(profile: Profile) -> None:
    known = set(profile.facts()) | {fact.split(".")[0] for fact in profile.facts()}

    assert set(profile.sources) <= known


def test_threads_fit_the_cores(profile: Profile) -> None:
    assert 1 <= profile.runtime.threads <= profile.cpu.cores


def test_operator_table_is_shipped(profile: Profile) -> None:
    table = support_table(profile.runtime.operators)

    assert {"MatMul", "Gather", "Conv", "Softmax"} <= set(table["operators"]["ai.onnx"])


def test_features_are_in_linuxs_names_and_of_the_right_architecture(profile: Profile) -> None:
    own = {"aarch64": "asimd", "x86_64": "sse2", "wasm32": "wasm_simd128"}

    assert own[profile.cpu.arch] in profile.cpu.isa
    assert not (set(own.values()) - {own[profile.cpu.arch]}) & set(profile.cpu.isa)
    assert all(re.fullmatch(r"[a-z0-9_]+", flag) for flag in profile.cpu.isa)
    assert len(set(profile.cpu.isa)) == len(profile.cpu.isa)


def test_figures_are_of_the_right_order(profile: Profile) -> None:
    assert 500 <= profile.cpu.clock_mhz <= 6000
    assert 2**29 <= profile.memory.ram_bytes <= 2**37
    assert profile.memory.bandwidth_gb_s is None or 1 <= profile.memory.bandwidth_gb_s <= 300


def test_file_stands_on_its_own(path: Path) -> None:
    assert "extends" not in read_toml(path)
