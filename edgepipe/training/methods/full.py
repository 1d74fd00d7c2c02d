"""full: every weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.training.methods import Method

if TYPE_CHECKING:
    from edgepipe.training.methods import Setup


def make(setup: Setup) -> Method:
    module = setup.module
    return Method(module, lambda _: dict(module.named_parameters()), lambda: module)
