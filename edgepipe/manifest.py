"""manifest.json: what a build did and what was proven, in keys that tools rely on (add, don't rename)."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edgepipe.bundle import device_bytes, totals
from edgepipe.machine import machine_facts
from edgepipe.pipeline import library_version
from edgepipe.result import Result, exit_code, overall

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.config import Recipe
    from edgepipe.pipeline import PassRun
    from edgepipe.profile import Profile

SCHEMA_VERSION = 1
LIBRARIES = ("edgepipe", "onnx", "onnxruntime", "numpy", "tokenizers", "torch", "transformers", "peft", "optimum", "optimum-onnx")


def make_manifest(
    artifact: Artifact,
    baseline: Artifact,
    profile: Profile,
    recipe: Recipe,
    runs: Sequence[PassRun],
    results: Sequence[Result],
    flops: Mapping[str, Any],
    *,
    strict: bool,
    context: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of one build for one profile; `context` adds task, data and licences."""
    return {
        "schema_version": SCHEMA_VERSION,
        "edgepipe": library_version("edgepipe") or "unknown",
        "created": created(),
        "profile": profile.name,
        "profile_title": profile.title,
        "device": profile.model_dump(mode="json", exclude={"reach": {"address"}}),
        "verdict": overall(results),
        "exit_code": exit_code(results, strict=strict),
        "artifact": artifact.digest,
        "program": dict(artifact.program),
        "components": [
            {"role": role, "path": f"{role}/{ref.path}", "format": component.format, "sha256": ref.sha256, "bytes": ref.bytes}
            for role, component in sorted(artifact.components.items())
            for ref in component.files
        ],
        "model": {**totals(artifact), "flops": flops["model"]["flops"], "flops_shape": flops["model"]["shape"]},
        "baseline": {**totals(baseline), "flops": flops["baseline"]["flops"], "flops_shape": flops["baseline"]["shape"]},
        "versions": versions(),
        "machine": machine_facts(),
        "left_out": list(recipe.left_out),
        "passes": [run.to_json() for run in runs],
        "results": result_rows(results, profile, artifact),
        **context,
    }


def versions() -> dict[str, str]:
    """Of the libraries that did the work, those that are installed."""
    return {name: found for name in LIBRARIES if (found := library_version(name))}


def created() -> str:
    """Now, or SOURCE_DATE_EPOCH for builds that must give the same bytes again."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch and epoch.isdigit() else datetime.now(UTC)
    return moment.isoformat(timespec="seconds")


def result_rows(results: Sequence[Result], profile: Profile, artifact: Artifact) -> list[dict[str, Any]]:
    """The verdicts as the manifest has them, with the bundle's own bytes behind those of its components."""
    rows = [result.to_json() for result in results]
    rows.insert(next(index for index, row in enumerate(rows) if row["axis"] == "size") + 1, _bundle_row(profile, artifact))
    return rows


def _bundle_row(profile: Profile, artifact: Artifact) -> dict[str, Any]:

    whole = "model" if len(artifact.roles) == 1 else "pipeline"
    what = "model, assets, driver and run.py"
    size = device_bytes(artifact)
    return Result(profile.name, "size", "bytes on the device", "bytes", size, "measured", reason=what, component=whole).to_json()


def manifest_schema() -> dict[str, Any]:
    """The published JSON Schema of the manifest."""
    text, number, whole, flag = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
    maybe_number = {"type": ["number", "null"]}
    total = _object(sha256=text, size_bytes=whole, parameters=whole, flops=whole, flops_shape={"type": "object"})
    check = _object(name=text, held=flag, value=maybe_number, limit=maybe_number, detail=text)
    a_pass = _object(
        name=text,
        on=text,
        options={"type": "object"},
        reason=text,
        seconds=number,
        peak_rss_bytes=whole,
        size_bytes_before=whole,
        size_bytes_after=whole,
        cached=flag,
        checks={"type": "array", "items": check},
        artifact=text,
        parameters=whole,
        figures={"type": "object"},
    )
    result = _object(
        profile=text,
        component=text,
        axis={"enum": ["accuracy", "size", "latency", "memory", "parity", "operators"]},
        metric=text,
        unit=text,
        conditions={"type": "object"},
        baseline=maybe_number,
        value=maybe_number,
        budget=maybe_number,
        interval={"type": ["array", "null"], "items": number, "minItems": 2, "maxItems": 2},
        n={"type": ["integer", "null"]},
        provenance={"enum": ["measured", "emulated", "predicted", "host"]},
        verdict={"enum": ["held", "broken", "unproven", None]},
        reason=text,
        better={"enum": ["lower", "higher"]},
    )
    schema = _object(
        schema_version={"const": SCHEMA_VERSION},
        edgepipe=text,
        created=text,
        profile=text,
        profile_title=text,
        device={"type": "object"},
        verdict={"enum": ["held", "broken", "unproven"]},
        exit_code=whole,
        artifact=text,
        program={"type": "object"},
        components={"type": "array", "items": _object(role=text, path=text, format=text, sha256=text, bytes=whole)},
        model=total,
        baseline=total,
        versions={"type": "object"},
        machine={"type": "object"},
        left_out={"type": "array", "items": text},
        passes={"type": "array", "items": a_pass},
        results={"type": "array", "items": result},
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edgepipe manifest", **schema}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}
