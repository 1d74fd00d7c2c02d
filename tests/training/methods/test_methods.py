"""Whatever is trained: it alone moves, and a plain model comes out that computes what was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.errors import PassError
from edgepipe.loader import load_torch
from edgepipe.passes.recover import Recover
from edgepipe.training.batches import Batches
from edgepipe.training.lessons import Lessons, lessons
from edgepipe.training.methods import METHODS, Method, Setup, finish, head_of, make_method
from edgepipe.training.methods.fisher_mask import largest
from edgepipe.training.methods.movement import density_at, highest
from tests.models import sentences, write_classifier, write_text_model, write_vision_model
from tests.passes.running import artifact_of, text_feeds, torch_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepipe.artifact import Artifact

ROWS = [{"text": text, "label": label} for text, label in sentences(32)]


@pytest.fixture(scope="module")
def teacher(classifier: Path) -> Artifact:
    return artifact_of(classifier)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact_of(write_classifier(tmp_path_factory.mktemp("student") / "model", seed=5))


def begun(student: Artifact, teacher: Artifact, **options: Any) -> tuple[Method, Lessons, Mapping[str, Any]]:
    """A method on the student, its loss, and what it trains."""
    chosen, module = Recover(**options), load_torch(student)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    train = Batches(student, ROWS, 8, teacher=teacher)
    method = make_method(Setup(student, module, chosen, train))
    loss = lessons(student, teacher, method.module, chosen, train)
    return method, loss, method.begin(loss)


def step(student: Artifact, teacher: Artifact, loss: Lessons, trained: Mapping[str, Any], method: Method) -> None:
    """Three steps, large enough to be seen."""
    optimiser = torch.optim.AdamW(list(trained.values()), 0.01, weight_decay=0.0)
    for number, batch in zip(range(3), Batches(student, ROWS, 8, teacher=teacher).epoch(0), strict=False):
        method.form((number + 1) / 3)
        optimiser.zero_grad()
        loss(batch).mean().backward()
        optimiser.step()


@pytest.mark.parametrize("name", METHODS)
def test_what_leaves_computes_what_was_trained(name: str, student: Artifact, teacher: Artifact) -> None:
    method, loss, trained = begun(student, teacher, train=name)
    before = sum(float(loss(batch).mean().detach()) for batch in Batches(student, ROWS, 8, teacher=teacher).in_order())
    step(student, teacher, loss, trained, method)
    method.form(1.0)
    feeds = text_feeds(student, padded=True)
    wanted = torch_outputs(method.module, feeds)

    plain = finish(method, next(Batches(student, ROWS, 8).in_order()))

    after = sum(float(loss(batch).mean().detach()) for batch in Batches(student, ROWS, 8, teacher=teacher).in_order())
    np.testing.assert_allclose(torch_outputs(plain, feeds), wanted, atol=1e-5)
    assert not any("parametrizations" in part or "lora" in part or ".inner." in part for part in plain.state_dict())
    if name != "movement":  # which cuts, too
        assert after < before


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("full", "movement")])
def test_few_are_trained_and_the_rest_stays_as_it_was(name: str, student: Artifact, teacher: Artifact) -> None:
    method, loss, trained = begun(student, teacher, train=name)
    own, everything = {id(each) for each in trained.values()}, dict(method.module.named_parameters())
    frozen = {key: each.detach().clone() for key, each in everything.items() if id(each) not in own}

    step(student, teacher, loss, trained, method)

    assert set(head_of(load_torch(student))) <= set(trained)
    assert sum(each.numel() for each in trained.values()) < 0.5 * sum(each.numel() for each in load_torch(student).parameters())
    for key, value in frozen.items():
        assert torch.equal(everything[key], value), key
        assert everything[key].grad is None and not everything[key].requires_grad, key


def test_bitfit_trains_biases_and_the_head(student: Artifact, teacher: Artifact) -> None:
    _, _, trained = begun(student, teacher, train="bitfit")

    names = {name for name, _ in load_torch(student).named_parameters()}
    assert set(trained) == {name for name in names if name.endswith(".bias") or name.startswith("classifier.")}


def test_fish_trains_the_weights_with_the_largest_gradients(student: Artifact, teacher: Artifact) -> None:
    """As many as asked; with twice the share, those and others."""
    few, _, trained = begun(student, teacher, train="fish", share=0.01)
    more, _, others = begun(student, teacher, train="fish", share=0.02)

    def places(method: Method, names: Mapping[str, Any]) -> set[tuple[str, int]]:
        chosen = {f"{name}.values": each for name, each in parametrizations(method.module)}
        return {(name, int(place)) for name in names if name in chosen for place in chosen[name].places}

    first, second = places(few, trained), places(more, others)
    count = sum(each.numel() for name, each in load_torch(student).named_parameters() if not name.startswith("classifier."))
    assert first < second and len(first) == round(0.01 * count) and len(second) == round(0.02 * count)


def parametrizations(module: Any) -> list[tuple[str, Any]]:
    """Name of each weight that is made of something, and what makes it."""
    return [
        (f"{path}.{name}" if path else name, made[0])
        for path, layer in module.named_modules()
        if hasattr(layer, "parametrizations")
        for name, made in layer.parametrizations.items()
    ]


def test_fish_keeps_tied_weights_tied(tmp_path: Path) -> None:
    model = artifact_of(write_text_model(tmp_path / "model", "BertForMaskedLM"), "fidelity")
    other = artifact_of(write_text_model(tmp_path / "other", "BertForMaskedLM", seed=3), "fidelity")
    method, loss, trained = begun(model, other, train="fish", share=0.5, objectives={"logits": 1.0})
    step(model, other, loss, trained, method)

    plain = finish(method, next(Batches(model, ROWS, 8).in_order()))

    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight


def test_movement_leaves_the_share_that_is_asked_for(student: Artifact, teacher: Artifact) -> None:
    method, loss, trained = begun(student, teacher, train="movement", density=0.25)
    step(student, teacher, loss, trained, method)

    plain = finish(method, next(Batches(student, ROWS, 8).in_order()))

    for name, weight in plain.named_parameters():
        if ".layer." in name and weight.ndim == 2:
            assert int((weight != 0).sum()) == round(0.25 * weight.numel()), name


def test_bottleneck_is_what_the_adapters_library_computes(student: Artifact, teacher: Artifact) -> None:
    """The library's own model with the same adapters, put where the library puts them."""
    import adapters

    method, loss, trained = begun(student, teacher, train="bottleneck", adapter_size=8)
    step(student, teacher, loss, trained, method)
    plain = finish(method, next(Batches(student, ROWS, 8).in_order()))
    theirs = load_torch(student)
    adapters.init(theirs)
    theirs.add_adapter("x", config=adapters.DoubleSeqBnConfig(non_linearity="relu", reduction_factor=4))
    theirs.set_active_adapters("x")
    with torch.no_grad():
        for own, other in zip(plain.bert.encoder.layer, theirs.bert.encoder.layer, strict=True):
            for ours, place in ((own.attention.output.dense, other.attention.output), (own.output.dense, other.output)):
                place.adapters["x"].adapter_down[0].load_state_dict(ours.adapter.down.state_dict())
                place.adapters["x"].adapter_up.load_state_dict(ours.adapter.up.state_dict())
        theirs.classifier.load_state_dict(plain.classifier.state_dict())

    feeds = text_feeds(student, padded=True)
    np.testing.assert_allclose(torch_outputs(plain, feeds), torch_outputs(theirs, feeds), atol=1e-5)


