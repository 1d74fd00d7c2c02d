"""The manifest's keys are API: they are all there, and none is renamed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest

from edgepipe.artifact import Artifact
from edgepipe.bundle import device_bytes
from edgepipe.config import Budget, Recipe, Task
from edgepipe.cost.flops import count_flops
from edgepipe.manifest import created, make_manifest, manifest_schema
from edgepipe.pipeline import PassRun
from edgepipe.profile import load_profile
from edgepipe.tasks import load_task
from edgepipe.verdict import judge
from tests.measurements import measurement

OPEN = {"options", "program", "versions", "machine", "flops_shape"}  # what is in them depends on model and machine
CONTEXT = {
    "source": {"model": "m", "adapters": [], "task": "text-classification", "licences": {}, "rows": {"test": 2000}},
    "budget": Budget().model_dump(),
}


@pytest.fixture(scope="module")
def manifest(onnx_artifact: Artifact) -> dict[str, Any]:
    """What a build for a Raspberry Pi 4 writes whose size does not hold."""
    profile = load_profile("rpi4")
    recipe = Recipe.model_validate({"step": [{"pass": "quantize-dynamic"}], "left_out": ["merge-lora: no adapter is given"]})
    checks = [{"name": "loads", "held": True, "value": None, "limit": None, "detail": "opens and runs"}]
    run = PassRun(
        "quantize-dynamic", "model", {"per_channel": True}, "why", 1.5, 10**8, 4000, 1000, False, checks, onnx_artifact.digest, 100
    )
    results = judge(measurement(), onnx_artifact, onnx_artifact, profile, load_task(Task(name="text-classification")), Budget())
    flops = dict.fromkeys(("model", "baseline"), count_flops(onnx_artifact, 1))
    return make_manifest(onnx_artifact, onnx_artifact, profile, recipe, [run], results, flops, strict=False, context=CONTEXT)


def keys(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.{key}".lstrip(".")
            if key not in OPEN:
                yield from keys(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner, f"{path}[]")


def test_keys_are_the_golden_ones(manifest: dict[str, Any], golden: Callable[[str, str], None]) -> None:
    golden("manifest_keys.txt", "\n".join(sorted(set(keys(manifest)))) + "\n")


def test_manifest_follows_its_schema_as_json(manifest: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(manifest_schema())
    jsonschema.validate(json.loads(json.dumps(manifest, allow_nan=False)), manifest_schema())


@pytest.mark.parametrize("key", manifest_schema()["required"])
def test_every_published_key_is_required(manifest: dict[str, Any], key: str) -> None:
    less = {name: value for name, value in manifest.items() if name != key}

    with pytest.raises(jsonschema.ValidationError, match="required property"):
        jsonschema.validate(less, manifest_schema())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), "fine"),
        (("results", 0, "axis"), "speed"),
        (("results", 0, "provenance"), "guessed"),
        (("results", 0, "interval"), [1]),
        (("model", "size_bytes"), "big"),
        (("passes", 0, "cached"), 1),
    ],
)
def test_value_of_another_kind_breaks_the_schema(manifest: dict[str, Any], path: tuple[Any, ...], value: object) -> None:
    changed = copy.deepcopy(manifest)
    inner = changed
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, manifest_schema())


def test_documented_keys_are_all_there(manifest: dict[str, Any]) -> None:
    documented = {
        "schema_version", "edgepipe", "created", "profile", "verdict", "exit_code", "program", "components", "model", "baseline", "versions", "machine",
        "passes", "results", "components[].role", "components[].path", "components[].format", "components[].sha256", "components[].bytes",
        "model.sha256", "model.size_bytes", "model.parameters", "model.flops", "model.flops_shape", "passes[].name", "passes[].on", "passes[].options",
        "passes[].reason", "passes[].seconds", "passes[].peak_rss_bytes", "passes[].size_bytes_before", "passes[].size_bytes_after", "passes[].cached",
        "passes[].checks[].name", "passes[].checks[].held", "passes[].checks[].value", "passes[].checks[].limit", "results[].profile",
        "results[].component", "results[].axis", "results[].metric", "results[].unit", "results[].conditions", "results[].conditions.batch",
        "results[].conditions.length", "results[].conditions.threads", "results[].baseline", "results[].value", "results[].budget", "results[].interval",
        "results[].n", "results[].provenance", "results[].verdict", "results[].reason",
    }  # fmt: skip

    assert documented <= set(keys(manifest))


def test_verdict_and_exit_code_are_the_results(manifest: dict[str, Any]) -> None:
    assert (manifest["verdict"], manifest["exit_code"]) == ("broken", 11)
    assert {row["verdict"] for row in manifest["results"] if row["axis"] == "size"} == {"broken", None}


def test_bytes_on_the_device_are_a_second_size_row(manifest: dict[str, Any], onnx_artifact: Artifact) -> None:
    rows = [row for row in manifest["results"] if row["axis"] == "size"]

    assert [row["metric"] for row in rows] == ["component bytes", "bytes on the device"]
    assert [row["value"] for row in rows] == [onnx_artifact.model.size_bytes, device_bytes(onnx_artifact)]


def test_components_name_files_of_the_bundle(manifest: dict[str, Any], onnx_artifact: Artifact) -> None:
    assert manifest["components"] == [
        {
            "role": "model",
            "path": "model/model.onnx",
            "format": "onnx",
            "sha256": onnx_artifact.model.files[0].sha256,
            "bytes": onnx_artifact.model.size_bytes,
        }
    ]


def test_machine_has_the_flags_that_choose_kernels(manifest: dict[str, Any]) -> None:
    assert manifest["machine"]["flags"] == sorted(manifest["machine"]["flags"]) != []
    assert manifest["machine"]["cpu"]


def test_time_is_the_one_that_reproducible_builds_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert created() == "2023-11-14T22:13:20+00:00"

    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert created() > "2024"
