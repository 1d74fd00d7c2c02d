"""What a project file says of models that are more than one run of one graph: several components, and state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import Field

from edgepipe.toml import Table

if TYPE_CHECKING:
    from collections.abc import Mapping


class Stream(Table):
    """How a model with state is driven: what a step takes of audio, inputs that never change, and which outputs are state."""

    rate: int = Field(default=16000, gt=0, description="samples a second")
    chunk: int | None = Field(
        default=None, gt=0, description="samples of audio a step takes (default: 512 where the model is Silero VAD's)"
    )
    context: int = Field(default=0, ge=0, description="samples of the step before that stand in front of them")
    constants: dict[str, int | float | bool] = Field(default_factory=dict, description="inputs that are the same at every step: sr = 16000")
    state: dict[str, str] = Field(default_factory=dict, description="state input → the output that goes in there at the next step")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a project says of a model of several components, or with state."""

    program: str | None = None
    components: Mapping[str, str] = field(default_factory=dict)
    compress: tuple[str, ...] = ()
    characters: str | None = None
    stream: Stream = field(default_factory=Stream)
