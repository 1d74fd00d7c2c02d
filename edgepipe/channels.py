"""Channels of convolutional networks: which belong together, and cutting them. The only code that knows torch-pruning.

Fang et al., "DepGraph: Towards Any Structural Pruning", arXiv 2301.12088: a channel that one layer writes is read by others,
normalised, and added to channels of further layers on shortcuts; all of that goes with it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import lcm
from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError, PassError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    Forward = Callable[[Any], Sequence[Any]]  # a module's outputs for the inputs it is traced with

WHERE = "pass prune-channels"
UNFIT = 1e-4  # of the largest output: what sums in another order do not explain (1e-6 on the networks of the tests)


@dataclass(frozen=True, slots=True)
class Part:
    """One layer's share of a set of channels: `places` in the layer, and the channel that each of them is."""

    layer: str
    places: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Channels:
    """Channels that several layers share, so that one of them goes from all or from none."""

    name: str  # the first layer that writes them
    width: int
    rows: int  # grouped convolutions lose as many in each group: channel c goes with all c + k · width / rows
    writers: tuple[Part, ...]
    readers: tuple[Part, ...]
    normalised: bool  # by statistics over all of them, so that what stays is scaled otherwise when some go

    @property
    def units(self) -> int:
        """How many decisions there are."""
        return self.width // self.rows


class Traced:
    """A module's channels that can go: not those of its outputs, nor of excluded layers."""

    def __init__(self, module: nn.Module, forward: Forward, exclude: Sequence[str] = ()) -> None:
        """Raises `ModelError` for a module without convolutions, `PassError` for one that cannot be traced, `UsageError` for a
        pattern that no layer has."""
        self.module, self._forward = module, forward
        self._names = {layer: name for name, layer in module.named_modules()}
        self._check_layers(exclude)
        self._graph = self._built()
        self.channels = tuple(self._channels(exclude))

    def cut(self, kept: Mapping[str, Sequence[int]]) -> None:
        """Take out all channels but these of each set; sets that are not named stay whole."""
        for each in self.channels:
            if lost := _lost(each, kept):
                self._group(each.name, lost).prune()

    def silence(self, kept: Mapping[str, Sequence[int]]) -> None:
        """Let nothing read the channels that `cut` would take out: the same function, with all its weights."""
        import numpy as np
        import torch

        for each in self.channels:
            if lost := _lost(each, kept):
                for part in _parts(self._group(each.name, lost), self._names, "in"):
                    with torch.no_grad():
                        weights = by_input(self.module.get_submodule(part.layer))
                        weights[np.divmod(part.places, weights.shape[1])] = 0

    def _check_layers(self, exclude: Sequence[str]) -> None:
        from torch.nn.modules.conv import _ConvNd

        if not any(isinstance(layer, _ConvNd) for layer in self._names):
            raise ModelError(
                "the model has no convolutions, so it has no channels to cut",
                where=WHERE,
                fix="prune-layers, prune-heads and prune-ffn are for transformers; leave this pass out of the recipe",
            )
        names = sorted(name for name in self._names.values() if name)
        for pattern in exclude:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(f'no layer is named "{pattern}"', where="prune-channels.exclude", fix=nearest(pattern, names)[:300])

    def _built(self) -> Any:
        import torch
        from torch_pruning import DependencyGraph

        self.module.requires_grad_(True)
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # An operation behind each output, so that a set of channels that reaches one can be told.
                return DependencyGraph().build_dependency(
                    self.module,
                    (),
                    forward_fn=lambda _module, _inputs: [1.0 * value for value in self._forward(self.module)],
                    verbose=False,
                )
        except Exception as error:  # the library asserts, and raises whatever it meets
            raise PassError(
                f"the graph of the model cannot be traced: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}",
                where=WHERE,
                fix="leave the pass out of the recipe; prune-channels needs a torch module that runs from inputs to outputs in one call",
            ) from error

    def _channels(self, exclude: Sequence[str]) -> Iterator[Channels]:
        from torch_pruning import ops

        seen: set[str] = set()
        for layer, name in self._names.items():
            if name in seen or not isinstance(layer, ops.TORCH_CONV | ops.TORCH_LINEAR) or layer not in self._graph.module2node:
                continue
            if _is_depthwise(layer):  # goes with what it reads
                continue
            group = self._whole_group(layer)
            writers, readers = (tuple(_parts(group, self._names, side)) for side in ("out", "in"))
            seen |= {part.layer for part in writers}
            kinds = {item.dep.target.type for item in group}
            excluded = any(fnmatchcase(part.layer, pattern) for part in writers for pattern in exclude)
            width, rows = len(group[0].idxs), _rows(group)
            if ops.OPTYPE.OUTPUT in kinds or excluded or not readers or not writers or rows is None or width <= rows:
                continue
            normalised = bool(kinds & {ops.OPTYPE.LN, ops.OPTYPE.GN})
            yield Channels(self._names[group[0].dep.target.module], width, rows, writers, readers, normalised)

    def _whole_group(self, layer: Any) -> Any:
        """What goes with the outputs of a layer. Where they are only some of those of another layer, which adds to several
        branches side by side, that one decides for all."""
        group = self._group(self._names[layer], range(_outputs(layer)))
        for item in group:
            other = item.dep.target.module
            if _is_handled(item, "out") and len(item.idxs) < _outputs(other):
                return self._whole_group(other)
        return group

    def _group(self, name: str, outputs: Sequence[int]) -> Any:
        from torch_pruning import prune_conv_out_channels, prune_linear_out_channels
        from torch_pruning.ops import TORCH_LINEAR

        layer = self.module.get_submodule(name)
        function = prune_linear_out_channels if isinstance(layer, TORCH_LINEAR) else prune_conv_out_channels
        return self._graph.get_pruning_group(layer, function, list(outputs))


