"""What of a model is trained, one file a method. A new one is a file here and a line in `METHODS`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgepipe.errors import PassError
from edgepipe.structure import transformer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.artifact import Artifact
    from edgepipe.training.batches import Batch, Batches

    Loss = Callable[[Batch], Tensor]

METHODS = {
    "full": "full",
    "lora": "lora",
    "bottleneck": "bottleneck",
    "prefix": "prefix_tuning",
    "bitfit": "bitfit",
    "fish": "fisher_mask",
    "movement": "movement",
}  # name → module
SAME = 1e-3  # largest difference between what was trained and what is saved, relative to the largest output


def as_it_is(share: float) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Method:
    """What is trained of a model, and how a plain model comes of it. Made once a run by the module's `make(setup)`.

    The same setup gives the same method, so that a run that was killed goes on with it: a checkpoint holds values alone.
    """

    module: Any  # what is called while it trains
    begin: Callable[[Loss], Mapping[str, Parameter]]  # what is trained, by name, once the loss can be asked; all else is frozen
    finished: Callable[[], Any]  # the model to save
    form: Callable[[float], bool] = as_it_is  # told how far training is, (0, 1]: whether the model has the form that it will be saved in


@dataclass(frozen=True, slots=True)
class Setup:
    """What a method is made from. `options` are those of the pass."""

    artifact: Artifact
    module: Any
    options: Any
    train: Batches


def make_method(setup: Setup) -> Method:
    """Raises `PassError` for a method that does not fit the model, or whose library is not there."""
    made: Method = import_module(f"edgepipe.training.methods.{METHODS[setup.options.train]}").make(setup)
    return made


def head_of(module: Any) -> dict[str, Parameter]:
    """The parameters outside the encoder, trained beside the few that a method adds or picks inside. None where a model has no
    head, or does not say which part is its encoder."""
    inner = transformer_of(module)
    base = getattr(inner, getattr(inner, "base_model_prefix", "") or "-", None)
    if base is None or base is inner:
        return {}
    inside = {id(parameter) for parameter in base.parameters()}
    return {name: parameter for name, parameter in module.named_parameters() if id(parameter) not in inside}


def only(module: Any, trained: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Freeze the rest of a model."""
    module.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return dict(trained)


def finish(method: Method, batch: Batch) -> Any:
    """The model to save. Raises `PassError` where it does not compute what the trained one does."""
    import torch

    from edgepipe.training.losses import first
    from edgepipe.training.outputs import called

    method.form(1.0)
    with torch.no_grad():
        before = first(called(method.module.eval(), batch.inputs))
        module = method.finished().eval()
        apart = (first(called(module, batch.inputs)) - before).abs().max()
    if not apart <= SAME * before.abs().max().clamp(min=1):
        raise PassError(
            f"the model to save does not compute what was trained: outputs differ by {float(apart):.2g}",
            where="recover.train",
            fix='train = "full" trains the model as it is',
        )
    return module
