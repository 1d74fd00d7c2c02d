"""Options of `recover` that say in how much memory, and on what, it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from edgepipe.errors import UsageError
from edgepipe.toml import Table

if TYPE_CHECKING:
    from typing import Self


class MemoryOptions(Table):
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="in which models run while training; weights, losses and judgements stay in float32"
    )
    accumulate: int = Field(default=1, ge=1, description="pieces that a batch is run in, one after the other: the same step in less memory")
    gradient_checkpointing: bool = Field(default=False, description="compute layers again instead of keeping what is inside them")
    optimizer: Literal["adamw", "adamw-8bit"] = Field(default="adamw", description="with its states in float32, or in 8 bits")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="that trains")
    processes: int = Field(default=1, ge=1, le=64, description="that share every batch, on this machine: the same steps, one piece each")

    @model_validator(mode="after")
    def _batches_in_pieces(self) -> Self:
        for name in ("accumulate", "processes"):
            if getattr(self, name) > 1 and "contrastive" in getattr(self, "objectives", ()):
                raise ValueError(f"{name} runs a batch in pieces, and contrastive compares all of its samples: leave one of them out")
        if self.processes > 1 and getattr(self, "sampling", "uniform") != "uniform":
            raise ValueError(
                'processes share the samples, and each would know how much it taught of its own alone: set sampling = "uniform"'
            )
        if self.processes > 1 and self.device != "cpu":
            raise ValueError("processes are for CPUs: leave it out, or device")
        return self

    def check_device(self) -> None:
        """Raises `UsageError` where there is no such device."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("there is no CUDA device that PyTorch can use", where="recover.device", fix='leave device out: "cpu" is there')
