"""Project file, recipe and the values that flags carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.config import (
    Budget,
    Recipe,
    dump_recipe,
    find_project,
    load_project,
    load_recipe,
    parse_bytes,
    parse_value,
    pass_settings,
    resolve_path,
    with_budget,
)
from edgepipe.errors import UsageError
from edgepipe.toml import parse, read_toml

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
SCALARS = st.one_of(st.booleans(), st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False), TEXT)
OPTIONS = st.dictionaries(
    TEXT.filter(bool),
    st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)), max_leaves=6),
    max_size=3,
)
STEPS = st.fixed_dictionaries({"pass": TEXT, "reason": TEXT, "options": OPTIONS})


def write(folder: Path, text: str, name: str = "edgepipe.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_of_the_budget_are_the_documented_ones() -> None:
    budget = Budget()

    assert (budget.max_accuracy_drop, budget.accuracy_margin, budget.max_size_ratio, budget.max_latency_ratio, budget.max_memory_ratio) == (
        1.0,
        1.0,
        0.3,
        1.0,
        0.25,
    )
    assert (budget.max_size_bytes, budget.max_latency_ms, budget.max_memory_bytes) == (None, None, None)


def test_paths_of_a_project_are_relative_to_its_file(tmp_path: Path) -> None:
    text = 'model = "models/m"\nadapters = ["a"]\nrecipe = "r.toml"\nplugins = ["p.py"]\nprofiles = ["rpi4", "mine.toml"]\n[data]\ntest = "t.csv"\n'
    path = write(tmp_path, text, "sub/edgepipe.toml")

    project = load_project(path)

    base = tmp_path / "sub"
    assert project.model == str(base / "models/m")
    assert (project.adapters, project.recipe, project.plugins) == ((str(base / "a"),), str(base / "r.toml"), (str(base / "p.py"),))
    assert project.profiles == ("rpi4", str(base / "mine.toml"))
    assert project.data.test == str(base / "t.csv")
    assert project.out == str(base / "build")


def test_cache_scheme_names_a_path_in_the_cache(tmp_path: Path, own_cache: Path) -> None:
    assert resolve_path("cache://downloads/m", tmp_path) == str(own_cache.resolve() / "downloads/m")


def test_hub_names_are_no_paths(tmp_path: Path) -> None:
    assert resolve_path("hf://org/name@main", tmp_path) == "hf://org/name@main"


def test_absolute_paths_stay(tmp_path: Path) -> None:
    assert resolve_path("/models/m", tmp_path) == "/models/m"


def test_task_may_be_written_as_its_name_alone(tmp_path: Path) -> None:
    project = load_project(write(tmp_path, 'task = "fidelity"\n'))

    assert project.task is not None
    assert (project.task.name, project.task.compare) == ("fidelity", "auto")


def test_project_is_found_in_a_folder_above(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    (tmp_path / "a/b").mkdir(parents=True)

    assert find_project(tmp_path / "a/b") == path


def test_pyproject_counts_only_with_our_table(tmp_path: Path) -> None:
    ours = write(tmp_path, '[tool.edgepipe]\nmodel = "m"\n', "pyproject.toml")
    write(tmp_path, "[tool.ruff]\n", "inner/pyproject.toml")

    assert find_project(tmp_path / "inner") == ours


def test_broken_pyproject_of_somebody_else_is_passed_over(tmp_path: Path) -> None:
    ours = write(tmp_path, "")
    write(tmp_path, "not [ toml", "inner/pyproject.toml")

    assert find_project(tmp_path / "inner") == ours


def test_project_in_pyproject_is_read_from_its_table(tmp_path: Path) -> None:
    path = write(tmp_path, '[project]\nname = "other"\n[tool.edgepipe]\nmodel = "m"\n', "pyproject.toml")

    assert load_project(path).model == str(tmp_path / "m")


def test_sizes_in_the_budget_may_carry_units(tmp_path: Path) -> None:
    project = load_project(write(tmp_path, '[budget]\nmax_size_bytes = "20MB"\nmax_memory_bytes = 1024\n'))

    assert (project.budget.max_size_bytes, project.budget.max_memory_bytes) == (20_000_000, 1024)


@pytest.mark.parametrize("size", ["20 zebras", "MB", "", "1e999MB", "nan", "12 KMB"])
def test_size_that_is_none_is_a_usage_error(tmp_path: Path, size: str) -> None:
    path = write(tmp_path, f'[budget]\nmax_size_bytes = "{size}"\n')

    with pytest.raises(UsageError, match="is no size; write 20MB or 16MiB") as caught:
        load_project(path)
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("key", ["max_size_ratio", "max_latency_ms", "max_size_bytes"])
def test_budget_of_nothing_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match=key):
        with_budget(Budget(), (f"{key}=0",))


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " ", "  "]), st.booleans())
def test_parse_bytes_multiplies_whole_numbers_by_their_unit(number: int, unit: str, space: str, lower: bool) -> None:
    text = f"{number}{space}{unit.lower() if lower else unit}"

    assert parse_bytes(text) == number * UNITS[unit]


@given(st.floats(0.001, 1000), st.sampled_from(sorted(UNITS)))
def test_parse_bytes_rounds_fractions_to_whole_bytes(number: float, unit: str) -> None:
    found = parse_bytes(f" {number}{unit} ")

    assert isinstance(found, int)
    assert abs(found - number * UNITS[unit]) <= 0.5


@given(st.text(max_size=12))
def test_parse_bytes_gives_a_size_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(parse_bytes(text), int)
    except ValueError as error:
        assert "is no size" in str(error)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("true", True), ('"x"', "x"), ("20MB", "20MB"), ("bare words", "bare words"), ("[1, 2]", [1, 2]), ("", "")],
)
def test_values_of_flags_read_as_toml_would(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_budget_flag_changes_one_limit_and_keeps_the_others() -> None:
    budget = with_budget(Budget(max_size_ratio=0.5), ("max_size_bytes=20MB", "max_accuracy_drop = 0.25"))

    assert (budget.max_size_bytes, budget.max_accuracy_drop, budget.max_size_ratio) == (20_000_000, 0.25, 0.5)


def test_unknown_budget_flag_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        with_budget(Budget(), ("max_latncy_ms=3",))
    assert (caught.value.where, caught.value.fix) == ("--budget", 'did you mean "max_latency_ms"?')


@pytest.mark.parametrize("read", [lambda text: with_budget(Budget(), (text,)), lambda text: pass_settings((text,))])
def test_flag_without_a_value_is_a_usage_error(read: Any) -> None:
    with pytest.raises(UsageError, match="is not"):
        read("max_size_bytes")


def test_set_without_an_option_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"PASS\.OPTION=VALUE"):
        pass_settings(("quantize-dynamic=3",))


def test_set_flags_are_gathered_by_pass() -> None:
    found = pass_settings(("quantize-dynamic.per_channel=false", "quantize-dynamic.reduce_range=true", "merge-lora.weights=[0.5]"))

    assert found == {"quantize-dynamic": {"per_channel": False, "reduce_range": True}, "merge-lora": {"weights": [0.5]}}


def test_recipe_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="step"):
        load_recipe(write(tmp_path, "step = []\n"))


def test_recipe_keeps_the_order_of_its_steps(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, '[[step]]\npass = "export-onnx"\n[[step]]\npass = "quantize-dynamic"\n[step.options]\nper_channel = false\n')
    )

    assert [step.name for step in recipe.steps] == ["export-onnx", "quantize-dynamic"]
    assert recipe.steps[1].options == {"per_channel": False}


@given(st.lists(STEPS, min_size=1, max_size=3), st.lists(TEXT, max_size=3))
def test_any_recipe_reads_back_as_it_was_dumped(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[str, Any]], left_out: list[str]
) -> None:
    recipe = parse(Recipe, {"step": steps, "left_out": left_out}, source="test")
    path = write(tmp_path_factory.getbasetemp(), dump_recipe(recipe), "recipe.toml")

    assert load_recipe(path) == recipe
    assert read_toml(path)["step"][0]["pass"] == steps[0]["pass"]
