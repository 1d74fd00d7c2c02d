"""What accuracy means, task by task, against cases worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.config import Task
from edgepipe.errors import DataError, UsageError
from edgepipe.tasks import BUILT_IN, TaskSpec, load_task, task_names
from edgepipe.tasks.token_classification import entities

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def task(name: str, **options: Any) -> TaskSpec:
    return load_task(Task(name=name, **options))


def logits(*best: int, classes: int = 5) -> list[dict[str, np.ndarray]]:
    """One run whose highest score is at these classes: [1, classes], or [1, words, classes] for several."""
    scores = np.eye(classes, dtype=np.float32)[list(best)]
    return [{"logits": scores if len(best) == 1 else scores[None]}]


def metric(spec: TaskSpec, rows: list[tuple[Any, Any]], labels: tuple[str, ...] = ()) -> float:
    """The task's metric over (outputs, sample) pairs."""
    return spec.metric(np.array([spec.score(outputs, outputs, sample, labels) for outputs, sample in rows]))


def words(tags: list[str]) -> list[dict[str, np.ndarray]]:
    """Model outputs for words of one piece each, between [CLS] and [SEP]."""
    return [{"logits": np.eye(5, dtype=np.float32)[[0, *(TAGS.index(tag) for tag in tags), 0]][None]}]


def f1(pairs: list[tuple[list[str], list[str]]], labels: tuple[str, ...] = TAGS) -> float:
    """F1 of (wanted, predicted) tags."""
    samples = [(words(got), {"label": want, "word_starts": list(range(1, len(want) + 1))}) for want, got in pairs]
    return metric(task("token-classification"), samples, labels)


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        task("text-clasification")
    assert caught.value.fix == 'did you mean "text-classification"?'


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_task_loads_under_its_name(name: str) -> None:
    assert task(name).name == name
    assert name in task_names()


def test_accuracy_is_the_share_of_right_labels_in_points() -> None:
    rows = [
        (logits(0, classes=2), {"label": "no"}),
        (logits(1, classes=2), {"label": "no"}),
        (logits(1, classes=2), {"label": "yes"}),
        (logits(1, classes=2), {"label": "yes"}),
    ]

    assert metric(task("text-classification"), rows, ("no", "yes")) == 75.0


@pytest.mark.parametrize("label", ["yes", 1, "1"])
def test_label_may_be_a_name_or_a_class_number(label: object) -> None:
    spec = task("text-classification")

    assert list(spec.score(logits(1, classes=2), [], {"label": label}, ("no", "yes"))) == [1.0]
    assert spec.check_labels is not None
    spec.check_labels([{"label": label}, {"label": "no"}], ("no", "yes"), "data")


def test_name_that_is_a_number_wins_over_the_class_number() -> None:
    assert list(task("text-classification").score(logits(0, classes=2), [], {"label": "1"}, ("1", "0"))) == [1.0]


@pytest.mark.parametrize("label", ["maybe", 2, "-1", "²", ["no"]])
def test_label_the_model_does_not_know_is_a_data_error(label: object) -> None:
    spec = task("text-classification")
    assert spec.check_labels is not None

    with pytest.raises(DataError, match="unknown label"):
        spec.check_labels([{"label": "no"}, {"label": label}], ("no", "yes"), "test.csv")


def test_data_of_one_class_says_nothing() -> None:
    spec = task("text-classification")
    assert spec.check_labels is not None

    with pytest.raises(DataError, match='every sample has the label "yes"'):
        spec.check_labels([{"label": "yes"}, {"label": 1}], ("no", "yes"), "test.csv")


def test_images_without_a_label_are_a_data_error() -> None:
    spec = task("image-classification")
    assert spec.check_labels is not None

    with pytest.raises(DataError, match="no label"):
        spec.check_labels([{"image": "a.png"}], ("cat", "dog"), "images")


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O", set()),
        ("B-PER I-PER O", {(0, 2, "PER")}),
        ("B-PER B-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("I-PER I-PER", {(0, 2, "PER")}),
        ("B-PER I-LOC I-LOC", {(0, 1, "PER"), (1, 3, "LOC")}),
        ("O I-LOC B-LOC I-LOC", {(1, 2, "LOC"), (2, 4, "LOC")}),
        ("B-A-B I-A-B", {(0, 2, "A-B")}),
        ("", set()),
    ],
)
def test_entities_are_spans_of_one_type_as_in_conll(tags: str, spans: set[tuple[int, int, str]]) -> None:
    assert entities(tags.split()) == spans


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["", "PER", "LOC"])), max_size=8))
def test_spans_written_as_tags_are_found_again(parts: list[tuple[int, str]]) -> None:
    tags: list[str] = []
    spans = set()
    for length, kind in parts:
        if kind:
            spans.add((len(tags), len(tags) + length, kind))
        tags += [f"B-{kind}"] + [f"I-{kind}"] * (length - 1) if kind else ["O"] * length

    assert entities(tags) == spans


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_entities_never_overlap_and_cover_what_is_tagged(tags: list[str]) -> None:
    covered = [index for start, end, _ in entities(tags) for index in range(start, end)]

    assert sorted(covered) == [index for index, tag in enumerate(tags) if tag != "O"]
    assert all(tags[start].endswith(kind) for start, _, kind in entities(tags))


