"""`profiles` and `passes`: what there is, with its facts and options; a user's own beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.command import manifest_of

if TYPE_CHECKING:
    from tests.e2e.command import Project

MINE = (
    'extends = "rpi4"\nname = "mine"\ntitle = "My board"\n\n[memory]\nram_bytes = 1000000000\n\n[sources]\n"memory.ram_bytes" = "the box"\n'
)
SHIPPED = {"rpi3", "rpi4", "rpi5", "x86-avx2", "x86-vnni", "browser-wasm", "host"}


def test_list_names_every_profile(small: Project) -> None:
    found = json.loads(small.passes("profiles", "list", "--json").stdout)

    assert {entry["name"] for entry in found} > SHIPPED
    assert [entry["runs_here"] for entry in found if entry["name"] == "host"] == [True]
    assert all(name in small.passes("profiles", "list").stdout for name in SHIPPED)


def test_every_shipped_profile_shows_facts_with_sources(small: Project) -> None:
    for entry in json.loads(small.passes("profiles", "list", "--json").stdout):
        shown = small.passes("profiles", "show", entry["name"]).stdout
        assert "cpu.isa" in shown and "memory.ram_bytes" in shown


def test_own_profile_extends_another_and_builds(small: Project) -> None:
    (small.folder / "mine.toml").write_text(MINE)

    checked = small.passes("profiles", "check", "mine.toml").stdout
    shown = json.loads(small.passes("profiles", "show", "./mine.toml", "--json").stdout)
    small.passes("compress", "--profile", "mine.toml", "--quiet")

    assert "mine is a valid profile" in checked
    assert shown["memory"]["ram_bytes"] == 1_000_000_000 and shown["cpu"]["model"] == "cortex-a72"
    assert shown["sources"]["memory.ram_bytes"] == "the box"
    assert manifest_of(small.folder / "build")["profile"] == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('extends = "rpi44"\nname = "mine"\n', ("mine.toml", 'extends unknown profile "rpi44"', 'did you mean "rpi4"?')),
        ('extends = "mine.toml"\nname = "mine"\n', ("mine.toml", "circle")),
        ('name = "mine"\n', ("mine.toml", "missing key")),
        (MINE.replace("1000000000", "-1"), ("mine.toml:6:", "ram_bytes", "greater than 0")),
        (MINE + "[cpuu]\ncores = 1\n", ("mine.toml:10:", 'unknown key "cpuu"', 'did you mean "cpu"?')),
        (MINE + '[cpu]\narch = "mips"\n', ("mine.toml:11:", "arch", "mips")),
        ("extends = 5\nname = 'mine'\n", ("mine.toml:1:", "extends")),
        (MINE.replace('name = "mine"', 'name = "../mine"'), ("mine.toml:2:", "name")),
    ],
)
def test_wrong_profile_is_refused_with_its_line(small: Project, text: str, says: tuple[str, ...]) -> None:
    (small.folder / "mine.toml").write_text(text)

    small.refuses("profiles", "check", "mine.toml", code=2, says=says)


def test_several_profiles_give_a_folder_each(small: Project) -> None:
    found = json.loads(small.passes("compress", "--profile", "rpi4", "--profile", "host", "--out", "all", "--json").stdout)

    assert [one["profile"] for one in found] == ["rpi4", "host"]
    assert manifest_of(small.folder / "all" / "rpi4")["profile"] == "rpi4"
    assert manifest_of(small.folder / "all" / "host")["profile"] == "host"


def test_force_with_several_profiles_replaces_each(small: Project) -> None:
    both = ("compress", "--profile", "rpi4", "--profile", "rpi5", "--quiet")
    small.passes(*both)

    small.refuses(*both, code=2, says=("build/rpi4", "exists"))
    small.passes(*both, "--force")


def test_profile_named_twice_is_refused(small: Project) -> None:
    (small.folder / "mine.toml").write_text(MINE.replace('"mine"', '"rpi4"'))

    small.refuses("compress", "--profile", "rpi4", "--profile", "mine.toml", code=2, says=('two profiles are named "rpi4"',))


def test_passes_are_listed_and_shown_with_their_options(small: Project) -> None:
    found = {entry["name"]: entry for entry in json.loads(small.passes("passes", "list", "--json").stdout)}

    assert {"merge-lora", "prune-heads", "prune-ffn", "export-onnx", "optimize-graph", "quantize-dynamic"} <= set(found)
    assert all(entry["summary"] and entry["checks"] for entry in found.values())
    shown = json.loads(small.passes("passes", "show", "quantize-dynamic", "--json").stdout)
    assert shown["options"]["per_channel"]["default"] is True
    text = small.passes("passes", "show", "quantize-dynamic").stdout
    assert "option   per_channel = true" in text and "check    loads" in text
