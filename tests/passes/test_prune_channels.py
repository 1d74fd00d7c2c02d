"""prune-channels: whole channels are physically gone, everything that belongs to them too, and nothing else has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.channels import Channels
from edgepipe.config import Data
from edgepipe.errors import DataError, EdgepipeError, ModelError, PassError, UsageError
from edgepipe.importance.channel_widths import kept_units
from edgepipe.importing import import_file
from edgepipe.loader import load_torch
from edgepipe.training.outputs import called
from tests.models import write_vision_model
from tests.passes.running import artifact_of, image_feeds, initializers, outputs, run_done, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepipe.artifact import Artifact

    Network = Callable[..., Artifact]

NETWORKS = Path(__file__).with_name("convolutional_networks.py")
FOLLOWED = ["plain", "flattened", "depthwise", "grouped", "branches"]  # all channels are normalised behind the layer that writes them
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ResNetForImageClassification": {"layer_type": "bottleneck", "hidden_sizes": [32, 64], "depths": [1, 2], "embedding_size": 16},
    "MobileNetV1ForImageClassification": {"depth_multiplier": 0.25, "image_size": 32},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.35, "image_size": 32},
    "RegNetForImageClassification": {
        "embedding_size": 16,
        "hidden_sizes": [32, 64],
        "depths": [1, 1],
        "groups_width": 16,
        "layer_type": "x",
    },
    "EfficientNetForImageClassification": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "image_size": 32},
}
PREPROCESSOR = {"do_resize": True, "size": {"height": 32, "width": 32}, "do_rescale": True}


@pytest.fixture
def network(tmp_path: Path) -> Network:
    """A network of `convolutional_networks.py` with weights and statistics drawn at random, as a user's own."""

    def made(name: str) -> Artifact:
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        module = getattr(import_file(NETWORKS, "networks_of_a_test"), name)({})
        for value in module.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.add_(torch.rand_like(value) * 0.3)
        (folder := tmp_path / name).mkdir()
        save_file(module.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"num_channels": 3, "id2label": {0: "cat", 1: "dog", 2: "fox"}}))
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
        return own(folder, name)

    return made


def own(folder: Path, name: str) -> Artifact:
    return artifact_of(folder, "image-classification", factory=f"{NETWORKS}:{name}", labels=("cat", "dog", "fox"))


def images(artifact: Artifact) -> dict[str, np.ndarray]:
    return {artifact.model.signature["inputs"][0]["name"]: image_feeds()["pixel_values"]}


def result(module: Any, artifact: Artifact) -> np.ndarray:
    import torch

    with torch.no_grad():
        found = called(module.eval(), {name: torch.from_numpy(value) for name, value in images(artifact).items()})
    first: np.ndarray = next(iter(found.values())).numpy()
    return first


def silenced(before: Artifact, after: Artifact) -> Any:
    """The whole model, whose batch normalisations give zero for what the pruned one's have lost, found by their statistics."""
    import torch

    whole, cut = load_torch(before), dict(load_torch(after).named_modules())
    for name, layer in whole.named_modules():
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            lost = ~torch.isin(layer.running_mean, cut[name].running_mean)
            assert int((~lost).sum()) == cut[name].num_features
            layer.weight.data[lost] = layer.bias.data[lost] = 0
    return whole


def assert_cut_cleanly(before: Artifact, after: Artifact) -> None:
    assert after.model.parameters < before.model.parameters
    np.testing.assert_allclose(result(load_torch(after), after), result(silenced(before, after), before), atol=1e-4, rtol=1e-4)


def convolutions(artifact: Artifact) -> dict[str, Any]:
    import torch

    return {name: layer for name, layer in load_torch(artifact).named_modules() if isinstance(layer, torch.nn.modules.conv._ConvNd)}


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "activation"])
@pytest.mark.parametrize("name", FOLLOWED)
def test_networks_lose_channels_and_nothing_else(name: str, importance: str, network: Network, pictures: Data, tmp_path: Path) -> None:
    before = network(name)

    after, again = (
        run_pass("prune-channels", before, tmp_path, data=pictures, ratio=0.4, importance=importance, scope="layer") for _ in range(2)
    )

    assert_cut_cleanly(before, after)
    assert after.digest == again.digest
    assert [layer.out_channels % 8 for layer in convolutions(after).values()] == [0] * len(convolutions(after))


@pytest.mark.parametrize("architecture", TRANSFORMERS)
def test_transformers_networks_lose_channels_and_nothing_else(architecture: str, tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "model", architecture, **TRANSFORMERS[architecture])
    spread_statistics(folder)
    before = artifact_of(folder, "image-classification")

    after = run_pass(
        "prune-channels", before, tmp_path, ratio=0.4, multiple_of=4, exclude=["*squeeze_excite.reduce"] * ("Efficient" in architecture)
    )

    assert_cut_cleanly(before, after)
    np.testing.assert_allclose(outputs(run_pass("export-onnx", after, tmp_path), images(after)), outputs(after, images(after)), atol=1e-4)


def spread_statistics(folder: Path) -> None:
    """Give every channel a running mean of its own, as trained networks have."""
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.copy_(torch.randn_like(value) * 0.1)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["group_normalised", "widened"])
def test_layers_of_other_kinds_are_rebuilt_with_their_new_widths(name: str, network: Network, tmp_path: Path) -> None:
    before = network(name)

    after = run_pass("prune-channels", before, tmp_path, ratio=0.5, scope="layer", multiple_of=4)

    assert after.model.parameters < 0.7 * before.model.parameters
    np.testing.assert_allclose(outputs(run_pass("export-onnx", after, tmp_path), images(after)), outputs(after, images(after)), atol=1e-5)


