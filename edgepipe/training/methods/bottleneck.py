"""bottleneck: adapters behind what attention and the feed-forward part of every layer give, and the head.

Houlsby et al., arXiv 1902.00751, section 2.1, by the `adapters` library (Poth et al., arXiv 2311.11077): its layers, at the
places of its `double_seq_bn`. They are put there here, since the library itself takes neither every family nor products of
two layers; afterwards they become plain layers that need no library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.additions import adapted
from edgepipe.errors import PassError
from edgepipe.training.loop import repeatable
from edgepipe.training.methods import Method, head_of, only
from edgepipe.training.methods.layers import layers_for

if TYPE_CHECKING:
    from edgepipe.training.methods import Setup


def make(setup: Setup) -> Method:
    from torch import nn

    from edgepipe.bottleneck import Bottleneck, add_adapter

    try:
        from adapters import DoubleSeqBnConfig
        from adapters.methods.modeling import Adapter
    except ImportError:
        raise PassError(
            "the adapters library is not installed, whose layers bottleneck trains",
            where="recover.train",
            fix="pip install 'edgepipe[adapters]', or take train = \"lora\"",
        ) from None

    class Trained(nn.Module):  # type: ignore[misc]  # as in sentence_encoder.py
        """The library's layer: [batch, seq, width] → the same."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.inner = Adapter("recover", width, setup.options.adapter_size, DoubleSeqBnConfig(non_linearity="relu"))

        def forward(self, value: Any) -> Any:
            return self.inner(value, value)[0]

    module, head = setup.module, head_of(setup.module)
    linears = [linear for layer in layers_for("adapter", module) for linear in adapted(layer)]
    with repeatable(setup.options.seed):
        for linear in linears:
            add_adapter(linear, Trained(linear.out_features).to(linear.weight.device))
    added = {name: parameter for name, parameter in module.named_parameters() if ".adapter.inner." in name}

    def finished() -> Any:
        for linear in linears:
            inner = linear.adapter.inner
            linear.adapter = Bottleneck(inner.adapter_down[0], inner.adapter_up)
        return module

    return Method(module, lambda _: only(module, {**added, **head}), finished)
