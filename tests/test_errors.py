"""One tree of errors: three parts, an exit code each."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from edgepipe import errors
from edgepipe.errors import AXIS_EXIT_CODES, UNPROVEN_EXIT_CODE, DataError, EdgepipeError, ModelError, OperatorError, nearest, reading

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgepipeError)]
CODES = {
    "EdgepipeError": 1, "UsageError": 2, "InputError": 3, "ModelError": 3, "DataError": 3, "PassError": 4, "DeviceError": 5, "ResourceError": 6,
    "OperatorError": 15, "Interrupted": 130,
}  # fmt: skip


def test_every_kind_of_error_has_the_documented_exit_code() -> None:
    assert {kind.__name__: kind.exit_code for kind in KINDS} == CODES


def test_tree_in_the_docstring_is_the_whole_tree() -> None:
    drawn = dict(re.findall(r"(\w*Error|Interrupted) +(\d+)", errors.__doc__ or ""))

    assert drawn == {name: str(code) for name, code in CODES.items() if name not in ("ModelError", "DataError")}
    assert "ModelError" in (errors.__doc__ or "")
    assert "DataError" in (errors.__doc__ or "")


def test_axes_that_break_have_codes_of_their_own() -> None:
    assert [*AXIS_EXIT_CODES.values(), UNPROVEN_EXIT_CODE] == [10, 11, 12, 13, 14, 15, 16]
    assert OperatorError.exit_code == AXIS_EXIT_CODES["operators"]


def test_text_shows_where_what_and_what_to_do() -> None:
    error = ModelError("the weights are missing", where="model/", fix="save them again")

    assert str(error) == "model/: the weights are missing\n  → save them again"


def test_text_leaves_out_what_is_not_known() -> None:
    assert str(ModelError("the weights are missing")) == "the weights are missing"


@pytest.mark.parametrize("kind", KINDS)
def test_errors_cross_a_process_boundary_whole(kind: type[EdgepipeError]) -> None:
    error = kind("what", where="where", fix="fix")

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is kind
    assert (copy.what, copy.where, copy.fix) == ("what", "where", "fix")


def test_json_has_the_documented_keys() -> None:
    error = ModelError("what", where="where", fix="fix")

    assert error.to_json() == {"error": {"code": 3, "what": "what", "where": "where", "fix": "fix"}}


def test_nearest_names_the_valid_name_that_was_meant() -> None:
    assert nearest("max_latncy_ms", ["max_latency_ms", "max_size_bytes"]) == 'did you mean "max_latency_ms"?'


def test_nearest_lists_the_valid_names_when_none_is_near() -> None:
    assert nearest("zzz", ["rpi5", "rpi4"]) == "valid: rpi4, rpi5"


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file") as caught, reading(DataError):
        (tmp_path / "none.csv").read_text()
    assert caught.value.where == str(tmp_path / "none.csv")
