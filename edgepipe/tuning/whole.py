"""The whole model on the target, as float32 and as quantized: what adding up its parts leaves out.

A convolution on codes between others in float32 has its neighbours leave the blocked layout that the runtime chains them
in; cut out, both variants pay for that. Of a network of 0.05 ms two that gained 1 µs each so cost 5 µs (onnxruntime 1.32,
x86 with AVX-512).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.tuning.site_costs import costs_there, typical_feeds
from edgepipe.weights import load_onnx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.artifact import Artifact
    from edgepipe.pipeline import Setting

LARGEST_BYTES = 500_000_000  # of a model that is timed as a whole: it is loaded with its weights


def whole_ms(artifacts: Mapping[str, Artifact], setting: Setting) -> dict[str, float]:
    """Milliseconds of each, which have one artifact's session options, on the real sample of median size; nothing where one is
    too large. Raises `DeviceError`."""
    if any(artifact.model.size_bytes > LARGEST_BYTES for artifact in artifacts.values()):
        return {}
    graphs: dict[str, Any] = {}
    feeds = typical_feeds(next(iter(artifacts.values())), setting)
    for name, artifact in artifacts.items():
        taken = {entry["name"]: feeds[entry["name"]] for entry in artifact.model.signature["inputs"]}
        graphs[f"whole/{name}"] = (load_onnx(artifact.model.main_file, data=True), taken)
    costs = costs_there(graphs, artifact, setting)
    return {name: costs.ms[f"whole/{name}"] for name in artifacts}
