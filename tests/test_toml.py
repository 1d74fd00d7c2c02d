"""The TOML loader: every error names file, line, key and the nearest valid key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepipe.config import Budget, Project, Recipe, load_project, load_recipe
from edgepipe.errors import UsageError
from edgepipe.toml import key_lines, located, parse, read_toml

BARE_KEY = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=8)
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)


def write(folder: Path, text: str, name: str = "edgepipe.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_read_gives_the_data_of_a_valid_file(tmp_path: Path) -> None:
    assert read_toml(write(tmp_path, 'model = "m"\n[budget]\nmax_size_ratio = 0.5\n')) == {"model": "m", "budget": {"max_size_ratio": 0.5}}


def test_missing_file_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file") as caught:
        read_toml(tmp_path / "none.toml")
    assert caught.value.where == str(tmp_path / "none.toml")


def test_folder_in_place_of_a_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_toml(tmp_path)


def test_file_that_is_not_utf8_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "edgepipe.toml"
    path.write_bytes('model = "é"'.encode("latin-1"))

    with pytest.raises(UsageError, match="cannot be read"):
        read_toml(path)


def test_broken_syntax_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'model = "m"\nout = \nprofiles = []\n')

    with pytest.raises(UsageError, match="not valid TOML") as caught:
        read_toml(path)
    assert caught.value.where == f"{path}:2"


def test_syntax_that_breaks_at_the_end_names_the_last_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'model = "m"\nout = [')

    with pytest.raises(UsageError) as caught:
        read_toml(path)
    assert caught.value.where == f"{path}:2"


def test_unknown_key_names_file_line_key_and_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, '# a comment\nmodel = "m"\n\n[budget]\nmax_size_ratio = 0.3\nmax_latncy_ms = 10\n')

    with pytest.raises(UsageError) as caught:
        load_project(path)
    assert str(caught.value) == f'{path}:6: unknown key "max_latncy_ms" in [budget]\n  → did you mean "max_latency_ms"?'


def test_unknown_key_at_the_top_names_no_table(tmp_path: Path) -> None:
    path = write(tmp_path, 'modle = "m"\n')

    with pytest.raises(UsageError) as caught:
        load_project(path)
    assert (caught.value.what, caught.value.where, caught.value.fix) == ('unknown key "modle"', f"{path}:1", 'did you mean "model"?')


def test_unknown_key_in_pyproject_is_found_under_its_table(tmp_path: Path) -> None:
    path = write(tmp_path, '[project]\nname = "x"\n\n[tool.edgepipe]\nmodel = "m"\n[tool.edgepipe.data]\nlabell = "a"\n', "pyproject.toml")

    with pytest.raises(UsageError) as caught:
        load_project(path)
    assert (caught.value.where, caught.value.fix) == (f"{path}:7", 'did you mean "label"?')
    assert "[tool.edgepipe.data]" in caught.value.what


def test_unknown_key_in_the_second_step_names_its_own_line(tmp_path: Path) -> None:
    path = write(tmp_path, '[[step]]\npass = "export-onnx"\n\n[[step]]\npass = "optimize-graph"\nreson = "x"\n')

    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert (caught.value.where, caught.value.fix) == (f"{path}:6", 'did you mean "reason"?')


def test_missing_key_names_the_table_it_belongs_to(tmp_path: Path) -> None:
    path = write(tmp_path, '[[step]]\nreason = "because"\n')

    with pytest.raises(UsageError, match='missing key "pass"') as caught:
        load_recipe(path)
    assert caught.value.where == f"{path}:1"


def test_wrong_type_names_the_line_and_shows_the_value(tmp_path: Path) -> None:
    path = write(tmp_path, '[budget]\nmax_size_ratio = "small"\n')

    with pytest.raises(UsageError, match=r'"max_size_ratio" in \[budget\].*small') as caught:
        load_project(path)
    assert caught.value.where == f"{path}:2"


def test_error_from_a_flag_names_the_flag() -> None:
    with pytest.raises(UsageError) as caught:
        parse(Budget, {"max_size_ratio": -1}, source="--budget")
    assert caught.value.where == "--budget"


def test_key_inside_an_inline_table_is_located_at_its_statement(tmp_path: Path) -> None:
    path = write(tmp_path, 'model = "m"\nbudget = { max_size_ratio = 0.3, max_latncy_ms = 1 }\n')

    with pytest.raises(UsageError) as caught:
        load_project(path)
    assert caught.value.where == f"{path}:2"


def test_sub_table_of_an_array_of_tables_belongs_to_its_last_entry() -> None:
    text = '[[step]]\npass = "a"\n[step.options]\nx = 1\n[[step]]\npass = "b"\n[step.options]\nx = 2\n'

    lines = key_lines(text)

    assert (lines["step", "0", "options", "x"], lines["step", "1", "options", "x"]) == (4, 8)


@pytest.mark.parametrize(
    "value",
    [
        '"""\nmodel = 1\n[budget]\n"""',
        "'''\nmodel = 1\n[budget]\n'''",
        "[\n  [1, 2],\n  [3]\n]",
        '[\n  "[budget]",\n  "a = b"\n]',
        "{ a = 1 }",
    ],
    ids=["basic-string", "literal-string", "nested-array", "array-of-strings", "inline-table"],
)
def test_what_looks_like_a_key_or_table_inside_a_value_is_none(value: str) -> None:
    text = f"first = {value}\nsecond = 2\n"

    assert key_lines(text) == {("first",): 1, ("second",): text.count("\n")}


def test_located_falls_back_to_the_table_then_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a = 1\n[budget]\n")

    assert located(path, ("budget", "missing")) == f"{path}:2"
    assert located(path, ("nowhere",)) == str(path)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[tuple[str, ...], int]]:
    """A TOML text of tables and arrays of tables, and the line of every key and header in it."""
    lines: list[str] = []
    expected: dict[tuple[str, ...], int] = {}

    def add_keys(table: tuple[str, ...]) -> None:
        for key in draw(st.lists(BARE_KEY, unique=True, max_size=4)):
            lines.extend(draw(st.lists(st.sampled_from(["", "# note = 1", "  # [x]"]), max_size=2)))
            expected[*table, key] = len(lines) + 1
            shown = draw(st.sampled_from([key, f'"{key}"', f"  {key}"]))
            lines.extend(f"{shown} = {draw(VALUES)}".split("\n"))

    add_keys(())
    for name in draw(st.lists(BARE_KEY.map("t-{}".format), unique=True, max_size=3)):
        if draw(st.booleans()):
            expected[name,] = len(lines) + 1
            lines.append(f"[{name}]")
            add_keys((name,))
        else:
            for index in range(draw(st.integers(1, 3))):
                expected[name, str(index)] = len(lines) + 1
                lines.append(f"[[ {name} ]]  # entry")
                add_keys((name, str(index)))
    return "\n".join(lines) + "\n", expected


VALUES = st.one_of(
    st.integers().map(str),
    TEXT.map(lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'),
    st.sampled_from(['"""\nx = 1\n[y]\n"""', "[\n  1,\n  2\n]", "[[1], [2]]", "true", "'''one'''", "[ # why\n[1]\n]"]),
)


@given(documents())
def test_every_key_of_any_document_is_found_at_its_line(document: tuple[str, dict[tuple[str, ...], int]]) -> None:
    text, expected = document

    assert key_lines(text) == expected


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_key_with_one_letter_left_out_is_recognised(tmp_path: Path, data: st.DataObject) -> None:
    valid = sorted(Budget.model_fields)
    key = data.draw(st.sampled_from(valid))
    cut = data.draw(st.integers(0, len(key) - 1))
    before = data.draw(st.integers(0, 5))
    path = write(tmp_path, "\n" * before + f"[budget]\n{key[:cut]}{key[cut + 1 :]} = 1\n")

    with pytest.raises(UsageError) as caught:
        load_project(path)

    assert (caught.value.where, caught.value.fix) == (f"{path}:{before + 2}", f'did you mean "{key}"?')


@given(st.dictionaries(BARE_KEY, st.integers(), min_size=1))
def test_no_unknown_key_is_ever_accepted(data: dict[str, Any]) -> None:
    unknown = {key: value for key, value in data.items() if key not in Project.model_fields}

    for key, value in unknown.items():
        with pytest.raises(UsageError, match="unknown key"):
            parse(Project, {key: value}, source="x")
    with pytest.raises(UsageError):
        parse(Recipe, data, source="x")
