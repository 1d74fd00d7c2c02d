"""The ways a layer can be stored and computed, each as the pass and options that make it so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.quantization.sites import Site

SCALE_BYTES, FACTOR_BYTES = 4, 1
GROUP, TABLE_GROUP = 32, 64


@dataclass(frozen=True, slots=True)
class Scheme:
    """`kernel` is what runs (schemes that share one run at one speed), `bits` and `group_size` what is stored."""

    name: str
    kernel: str
    bits: int
    operators: tuple[str, ...]
    step: str = ""  # the pass; empty: the layer stays as it is
    options: Mapping[str, Any] = field(default_factory=dict)
    group_size: int = 0  # 0: a scale for each channel, -1: one for all
    group_bytes: int = SCALE_BYTES
    node_bytes: int = 0  # of the nodes and names that a layer adds to the graph, about: what small layers do not win back

    @property
    def prior_loss(self) -> float:
        """What to go by before anything is measured: a step is half as wide with each bit, and errors count squared."""
        return 0.0 if not self.step else 4.0**-self.bits

    def bytes_of(self, site: Site) -> int:
        """What the layer takes in the file."""
        if not self.step:
            return 4 * site.parameters
        rows, width = (site.n, site.k) if site.kind == "table" else (site.k, site.n)  # groups lie along a table's rows
        if self.group_size < 0:
            return self.node_bytes + -(-site.parameters * self.bits // 8) + SCALE_BYTES
        groups, size = (-(-rows // self.group_size), self.group_size) if self.group_size else (1, rows)
        return self.node_bytes + width * (-(-groups * size * self.bits // 8) + groups * self.group_bytes)  # the last group is filled up


PRODUCTS = ("MatMul", "Gemm", "Attention")
FLOAT32 = Scheme("float32", "float32", 32, (*PRODUCTS, "Conv", "ConvTranspose", "Gather", "LSTM"))
INT8_STATIC = Scheme("int8-static", "int8-static", 8, (*PRODUCTS, "Conv"), "quantize-static", node_bytes=1500)
INT8_DYNAMIC = Scheme("int8-dynamic", "int8-dynamic", 8, (*PRODUCTS, "Conv", "LSTM"), "quantize-dynamic", node_bytes=600)
INT4 = Scheme(
    "int4", "int4", 4, PRODUCTS, "quantize-weights", {"bits": 4, "group_size": GROUP, "kernel": "few-bits"}, group_size=GROUP, node_bytes=120
)  # fmt: skip
SCHEMES: tuple[Scheme, ...] = (
    FLOAT32,
    INT8_STATIC,
    INT8_DYNAMIC,
    INT4,
    Scheme(
        "int8-static, stored in 4 bits", "int8-static", 4, PRODUCTS, "quantize-static",
        {"stored_bits": 4, "group_size": GROUP}, group_size=GROUP, group_bytes=FACTOR_BYTES, node_bytes=1000,
    ),
    Scheme(
        "int8-dynamic, stored in 4 bits", "int8-dynamic", 4, PRODUCTS, "quantize-dynamic",
        {"stored_bits": 4, "group_size": GROUP}, group_size=GROUP, group_bytes=FACTOR_BYTES, node_bytes=1000,
    ),
    Scheme(
        "float32, stored in 8 bits", "float32", 8, (*PRODUCTS, "Conv", "ConvTranspose"), "quantize-weights",
        {"bits": 8, "group_size": 0, "kernel": "float32"}, node_bytes=120,
    ),
    Scheme(
        "float32, stored in 4 bits", "float32", 4, (*PRODUCTS, "Conv", "ConvTranspose"), "quantize-weights",
        {"bits": 4, "group_size": GROUP, "kernel": "float32"}, group_size=GROUP, node_bytes=500,
    ),
    Scheme("table in 8 bits", "table-8", 8, ("Gather",), "quantize-dynamic", {}, group_size=-1),
    Scheme(
        "table in 4 bits", "table-4", 4, ("Gather",), "quantize-weights",
        {"bits": 4, "group_size": TABLE_GROUP, "kernel": "few-bits"}, group_size=TABLE_GROUP,
    ),
)  # fmt: skip
BY_NAME = {scheme.name: scheme for scheme in SCHEMES}
KERNELS = (INT8_STATIC, INT8_DYNAMIC, INT4)  # whose costs are asked for; the others run one of these, or float32
ORDER = ("quantize-static", "quantize-dynamic", "quantize-weights")


def fits(scheme: Scheme, site: Site, *, calibrated: bool) -> bool:
    """Whether a layer can be so: static scales need calibration data, groups at least one whole group."""
    if site.operator not in scheme.operators or (scheme.step == "quantize-static" and not calibrated):
        return False
    width = site.n if site.kind == "table" else site.k
    return scheme.bits > 4 or (width >= scheme.group_size and width >= 16)
