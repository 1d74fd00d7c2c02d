"""recover with every objective, augmentation and way to draw samples; what does not fit is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgepipe.config import Data
from edgepipe.errors import DataError, EdgepipeError, PassError
from edgepipe.passes.recover import Recover
from edgepipe.training import loop
from tests.models import write_classifier, write_csv, write_images, write_text_model
from tests.passes.recovering import recovered, reviews
from tests.passes.running import artifact_of, run_pass

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recover")


@pytest.fixture(scope="module")
def teacher(classifier: Path) -> Artifact:
    return artifact_of(classifier)


@pytest.fixture(scope="module")
def student(home: Path) -> Artifact:
    """One layer of two, of a model that says something else than the teacher."""
    return run_pass("prune-layers", artifact_of(write_classifier(home / "other", seed=3)), home, layers=[1])


@pytest.fixture(scope="module")
def texts(home: Path) -> Data:
    return reviews(home / "texts")


@pytest.fixture(scope="module")
def gpt(home: Path) -> Artifact:
    """A decoder with a language head."""
    return artifact_of(write_text_model(home / "gpt", "GPT2LMHeadModel"), "fidelity")


def judged(figures: dict[str, Any]) -> tuple[float, float]:
    """The loss on dev at the start and at its best."""
    points = [loss for _, loss in figures["training"]["dev"]]
    return points[0], min(points)


@pytest.mark.parametrize(
    ("objectives", "options"),
    [
        ({"masked-tokens": 1.0}, {}),
        ({"masked-tokens": 1.0}, {"masking": "whole-word", "mask_rate": 0.3}),
        ({"masked-tokens": 1.0}, {"masking": "span"}),
        ({"masked-tokens": 1.0}, {"output_sampling": 32}),
        ({"masked-tokens": 1.0}, {"output_sampling": 32, "output_estimate": "nce"}),
        ({"contrastive": 1.0}, {}),
        ({"contrastive": 0.1, "logits": 1.0, "task": 0.5}, {"positives": "dropout", "dropout": 0.1}),
        ({"logits": 1.0}, {"sampling": "loss"}),
        ({"task": 1.0}, {"sampling": "gradient-norm"}),
        ({"logits": 1.0, "task": 1.0}, {"augment": ["mixup"], "augment_share": 1.0}),
        ({"logits": 1.0, "hidden": 1.0}, {"augment": ["token-dropout", "token-swap", "synonyms", "mixup"]}),
    ],
)
def test_each_option_lowers_its_loss_on_dev(
    objectives: dict[str, float], options: dict[str, Any], student: Artifact, teacher: Artifact, home: Path, texts: Data
) -> None:
    done = recovered(student, teacher, home, texts, objectives=objectives, **options)

    start, best = judged(done.figures)
    assert best < start
    assert done.value.model.parameters == student.model.parameters  # what an objective learns for itself does not stay


@pytest.mark.parametrize("options", [{}, {"output_sampling": 16}])
def test_decoder_learns_the_next_token(options: dict[str, Any], gpt: Artifact, home: Path, texts: Data) -> None:
    done = recovered(gpt, gpt, home, texts, objectives={"causal": 1.0}, **options)

    start, best = judged(done.figures)
    assert best < start


@pytest.mark.parametrize("augment", [["crop", "flip"], ["rotate", "cutmix"], ["mixup", "cutmix"]])
def test_images_are_augmented(augment: list[str], resnet: Path, home: Path) -> None:
    folder = home / "-".join(augment)
    data = Data(train=str(write_images(folder / "train", per_label=8)), dev=str(write_images(folder / "dev", seed=1)))
    artifact = artifact_of(resnet, "image-classification")

    done = recovered(artifact, artifact, home, data, objectives={"task": 1.0}, augment=augment)

    start, best = judged(done.figures)
    assert best < start


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": "loss"},
        {"sampling": "gradient-norm", "objectives": {"task": 1.0}},
        {"augment": ["token-dropout", "mixup"], "dropout": 0.1},
        {"objectives": {"masked-tokens": 1.0}, "output_sampling": 16},
    ],
)
def test_killed_run_goes_on_to_the_same_model(
    options: dict[str, Any], student: Artifact, teacher: Artifact, home: Path, texts: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 3, **options}
    whole = recovered(student, teacher, home, texts, **options)
    judge, seen = loop._judge, 0

    def dies(*arguments: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:  # in the third epoch, behind a checkpoint of the second
            raise KeyboardInterrupt
        judge(*arguments)

    monkeypatch.setattr(loop, "_judge", dies)
    with pytest.raises(KeyboardInterrupt):
        recovered(student, teacher, home, texts, checkpoints=tmp_path / "kept", **options)
    monkeypatch.undo()
    resumed = recovered(student, teacher, home, texts, checkpoints=tmp_path / "kept", **options)

    assert resumed.figures["training"] == whole.figures["training"]
    assert resumed.value.digest == whole.value.digest


def test_learning_rate_is_found_and_its_sweep_is_kept(student: Artifact, teacher: Artifact, home: Path, texts: Data) -> None:
    first = recovered(student, teacher, home, texts, learning_rate="find")
    again = recovered(student, teacher, home, texts, learning_rate="find")

    found = first.figures["learning_rate"]
    assert 1e-6 < found["found"] < 0.1
    rates = [rate for rate, _ in found["curve"]]
    assert rates == sorted(rates) and found == again.figures["learning_rate"]
    start, best = judged(first.figures)
    assert best < start
    plain = recovered(student, teacher, home, texts, learning_rate=found["found"])
    assert plain.value.digest == first.value.digest  # the sweep left nothing behind


def test_unlabelled_data_is_learned_from_beside_labels(student: Artifact, teacher: Artifact, home: Path) -> None:
    data = reviews(home / "few", train=8, unlabelled=64)

    done = recovered(student, teacher, home, data, objectives={"task": 0.1, "logits": 1.0})
    fewer = recovered(student, teacher, home, data, objectives={"task": 0.1, "logits": 1.0}, max_unlabelled=24)

    assert done.figures["training"]["of_steps"] == 2 * (8 + 64) / 8
    assert fewer.figures["training"]["of_steps"] == 2 * (8 + 24) / 8
    start, best = judged(done.figures)
    assert best < start


def test_labels_alone_learn_nothing_from_unlabelled_data(student: Artifact, teacher: Artifact, home: Path) -> None:
    data = reviews(home / "alone", train=8, unlabelled=8)

    with pytest.raises(DataError, match="nothing is learned but labels"):
        recovered(student, teacher, home, data, objectives={"task": 1.0})


def test_sentence_encoder_learns_from_single_texts(sentence_encoder: Path, home: Path) -> None:
    pairs = [(f"a film {word}", f"a movie {word}", "1.0") for word in ("good", "bad", "dull", "warm", "cold", "sharp", "slow", "fine")]
    rows: Any = (pairs[:4], pairs[4:])
    header = ("text", "text_pair", "label")
    folder = home / "pairs"
    folder.mkdir()
    data = Data(
        train=str(write_csv(folder / "train.csv", rows[0], header)),
        dev=str(write_csv(folder / "dev.csv", rows[1], header)),
        unlabelled=str(write_csv(folder / "more.csv", [("the plot",), ("the scene",), ("the cast",)], ("text",))),  # type: ignore[list-item]
    )
    artifact = artifact_of(sentence_encoder, "sentence-similarity")
    student = run_pass("prune-layers", artifact, home, layers=[1])

    done = recovered(student, artifact, home, data, objectives={"logits": 1.0, "contrastive": 0.1, "masked-tokens": 0.1}, batch_size=4)

    start, best = judged(done.figures)
    assert best < start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": {"causal": 1.0}}, "no language head"),
        ({"objectives": {"contrastive": 1.0}, "batch_size": 1}, "a batch of its own"),
        ({"objectives": {"masked-tokens": 1.0}, "output_sampling": 128}, "cannot be sampled of a vocabulary of 128"),
        ({"objectives": {"hidden": 1.0}, "sampling": "gradient-norm"}, "no objective looks at those"),
        ({"augment": ["crop"]}, "crop is for images, and the model takes text"),
    ],
)
def test_what_does_not_fit_the_model_is_an_error(
    options: dict[str, Any], message: str, student: Artifact, teacher: Artifact, home: Path, texts: Data
) -> None:
    with pytest.raises(PassError, match=message):
        recovered(student, teacher, home, texts, **options)


def test_text_methods_do_not_fit_images(resnet: Path, home: Path) -> None:
    data = Data(train=str(write_images(home / "train")), dev=str(write_images(home / "dev", seed=1)))
    artifact = artifact_of(resnet, "image-classification")

    for options, message in (
        ({"augment": ["synonyms"]}, "synonyms is for texts, and the model takes images"),
        ({"objectives": {"masked-tokens": 1.0}}, "no table of token embeddings"),
        ({"objectives": {"contrastive": 1.0}}, "layers of this one are not known"),
    ):
        with pytest.raises(PassError, match=message):
            recovered(artifact, artifact, home, data, **options)


def test_tokenizer_without_a_mask_is_an_error(gpt: Artifact, home: Path, texts: Data, tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "model", "GPT2LMHeadModel")
    tokenizer = model / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace("[MASK]", "masks"), encoding="utf-8")
    artifact = artifact_of(model, "fidelity")

    with pytest.raises(PassError, match="none to put in their place"):
        recovered(artifact, artifact, home, texts, objectives={"masked-tokens": 1.0})


def test_model_that_sees_what_follows_learns_no_next_token(home: Path, texts: Data, tmp_path: Path) -> None:
    artifact = artifact_of(write_text_model(tmp_path / "model", "BertForMaskedLM"), "fidelity")

    with pytest.raises(PassError, match="sees the tokens"):
        recovered(artifact, artifact, home, texts, objectives={"causal": 1.0})
    start, best = judged(recovered(artifact, artifact, home, texts, objectives={"masked-tokens": 1.0}).figures)
    assert best < start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masking": "span"}, "masking is for masked-tokens"),
        ({"output_sampling": 8}, "output_sampling is for causal and masked-tokens"),
        ({"objectives": {"causal": 1}, "output_estimate": "nce"}, "give output_sampling too"),
        ({"objectives": {"contrastive": 1}, "positives": "dropout"}, "set dropout above 0"),
        ({"augment": ["mixup"], "sampling": "loss"}, "mixup mixes samples"),
        ({"augment": ["flip", "flip"]}, "names a method twice"),
        ({"mix_alpha": 0.2}, "mix_alpha is for mixup and cutmix"),
        ({"learning_rate": "fast"}, "find"),
        ({"learning_rate": np.inf}, "finite"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recover.model_validate(options)


def test_unlabelled_data_may_not_hold_what_judges(student: Artifact, teacher: Artifact, home: Path) -> None:
    from edgepipe.data import Splits

    data = reviews(home / "shared", train=8, unlabelled=8)
    same = data.model_copy(update={"unlabelled": data.dev})

    with pytest.raises(EdgepipeError, match="dev and unlabelled data share a sample"):
        Splits(same, ("text", "label")).check_overlap()
    Splits(data.model_copy(update={"unlabelled": data.train}), ("text", "label")).check_overlap()
