"""bitfit: the biases, and the head.

Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", arXiv 2106.10199,
section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.errors import PassError
from edgepipe.training.methods import Method, head_of, only

if TYPE_CHECKING:
    from edgepipe.training.methods import Setup


def make(setup: Setup) -> Method:
    module = setup.module
    biases = {name: parameter for name, parameter in module.named_parameters() if name.rpartition(".")[2] == "bias"}
    if not biases:
        raise PassError("bitfit trains biases, and the model has none", where="recover.train", fix='train = "full"')
    trained = {**biases, **head_of(module)}
    return Method(module, lambda _: only(module, trained), lambda: module)