def cut_channels(module: nn.Module, forward: Forward, kept: Mapping[str, Sequence[int]], exclude: Sequence[str] = ()) -> None:
    """Cut a module down to these channels of each set, and see that it still computes what it should: the same as the whole
    module when nothing reads what was cut. Raises `PassError` naming the layer whose channels cannot be followed."""
    from copy import deepcopy

    whole = deepcopy(module)
    if not fits(module, forward, kept, exclude):
        raise _untraceable([name for name in kept if not fits(deepcopy(whole), forward, {name: kept[name]}, exclude)] or list(kept))


def fits(module: nn.Module, forward: Forward, kept: Mapping[str, Sequence[int]], exclude: Sequence[str] = ()) -> bool:
    """Cut the module; whether it runs, and gives what its whole self gives with the same channels silenced."""
    from copy import deepcopy

    import torch

    silent = Traced(deepcopy(module), forward, exclude)
    silent.silence(kept)
    traced = Traced(module, forward, exclude)
    try:
        traced.cut(kept)
        with torch.no_grad():
            found, wanted = forward(module), forward(silent.module)
    except Exception:  # shapes that do not fit raise anything, in the library or in the model
        return False
    if any(each.normalised for each in traced.channels if each.name in kept):
        return all(bool(ours.isfinite().all()) and ours.shape == theirs.shape for ours, theirs in zip(found, wanted, strict=True))
    return all(_close(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def _close(ours: Any, theirs: Any) -> bool:
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= UNFIT * max(1.0, float(theirs.abs().max()))


def _untraceable(names: Sequence[str]) -> PassError:
    quoted = ", ".join(f'"{name}"' for name in names)
    return PassError(
        f"where the channels of {names[0]} go cannot be traced{f' (nor those of {len(names) - 1} more)' if names[1:] else ''}: without some "
        "of them the model does not run, or computes something else than with them silenced",
        where=WHERE,
        fix=f"keep them: exclude = [{quoted}]",
    )


def _lost(each: Channels, kept: Mapping[str, Sequence[int]]) -> list[int]:
    return sorted(set(range(each.width)) - set(kept[each.name])) if each.name in kept else []


def _parts(group: Any, names: Mapping[Any, str], side: str) -> Iterator[Part]:
    """The convolutions and linear layers that write ("out") or read ("in") the channels of a group. A depthwise convolution does
    neither: what it gives is silent when what it takes is."""
    for item in group:
        if _is_handled(item, side):
            yield Part(names[item.dep.target.module], tuple(item.idxs), tuple(item.root_idxs))


def _is_handled(item: Any, side: str) -> bool:
    from torch_pruning import prune_conv_in_channels, prune_conv_out_channels, prune_linear_in_channels, prune_linear_out_channels

    functions = {"out": (prune_conv_out_channels, prune_linear_out_channels), "in": (prune_conv_in_channels, prune_linear_in_channels)}
    return item.dep.handler in functions[side]


def _is_depthwise(layer: Any) -> bool:
    groups = getattr(layer, "groups", 1)
    return bool(groups > 1 and groups == layer.out_channels)


def _outputs(layer: Any) -> int:
    return int(getattr(layer, "out_channels", 0) or layer.out_features)


def _rows(group: Any) -> int | None:
    """In how many equal rows channels have to stay, so that grouped convolutions and normalisations keep their groups; None where
    there is no such number. A depthwise convolution can lose any of its channels."""
    from torch import nn

    width, rows = len(group[0].idxs), 1
    for item in group:
        layer = item.dep.target.module
        groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else getattr(layer, "groups", 1)
        if groups > 1 and not _is_depthwise(layer):
            if list(item.idxs) != list(range(width)) or width % groups:
                return None
            rows = lcm(rows, groups)
    return rows if width % rows == 0 else None


def by_input(layer: Any) -> Any:
    """The weights of a convolution or linear layer by the input that they read, as a view [groups, inputs / groups, …]."""
    by_group = layer.weight.unflatten(0, (getattr(layer, "groups", 1), -1))
    return by_group if getattr(layer, "transposed", False) else by_group.transpose(1, 2)


def by_output(layer: Any) -> Any:
    """The weights of a convolution or linear layer by the output that they write [outputs, …]."""
    if not getattr(layer, "transposed", False):
        return layer.weight
    return layer.weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