def test_entity_f1_of_a_case_worked_by_hand() -> None:
    wanted = ["B-PER", "I-PER", "O", "B-LOC", "O", "B-LOC"]
    got = ["B-PER", "O", "O", "B-LOC", "B-PER", "O"]

    # of 3 entities 1 is found whole (LOC at 3), of 3 predicted 1 is right: precision 1/3, recall 1/3
    assert f1([(wanted, got)]) == pytest.approx(100 / 3)


def test_entity_f1_is_over_all_samples_together() -> None:
    right = (["B-PER"], ["B-PER"])
    three_wrong = (["O", "O", "O"], ["B-PER", "B-PER", "B-PER"])

    # 1 hit of 4 predicted and 1 wanted: 2·1/(4+1); the mean over samples would be 50
    assert f1([right, three_wrong]) == pytest.approx(40.0)


def test_entity_of_the_wrong_type_or_length_is_no_hit() -> None:
    assert f1([(["B-PER", "I-PER"], ["B-LOC", "I-LOC"])]) == 0.0
    assert f1([(["B-PER", "I-PER"], ["B-PER", "O"])]) == 0.0


def test_nothing_to_find_and_nothing_found_is_perfect() -> None:
    assert f1([(["O", "O"], ["O", "O"])]) == 100.0


def test_tags_that_are_not_bio_count_word_by_word() -> None:
    labels = ("NOUN", "VERB", "ADJ", "ADV", "DET")
    outputs = [{"logits": np.eye(5, dtype=np.float32)[[0, 0, 1, 2, 0]][None]}]

    assert metric(
        task("token-classification"), [(outputs, {"label": ["NOUN", "VERB", "ADV"], "word_starts": [1, 2, 3]})], labels
    ) == pytest.approx(200 / 3)


def test_words_that_were_cut_off_do_not_count() -> None:
    sample = {"label": ["B-PER", "O", "B-LOC"], "word_starts": [1]}

    assert list(task("token-classification").score(words(["B-PER"]), [], sample, TAGS)) == [1.0, 1.0, 1.0]


def test_words_of_several_pieces_have_the_tag_of_the_first() -> None:
    outputs = words(["B-PER", "B-LOC", "O"])

    assert list(task("token-classification").score(outputs, [], {"label": ["B-PER", "O"], "word_starts": [1, 3]}, TAGS)) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("sample", "message"),
    [({"tokens": ["a", "b"], "label": ["O"]}, "2 tokens but 1 tags"), ({"tokens": ["a"], "label": ["B-PR"]}, 'unknown tag "B-PR"')],
)
def test_tags_that_do_not_fit_are_a_data_error(sample: dict[str, Any], message: str) -> None:
    spec = task("token-classification")
    assert spec.check_labels is not None

    with pytest.raises(DataError, match=message):
        spec.check_labels([sample], TAGS, "test.jsonl")


def test_spearman_of_a_case_worked_by_hand() -> None:
    spec = task("sentence-similarity")

    # ranks 1 2 3 4 5 against 2 1 4 3 5: Σd² = 4, so 1 - 6·4/(5·24) = 0.8
    assert spec.metric(np.array([[0.1, 2], [0.2, 1], [0.3, 4], [0.4, 3], [0.5, 5]])) == pytest.approx(80.0)


def test_spearman_gives_tied_scores_their_mean_rank() -> None:
    # ranks 1 2.5 2.5 4 against 1 2 3 4: Pearson of the ranks is 4.5/√(4.5·5)
    assert task("sentence-similarity").metric(np.array([[1, 1], [2, 2], [2, 3], [3, 4]])) == pytest.approx(100 * 4.5 / np.sqrt(22.5))