def test_prefix_is_no_position_of_what_objectives_look_at(student: Artifact, teacher: Artifact) -> None:
    _, loss, _ = begun(student, teacher, train="prefix", prefix_length=5, objectives={"relations": 1.0})
    (batch, *_) = Batches(student, ROWS, 8, teacher=teacher).in_order()

    views = loss.student(batch.inputs)

    shapes = {tuple(value.shape[:2]) for value in (*views.queries, *views.keys, *views.values, *views.hidden)}
    assert shapes == {tuple(batch.inputs["input_ids"].shape)}
    attention = views.keys[0] - load_torch(student).bert.encoder.layer[0].attention.self.key(views.hidden[0])
    assert attention.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["bottleneck", "prefix"])
def test_what_is_added_to_layers_needs_layers_that_are_known(name: str, tmp_path: Path) -> None:
    model = artifact_of(write_vision_model(tmp_path / "model", "ResNetForImageClassification"), "image-classification")

    with pytest.raises(PassError, match="not known"):
        make_method(Setup(model, load_torch(model), Recover(train=name), None))  # type: ignore[arg-type]


def test_library_that_is_missing_is_named(student: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "adapters", None)

    with pytest.raises(PassError, match="adapters library") as caught:
        make_method(Setup(student, load_torch(student), Recover(train="bottleneck"), None))  # type: ignore[arg-type]

    assert "edgepipe[adapters]" in str(caught.value.fix)


def test_model_that_would_not_compute_the_same_is_refused(student: Artifact) -> None:
    module, other = load_torch(student), load_torch(student)
    with torch.no_grad():
        other.classifier.bias.add_(1.0)

    with pytest.raises(PassError, match="differ"):
        finish(Method(module, lambda _: {}, lambda: other), next(Batches(student, ROWS, 8).in_order()))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.99))
def test_density_falls_from_all_to_what_is_asked_for(one: float, other: float, last: float) -> None:
    early, late = density_at(min(one, other), last), density_at(max(one, other), last)

    assert density_at(0.0, last) == 1 and density_at(1.0, last) == pytest.approx(last)
    assert last - 1e-9 <= late <= early <= 1


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.floats(0.01, 1))
def test_highest_scores_stay_and_exactly_as_many_as_asked(scores: list[int], density: float) -> None:
    values = torch.tensor(scores, dtype=torch.float32)

    kept = highest(values, density)

    assert int(kept.sum()) == max(1, round(density * len(scores)))
    assert kept.all() or values[kept].min() >= values[~kept].max()


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=5), st.floats(0.01, 1))
def test_the_most_information_is_chosen_over_all_weights(weights: list[list[int]], share: float) -> None:
    information = {str(index): torch.tensor(values, dtype=torch.float32) for index, values in enumerate(weights)}

    chosen = largest(information, share)

    total = sum(len(values) for values in weights)
    inside = [float(information[name][place]) for name, places in chosen.items() for place in places]
    assert len(inside) == max(1, round(share * total))
    assert sorted(inside) == sorted((value for values in weights for value in values), reverse=True)[: len(inside)][::-1]
