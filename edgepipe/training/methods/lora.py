"""lora: low-rank updates of the linear layers, and the head. They are merged into the weights afterwards.

Hu et al., arXiv 2106.09685, section 4.1, by PEFT; on all linear layers of the encoder (Dettmers et al., "QLoRA", arXiv
2305.14314, section 5, find that this is what matters).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from edgepipe.training.loop import repeatable
from edgepipe.training.methods import Method, head_of, only
from edgepipe.training.methods.layers import weight_layers

if TYPE_CHECKING:
    from edgepipe.training.methods import Setup

ALPHA = 2  # times the rank: updates are scaled by alpha / rank


def make(setup: Setup) -> Method:
    from peft import LoraConfig, get_peft_model

    module, rank = setup.module, setup.options.rank
    layers = weight_layers(module)
    config = LoraConfig(r=rank, lora_alpha=ALPHA * rank, lora_dropout=0.0, bias="none", target_modules=list(layers))
    head = head_of(module)
    with warnings.catch_warnings(), repeatable(setup.options.seed):
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(module, config)  # puts its layers into the module itself
    updates = {name: parameter for name, parameter in module.named_parameters() if ".lora_" in name}
    return Method(module, lambda _: only(module, {**updates, **head}), wrapped.merge_and_unload)
