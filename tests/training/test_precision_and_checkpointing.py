"""What runs in fewer bits, and what is computed twice: losses and gradients stay those of the plain run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from edgepipe.errors import PassError
from edgepipe.loader import load_torch
from edgepipe.passes.recover import Recover
from edgepipe.training.batches import Batches
from edgepipe.training.gradient_checkpointing import checkpoint_layers
from edgepipe.training.lessons import lessons
from tests.models import sentences, write_classifier, write_vision_model
from tests.passes.running import artifact_of

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"text": text, "label": label} for text, label in sentences(16)]
LOOKING_INSIDE = {"logits": 1.0, "hidden": 1.0, "attention": 1.0, "relations": 1.0}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return artifact_of(write_classifier(tmp_path_factory.mktemp("student") / "model", seed=5))


def run(student: Any, teacher: Any, *, again: bool = False, **options: Any) -> tuple[Any, torch.Tensor, list[Any]]:
    """The module after one backward pass, the losses of rows, and the types of what its first layer gave, trained and judged."""
    chosen, module = Recover(objectives=LOOKING_INSIDE, **options), load_torch(student)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    train, types = Batches(student, ROWS, 16, teacher=teacher), []
    loss = lessons(student, teacher, module, chosen, train)
    module.bert.encoder.layer[0].output.dense.register_forward_hook(lambda _, __, output: types.append(output.dtype))
    if again:
        checkpoint_layers(module)
    (batch,) = train.epoch(0)
    with torch.no_grad():
        loss(batch)
    rows = loss(batch)
    rows.mean().backward()
    return module, rows, types


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_models_run_in_fewer_bits_while_training_only(name: str, student: Any, classifier: Path) -> None:
    plain, wanted, _ = run(student, artifact_of(classifier))
    module, rows, types = run(student, artifact_of(classifier), precision=name)

    assert types == [torch.float32, getattr(torch, name)]
    assert rows.dtype == torch.float32 and {each.grad.dtype for each in module.parameters() if each.grad is not None} == {torch.float32}
    assert not torch.equal(rows, wanted)
    torch.testing.assert_close(rows, wanted, rtol=0.02, atol=0.02)
    ours, theirs = (each.classifier.weight.grad.flatten() for each in (module, plain))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.99


def test_layers_computed_again_give_the_same_gradients_and_are_looked_at_once(student: Any, classifier: Path) -> None:
    plain, wanted, once = run(student, artifact_of(classifier))
    module, rows, twice = run(student, artifact_of(classifier), again=True)

    assert len(once) == 2 and len(twice) == 3
    torch.testing.assert_close(rows, wanted)
    for (name, ours), theirs in zip(module.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_model_that_does_not_know_its_layers_is_refused(tmp_path: Path) -> None:
    model = artifact_of(write_vision_model(tmp_path / "model", "ResNetForImageClassification"), "image-classification")

    with pytest.raises(PassError, match="computed again"):
        checkpoint_layers(load_torch(model))
