"""The tasks ocr and voice-activity, and fidelity of programs that read, against cases worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.config import Task
from edgepipe.edit_distance import code_points
from edgepipe.errors import DataError, UsageError
from edgepipe.gaps import gap_of, summary
from edgepipe.tasks import load_task
from edgepipe.tasks.voice_activity import intervals, speech_steps


def reading(text: str) -> list[dict[str, np.ndarray]]:
    lines = text.count("\n")
    return [{"text": code_points(text), "boxes": np.zeros((lines, 4, 2), np.float32), "scores": np.ones(lines, np.float32)}]


def heard(*probabilities: float) -> list[dict[str, np.ndarray]]:
    return [{"output": np.array(probabilities, np.float32).reshape(-1, 1, 1)}]


def points(name: str, rows: list[tuple[Any, Any, dict[str, Any]]]) -> float:
    spec = load_task(Task(name=name))
    return spec.metric(np.array([spec.score(outputs, reference, sample, ()) for outputs, reference, sample in rows]))


def test_character_accuracy_is_over_all_characters_and_not_over_images() -> None:
    rows = [
        (reading("abcdefgh\n"), [], {"image": "a.png", "label": "abcdefgh"}),  # 8 of 8
        (reading("xy\n"), [], {"image": "b.png", "label": "ab"}),  # 0 of 2
    ]

    assert points("ocr", rows) == pytest.approx(80.0)


def test_white_space_is_made_equal_and_a_missing_space_is_one_mistake() -> None:
    assert points("ocr", [(reading("one\ntwo\n"), [], {"label": "one two"})]) == 100.0
    assert points("ocr", [(reading("onetwo\n"), [], {"label": "one two"})]) == pytest.approx(100 * 6 / 7)


def test_reader_that_invents_more_than_there_is_has_no_accuracy() -> None:
    assert points("ocr", [(reading("nothing of this\n"), [], {"label": "x"})]) == 0.0


def test_image_without_a_text_is_a_data_error() -> None:
    check = load_task(Task(name="ocr")).check_labels
    assert check is not None

    with pytest.raises(DataError, match="no text to compare with"):
        check([{"image": "a.png", "label": " \n"}], (), "test.jsonl")


def test_model_that_gives_no_text_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="gives no text"):
        points("ocr", [(heard(0.1), [], {"label": "x"})])


def test_what_the_uncompressed_models_read_is_the_truth_for_fidelity() -> None:
    assert points("fidelity", [(reading("abcd\n"), reading("abce\n"), {}), (reading("ab\n"), reading("ab\n"), {})]) == pytest.approx(
        100 * 5 / 6
    )


def test_readings_differ_by_their_characters() -> None:
    gaps = [gap_of(*pair) for pair in ((reading("abcd\n")[0], reading("abce\n")[0]), (reading("efgh\n")[0], reading("efgh\n")[0]))]

    assert summary(gaps) == {"n": 2, "cosine": 7 / 8, "max_abs": 0.25, "label_agreement": 0.5}


def test_speech_is_scored_step_by_step() -> None:
    sample = {"audio": "a.wav", "label": "1.0-2.0", "step_seconds": 0.5}  # steps 2 and 3 of 6
    rows = [(heard(0.1, 0.7, 0.9, 0.4, 0.2, 0.1), [], sample)]  # calls 1 and 2

    assert points("voice-activity", rows) == pytest.approx(100 * 2 / 4)


def test_silence_rightly_heard_is_no_mistake() -> None:
    assert points("voice-activity", [(heard(0.1, 0.2), [], {"audio": "a.wav", "label": "none", "step_seconds": 0.5})]) == 100.0


@given(st.integers(0, 50), st.integers(1, 30), st.sampled_from([0.01, 0.032, 0.5]))
def test_steps_whose_middle_lies_in_a_span_are_speech(start: int, length: int, seconds: float) -> None:
    found = speech_steps([(start * seconds, (start + length) * seconds)], 60, seconds)

    assert np.flatnonzero(found).tolist() == list(range(start, min(60, start + length)))


def test_intervals_are_seconds() -> None:
    assert intervals("0.50-1.92 2.4-3") == [(0.5, 1.92), (2.4, 3.0)]
    assert intervals("none") == []


@pytest.mark.parametrize("label", ["", "1-", "2.0-1.0", "1,0-2,0", "speech", "1-2 3", "-1-2"])
def test_label_that_does_not_say_where_speech_is_is_a_data_error(label: str) -> None:
    check = load_task(Task(name="voice-activity")).check_labels
    assert check is not None

    with pytest.raises(DataError, match="does not say where speech is") as caught:
        check([{"audio": "a.wav", "label": label}], (), "test.jsonl")
    assert caught.value.where == "test.jsonl: a.wav"


def test_scores_of_classes_are_no_voice_activity() -> None:
    outputs = [{"logits": np.zeros((1, 4), np.float32)}]

    with pytest.raises(UsageError, match="one probability a step"):
        points("voice-activity", [(outputs, [], {"audio": "a.wav", "label": "1-2", "step_seconds": 1})])
