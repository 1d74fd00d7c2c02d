"""What every quantizing pass does around its rewrite: choose the sites, find those that saturate, write the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.data import PROBE_SPLITS
from edgepipe.errors import PassError
from edgepipe.onnx_file import WHOLE_BYTES
from edgepipe.quantization.graph import Graph
from edgepipe.quantization.selection import select
from edgepipe.quantization.sites import QUANTIZED, Site, chosen, find_sites

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.quantization.static import Scale

    Feeds = Mapping[str, np.ndarray]

SEEN = 64  # samples whose sums are looked at, of all lengths


class Rewrite:
    """One quantizing pass over one artifact's model."""

    def __init__(self, artifact: Artifact, ctx: Context, name: str) -> None:
        self.artifact, self.ctx, self.name = artifact, ctx, name
        self.graph = Graph(artifact.model.main_file, ctx.workdir)
        self.left: dict[str, str] = {}
        self.saturating: dict[str, str] = {}
        self._path = artifact.model.main_file
        self._snapshots = 0

    def chosen(self, include: Sequence[str] | None, exclude: Sequence[str], operators: Sequence[str]) -> dict[str, Site]:
        """The sites to work on. Raises `PassError` where the model has none that are still float32."""
        sites = find_sites(self.graph)
        found = chosen(sites, include, exclude, operators, where=self.name)
        if found:
            return found
        if any(node.op_type in QUANTIZED for node in self.graph.nodes):
            raise PassError("the model is already quantized", where=f"pass {self.name}", fix="start from the float32 model")
        raise PassError(
            f"the model has no {', '.join(operators)} whose weights could be quantized",
            where=f"pass {self.name}",
            fix="leave the pass out of the recipe",
        )

    def again(self, sites: Mapping[str, Site]) -> dict[str, Site]:
        """The same sites after the graph was changed."""
        found = find_sites(self.graph)
        return {name: found[name] for name in sites if name in found}

    def nodes(self, sites: Mapping[str, Site]) -> Iterator[tuple[Any, Site]]:
        """Each site with its node."""
        for node in list(self.graph.nodes):
            if node.name in sites:
                yield node, sites[node.name]

    def leave(self, sites: Mapping[str, Site], values: Mapping[str, str]) -> dict[str, Site]:
        """The sites without those whose activation has no scale; why is kept."""
        self.left |= {site.node: values[site.data] for site in sites.values() if site.data in values}
        return {name: site for name, site in sites.items() if name not in self.left}

    def snapshot(self) -> Path:
        """The graph as it is now, as a file to run."""
        self._snapshots += 1
        folder = self.ctx.workdir / f"snapshot-{self._snapshots}"
        folder.mkdir()
        self.graph.write(folder, inline_bytes=WHOLE_BYTES)  # larger weights are mapped by the sessions that look at it
        self._path = folder / "model.onnx"
        self.graph = Graph(self._path, folder)
        return self._path

    def reduced(self, options: Any, sites: Mapping[str, Site], scales: Mapping[str, Scale] | None = None) -> frozenset[str]:
        """Nodes whose weights get 7 bits: all or none as the option says, else those that saturate on the profile's CPU on
        real samples; all that could, where there are none. Why is kept. `scales`: of activations, where they are fixed."""
        from edgepipe.profile import int8_saturates
        from edgepipe.quantization.saturation import Saturation, in_16_bits, saturations
        from edgepipe.quantization.weights8 import Rounding

        if options.reduce_range is not None:
            return frozenset(sites) if options.reduce_range else frozenset()
        if not int8_saturates(self.ctx.facts["cpu.arch"], self.ctx.facts["cpu.isa"]):
            return frozenset()
        rounding = Rounding(
            options.method,
            options.per_channel,
            getattr(options, "symmetric", True),
            stored_bits=options.stored_bits,
            group_size=options.group_size,
        )
        real = self._real_runs()
        if real is None:
            nodes = {node.name: node for node in self.graph.nodes}
            told = "no samples to look at: its sums could leave 16 bits"
            found = {
                name: Saturation(0.0, 0, told)
                for name, site in sites.items()
                if in_16_bits(site, nodes[name], rounding, static=scales is not None)
            }
        else:
            found = saturations(
                self.graph,
                self._path,
                sites,
                rounding,
                real,
                scales=scales,
                disabled_optimizers=self.artifact.program.get("session", {}).get("disabled_optimizers", ()),
                progress=lambda _, done, total: self.ctx.progress("looking for sums that saturate", done, total),
            )
        self.saturating |= {name: one.reason for name, one in found.items() if one.near}
        return frozenset(self.saturating)

    def _real_runs(self) -> Iterable[Feeds] | None:
        """The inputs of a number of samples; None where there is no data but the generated probes."""
        if self.ctx.has("calibration"):
            samples = self.ctx.data("calibration")
            return self.ctx.runs(self.artifact, [samples[index] for index in select(samples, SEEN, "length", 0)])
        return self.ctx.probes(self.artifact) if any(self.ctx.has(split) for split in PROBE_SPLITS) else None

    def finished(self) -> Artifact:
        """Carry the rewrite out and give the new artifact. Nodes left in float32 are told in its program, and those with
        weights of 7 bits that nobody asked for."""
        from edgepipe.weights import onnx_component

        self.graph.apply()
        folder = self.ctx.workdir / "model"
        folder.mkdir()
        self.graph.write(folder)
        result = self.artifact.with_component("model", onnx_component(folder))
        told = {"left_in_float32": self.left, "reduced_range": self.saturating}
        added = {key: {**self.artifact.program.get(key, {}), **new} for key, new in told.items() if new}
        return result.with_program(**added) if added else result