def test_network_without_a_head_keeps_what_it_gives(tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "model", "ConvNextModel", hidden_sizes=[16, 32], depths=[1, 1], num_stages=2)
    before = artifact_of(folder, "fidelity")

    after = run_pass("prune-channels", before, tmp_path, ratio=0.5)

    assert [value.shape for value in called_shapes(after)] == [value.shape for value in called_shapes(before)]
    assert any(
        new.out_channels < old.out_channels for new, old in zip(convolutions(after).values(), convolutions(before).values(), strict=True)
    )


def called_shapes(artifact: Artifact) -> list[Any]:
    import torch

    return list(called(load_torch(artifact), {name: torch.from_numpy(value) for name, value in images(artifact).items()}).values())


def test_exported_graph_is_smaller_by_exactly_what_was_removed(network: Network, tmp_path: Path) -> None:
    before = network("flattened")
    after = run_pass("prune-channels", before, tmp_path, ratio=0.5)

    def weights(artifact: Artifact) -> int:
        return sum(value.size for value in initializers(run_pass("export-onnx", artifact, tmp_path)).values() if value.dtype == np.float32)

    folded = 3 * 8  # four numbers a channel of the convolution's normalisation become a bias
    assert weights(before) - weights(after) == before.model.parameters - after.model.parameters - folded


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "activation"])
def test_the_only_channels_that_matter_are_kept(importance: str, network: Network, pictures: Data, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    before, busy = network("plain"), [3, 4, 7, 8, 9, 11, 14, 15]
    state = load_file(before.model.folder / "model.safetensors")
    silent = [channel for channel in range(16) if channel not in busy]
    state["2.0.weight"][:, silent] = 0
    state["0.0.weight"][silent] *= 0.1
    state["0.1.bias"] += 1  # so that all of them fire
    save_file(state, before.model.folder / "model.safetensors")
    before = own(before.model.folder, "plain")

    after = run_pass("prune-channels", before, tmp_path, data=pictures, keep={"0.0": 8}, importance=importance)

    np.testing.assert_array_equal(load_torch(after)[0][0].weight.detach(), load_torch(before)[0][0].weight.detach()[busy])
    np.testing.assert_allclose(result(load_torch(after), after), result(load_torch(before), before), atol=1e-5)


def test_what_stays_in_each_layer_is_recorded(network: Network, tmp_path: Path) -> None:
    done = run_done("prune-channels", network("depthwise"), tmp_path, keep={"2.0": 24})

    assert done.figures["channels kept"] == {"0.0": [16, 16], "2.0": [24, 32]}


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("shuffled", {}, PassError, '"first.0"'),
        ("shortcut", {"multiple_of": 1, "scope": "layer"}, PassError, '"first"'),
        ("broken", {}, PassError, "give me tokens"),
        ("without", {}, ModelError, "prune-ffn"),
        ("plain", {"ratio": 0.99, "scope": "layer"}, UsageError, "0.0 none of its 16 channels"),
        ("plain", {"ratio": 0.9}, UsageError, "none of its"),
        ("plain", {"ratio": 0.05}, UsageError, "raise the ratio"),
        ("plain", {"exclude": ["9*"]}, UsageError, 'no layer is named "9*"'),
        ("plain", {"exclude": ["*"]}, ModelError, "exclude fewer layers"),
        ("plain", {"keep": {"0.1": 8}}, UsageError, '"0.0"'),
        ("plain", {"keep": {"0.0": 17}}, UsageError, "17 of its 16"),
        ("grouped", {"keep": {"0.0": 6}}, UsageError, "multiple of 4"),
        ("plain", {"keep": {"0.0": 16}}, UsageError, "smaller numbers"),
        ("plain", {"importance": "taylor"}, DataError, "calibration"),
    ],
)
def test_what_cannot_be_cut_is_said(
    name: str, options: dict[str, Any], error: type[EdgepipeError], said: str, network: Network, tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        run_pass("prune-channels", network(name), tmp_path, **options)

    assert said in str(raised.value)


def test_layers_that_cannot_be_traced_can_be_excluded(network: Network, tmp_path: Path) -> None:
    before = network("shuffled")

    after = run_pass("prune-channels", before, tmp_path, ratio=0.5, exclude=["first*"])

    assert {name: layer.out_channels for name, layer in convolutions(after).items()} == {"first.0": 16, "second.0": 8}
    assert_cut_cleanly(before, after)


sets = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([1, 1, 2, 4])), min_size=1, max_size=5)


@given(sets=sets, ratio=st.floats(0.05, 0.95), per_layer=st.booleans(), multiple_of=st.sampled_from([1, 4, 8]), seed=st.integers(0, 99))
def test_widths_land_on_multiples_and_the_share_is_kept(
    sets: list[tuple[int, int]], ratio: float, per_layer: bool, multiple_of: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    channels = [Channels(f"layer {i}", units * rows, rows, (), (), False) for i, (units, rows) in enumerate(sets)]
    scores = [rng.random(each.units) for each in channels]
    try:
        kept = kept_units(channels, scores, ratio, per_layer=per_layer, multiple_of=multiple_of)
    except UsageError as error:
        assert "ratio" in str(error)
        return
    widths = [units * each.rows for units, each in zip(kept, channels, strict=True)]

    assert all(0 < width <= each.width for width, each in zip(widths, channels, strict=True))
    assert all(width == each.width or width % multiple_of == 0 for width, each in zip(widths, channels, strict=True))
    assert sum(widths) < sum(each.width for each in channels)
    if not per_layer:
        lost = sum(each.width for each in channels) - sum(widths)
        step = max(multiple_of * each.rows for each in channels)
        assert abs(lost - ratio * sum(each.width for each in channels)) <= step