@given(st.permutations(range(8)), st.permutations(range(8)))
def test_spearman_without_ties_follows_the_textbook_formula(one: list[int], other: list[int]) -> None:
    differences = sum((a - b) ** 2 for a, b in zip(one, other, strict=True))

    found = task("sentence-similarity").metric(np.array([one, other], dtype=float).T)

    assert found == pytest.approx(100 * (1 - 6 * differences / (8 * 63)), abs=1e-9)


def test_spearman_of_constant_similarities_is_zero() -> None:
    assert task("sentence-similarity").metric(np.array([[0.5, 1], [0.5, 2]])) == 0.0


def test_similarity_is_the_cosine_of_the_two_embeddings() -> None:
    spec = task("sentence-similarity")
    first, second = ([{"sentence_embedding": np.array([vector], np.float32)}] for vector in ([3.0, 4.0], [4.0, 3.0]))

    assert list(spec.score([*first, *second], [], {"label": "2.5"}, ())) == [pytest.approx(0.96), 2.5]
    assert spec.score([*first, {"sentence_embedding": np.zeros((1, 2))}], [], {"label": 1}, ())[0] == 0.0


@pytest.mark.parametrize(("scores", "message"), [((1, "high"), "no number"), ((1, "nan"), "no number"), ((3.0, "3"), "same score")])
def test_similarity_scores_that_prove_nothing_are_a_data_error(scores: tuple[object, ...], message: str) -> None:
    spec = task("sentence-similarity")
    assert spec.check_labels is not None

    with pytest.raises(DataError, match=message):
        spec.check_labels([{"label": score} for score in scores], (), "test.csv")


def fidelity(ours: Any, theirs: Any, name: str = "logits", compare: str = "auto") -> float:
    """Points of agreement over samples (the first axis) of one output."""
    spec = task("fidelity", compare=compare)
    pairs = [([{name: np.array([a], np.float32)}], [{name: np.array([b], np.float32)}]) for a, b in zip(ours, theirs, strict=True)]
    return spec.metric(np.array([spec.score(outputs, reference, {}, ()) for outputs, reference in pairs]))


def test_fidelity_of_logits_is_agreement_on_the_top_class() -> None:
    assert fidelity([[0.1, 0.9], [0.9, 0.1]], [[5, 6], [5, 6]]) == 50.0
    assert fidelity([[[1, 0], [1, 0], [0, 1], [0, 1]]], [[[1, 0], [0, 1], [0, 1], [0, 1]]]) == 75.0


def test_fidelity_of_other_outputs_is_their_closeness() -> None:
    assert fidelity([[3, 4]], [[4, 3]], name="last_hidden_state") == pytest.approx(96.0)
    assert fidelity([[1, 0]], [[-1, 0]], name="embedding") == 0.0
    assert fidelity([[0, 0]], [[0, 0]], name="embedding") == 100.0


def test_fidelity_of_single_numbers_sees_a_wrecked_model() -> None:
    """A probability for each sample: top classes always agree, and so do the cosines of single numbers."""
    true = [[0.018], [0.041], [0.347], [0.003]]

    assert fidelity(true, true, name="output") == pytest.approx(100.0)
    assert fidelity([[1.0]] * 4, true, name="output") < 50.0


def test_fidelity_sees_a_change_of_scale() -> None:
    assert fidelity([[3.0, 6.0]], [[1.0, 2.0]], name="embedding") == pytest.approx(60.0)


def test_fidelity_sees_every_output() -> None:
    spec = task("fidelity")
    reference = [{"output": np.ones((1, 4)), "state": np.ones((1, 8))}]
    ours = [{"output": np.ones((1, 4)), "state": -np.ones((1, 8))}]

    assert spec.metric(np.array([spec.score(ours, reference, {}, ())])) == 0.0


def test_fidelity_compares_as_it_is_told() -> None:
    assert fidelity([[3, 4]], [[1, 4]], name="embedding", compare="argmax") == 100.0
    assert fidelity([[3, 4]], [[4, 3]], compare="closeness") == pytest.approx(96.0)


def test_fidelity_of_outputs_of_another_shape_is_nothing() -> None:
    assert fidelity([[1, 0, 0]], [[1, 0]]) == 0.0
    assert fidelity([[1, 0, 0]], [[1, 0]], name="embedding") == 0.0


def test_fidelity_is_perfect_against_itself() -> None:
    spec = task("fidelity")

    assert metric(spec, [(logits(1), {}), (logits(2), {})]) == 100.0
