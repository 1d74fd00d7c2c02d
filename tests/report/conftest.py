"""A hand-made manifest and measurements, small enough to see through, with what the renderers read."""

from __future__ import annotations

from typing import Any

import pytest


def row(axis: str, metric: str, unit: str, value: float | None, **more: Any) -> dict[str, Any]:
    empty = {
        "baseline": None,
        "budget": None,
        "interval": None,
        "n": None,
        "verdict": None,
        "reason": "",
        "better": "lower",
        "conditions": {},
    }
    return {
        "profile": "pi",
        "axis": axis,
        "metric": metric,
        "unit": unit,
        "value": value,
        "provenance": "measured",
        "component": "model",
        **empty,
        **more,
    }


def check(name: str, value: float | None = None, limit: float | None = None, *, held: bool = True) -> dict[str, Any]:
    return {"name": name, "held": held, "value": value, "limit": limit, "detail": "seen"}


def run(name: str, before: int, after: int, *checks: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name, "on": "model", "options": {"per_channel": True}, "reason": f"why {name}", "seconds": 1.5, "peak_rss_bytes": 200_000_000,
        "size_bytes_before": before, "size_bytes_after": after, "cached": False, "checks": list(checks), "artifact": "a" * 64, "parameters": 10,
    }  # fmt: skip


@pytest.fixture
def manifest() -> dict[str, Any]:
    task = {"batch": 1, "length": "task", "threads": 2}
    return {
        "schema_version": 1, "edgepipe": "0.1.0", "created": "2026-01-02T03:04:05+00:00", "profile": "pi", "profile_title": "A small board",
        "verdict": "held", "exit_code": 0, "artifact": "a" * 64,
        "program": {"kind": "single", "task": "text-classification", "labels": ["no", "yes"], "preprocess": {"kind": "text", "max_length": 64}},
        "components": [{"role": "model", "path": "model/model.onnx", "format": "onnx", "sha256": "f" * 64, "bytes": 25_000_000}],
        "model": {"sha256": "f" * 64, "size_bytes": 25_000_000, "parameters": 10, "flops": 2_000_000_000, "flops_shape": {"ids": [1, 16]}},
        "baseline": {"sha256": "e" * 64, "size_bytes": 100_000_000, "parameters": 10, "flops": 2_000_000_000, "flops_shape": {"ids": [1, 16]}},
        "versions": {"onnxruntime": "1.20.0"}, "machine": {"system": "Linux", "arch": "x86_64", "cpu": "A CPU", "flags": ["avx2"], "cores": 2, "ram_bytes": 10**9},
        "left_out": ["4-bit weights: no pass for it yet"],
        "passes": [run("merge-lora", 100_000_000, 100_000_000, check("equal-outputs", 1e-7, 1e-4)), run("quantize-dynamic", 100_000_000, 25_000_000, check("loads"))],
        "results": [
            row("accuracy", "accuracy", "points", 89.5, baseline=90.0, interval=[88.0, 91.0], n=1000, conditions=task),
            row("accuracy", "accuracy drop", "points", 0.5, budget=1.0, interval=[-0.1, 1.1], n=1000, verdict="held", conditions=task),
            row("size", "component bytes", "bytes", 25_000_000, baseline=100_000_000, budget=30_000_000, verdict="held", reason="4.00 × smaller"),
            row("latency", "median", "ms", 2.0, baseline=4.0, budget=4.0, interval=[1.9, 2.1], n=4, verdict="held", conditions=task),
            row("latency", "median", "ms", 1.0, baseline=3.0, budget=3.0, n=4, verdict="held", conditions={"batch": 1, "length": "16", "threads": 2}),
            row("memory", "peak of a fresh process", "bytes", 100_000_000, baseline=200_000_000, budget=10**9, verdict="held"),
            row("parity", "cosine to a plain session", "", 1.0, better="higher", budget=0.999, n=200, verdict="held"),
            row("parity", "batch invariance", "share", 0.98, better="higher", n=200, reason="outputs move by up to 0.97"),
            row("operators", "without a kernel", "operator types", 0, budget=0, n=16, verdict="held", reason="loaded and ran"),
        ],
        "source": {"model": "mini", "adapters": ["films"], "task": "text-classification", "licences": {}, "rows": {"test": 1000}},
    }  # fmt: skip


@pytest.fixture
def measurements() -> dict[str, Any]:
    times = {"batch": 1, "length": "task", "baseline_ms": [3.0, 4.0, 4.0, 5.0], "candidate_ms": [1.5, 2.0, 2.0, 2.5]}
    return {
        "runner": "local", "threads": 2, "other_load": 0.1, "timings": [{**times, "end_to_end": False}, {**times, "end_to_end": True}],
        "classes": {"no": {"n": 500, "baseline": 450, "candidate": 455}, "yes": {"n": 500, "baseline": 450, "candidate": 440}},
        "changed": [
            {"input": "fine film", "label": "yes", "before": "yes", "after": "no"},
            {"input": "poor film", "label": "no", "before": "yes", "after": "no"},
        ],
    }  # fmt: skip


def change(manifest: dict[str, Any], metric: str, **values: Any) -> None:
    """Change the first row of that metric."""
    next(entry for entry in manifest["results"] if entry["metric"] == metric).update(values)


@pytest.fixture
def change_row() -> Any:
    return change
