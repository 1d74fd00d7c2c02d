"""One int8 MiniLM on a Raspberry Pi 4 (emulated and predicted), a Pi 5, a browser (latency unproven) and a phone."""

from __future__ import annotations

import copy
from typing import Any

from tests.report.conftest import row

THREADS = 4
SPREAD = 1.25  # of a predicted time, each way
RATIO_SPREAD = 1.12
NODES = {
    "FusedMatMul": "/encoder/layer.{}/intermediate/dense/MatMul",
    "Attention": "/encoder/layer.{}/attention/Attention",
    "SkipLayerNormalization": "/encoder/layer.{}/output/SkipLayerNorm",
}


def entry(length: str, before_ms: float, after_ms: float, **more: Any) -> dict[str, Any]:
    """A predicted condition as `Measurement.predicted` keeps it."""
    sides = {name: {"ms": ms, "low": ms / SPREAD, "high": ms * SPREAD} for name, ms in (("baseline", before_ms), ("candidate", after_ms))}
    sides["candidate"]["bound"] = "compute"
    ratio = after_ms / before_ms
    return {
        "batch": 1, "length": length, "threads": THREADS, **sides,
        "ratio": {"value": ratio, "low": ratio / RATIO_SPREAD, "high": ratio * RATIO_SPREAD},
        "unchecked": ["SkipLayerNormalization"], "reasons": ["4% of the time is in operators that no published figure has checked"], **more,
    }  # fmt: skip


def nodes(first_ms: float, step_ms: float, total_ms: float) -> list[dict[str, Any]]:
    kinds = list(NODES.items())
    return [
        {
            "name": pattern.format(index // 3),
            "op_type": kind,
            "ms": first_ms - step_ms * index,
            "share": (first_ms - step_ms * index) / total_ms,
            "bound": ("compute", "compute", "memory")[index % 3],
        }
        for index in range(10)
        for kind, pattern in [kinds[index % 3]]
    ]


def predicted_row(found: dict[str, Any], verdict: str) -> dict[str, Any]:
    ratio = found["ratio"]
    reason = f"{1 / ratio['value']:.2f} × as fast as float32 [{1 / ratio['high']:.2f}, {1 / ratio['low']:.2f}], 90 % interval"
    after = found["candidate"]
    return row(
        "latency", "median", "ms", after["ms"], provenance="predicted", baseline=found["baseline"]["ms"], budget=found["baseline"]["ms"],
        interval=[after["low"], after["high"]], verdict=verdict, conditions={name: found[name] for name in ("batch", "length", "threads")},
        reason=("the interval reaches over the limit; " if verdict == "unproven" else "") + reason,
    )  # fmt: skip


def emulated_measurements(before_ms: float, after_ms: float) -> dict[str, Any]:
    entries = [
        entry("task", before_ms, after_ms, median_length=23),
        entry("16", 0.72 * before_ms, 0.68 * after_ms),
        entry("128", 5.4 * before_ms, 7.3 * after_ms),
    ]
    return {
        "runner": "emulated", "threads": THREADS, "timings": [], "classes": {}, "changed": [], "unpredicted": "",
        "predicted": entries,
        "scaling": [{"threads": n, "baseline": before_ms * (0.12 + 3.52 / n), "candidate": after_ms * (0.2 + 3.2 / n)} for n in range(1, THREADS + 1)],
        "costliest": {"baseline": nodes(5.4 * before_ms / 9, 1.4, 5.4 * before_ms), "candidate": nodes(7.3 * after_ms / 10, 1.0, 7.3 * after_ms)},
        "roofline": {
            "points": {
                "baseline": {"operations": 5_530_000_000, "dram_bytes": 212_000_000, "gop_s": 5530 / (5.4 * before_ms)},
                "candidate": {"operations": 5_610_000_000, "dram_bytes": 96_000_000, "gop_s": 5610 / (7.3 * after_ms)},
            },
            "peaks_gop_s": {"float32": 57.6, "int8": 115.2},
            "bandwidth_gb_s": 12.8,
        },
        "transfer": {
            "random": list(range(200)), "nearest": list(range(300, 350)), "near": [3, 4, 5],
            "agreement": {"of": 2200.0, "n": 200.0, "differ": 0.0, "nearest": 50.0, "nearest_differ": 3.0, "max_share": 0.004, "beyond": 0.0},
            "baseline_agreement": {"of": 2200.0, "n": 16.0, "differ": 0.0, "nearest": 0.0, "nearest_differ": 0.0, "max_share": 1e-6, "beyond": 0.0},
        },
    }  # fmt: skip


def on_target(
    manifest: dict[str, Any], name: str, title: str, runner: str, provenance: str, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """The manifest as judged for another device: its own latency rows, what outputs and memory are worth there."""
    found = copy.deepcopy(manifest)
    size = [entry for entry in found["results"] if entry["axis"] == "size"]
    kept = [{**entry, "provenance": provenance} for entry in found["results"] if entry["axis"] not in ("size", "latency")]
    found["results"] = [*kept[:2], *size, *results, *kept[2:]]
    for entry in found["results"]:
        entry["profile"] = name
    verdicts = {entry["verdict"] for entry in found["results"]}
    found["verdict"] = "broken" if "broken" in verdicts else "unproven" if "unproven" in verdicts else "held"
    return {**found, "profile": name, "profile_title": title, "device": {"name": name, "reach": {"runner": runner}}}


def rpi4(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    measured = emulated_measurements(60.1, 41.3)
    verdicts = ("held", "held", "unproven")
    rows = [predicted_row(one, verdict) for one, verdict in zip(measured["predicted"], verdicts, strict=True)]
    return on_target(manifest, "rpi4", "Raspberry Pi 4 Model B, 4 GB", "ssh", "emulated", rows), measured


def rpi5(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    measured = emulated_measurements(26.4, 9.1)
    found = on_target(
        manifest, "rpi5", "Raspberry Pi 5, 8 GB", "ssh", "emulated", [predicted_row(one, "held") for one in measured["predicted"]]
    )
    return found, measured


def browser(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs are measured in a browser here; its times are another machine's."""
    doubt = "times are this machine's, not those of the PC the profile names"
    conditions = {"batch": 1, "length": "task", "threads": THREADS}
    times = row(
        "latency", "median", "ms", 11.8, provenance="host", baseline=14.2, budget=14.2, interval=[11.2, 12.4], n=400, verdict="unproven",
        reason=doubt, conditions=conditions,
    )  # fmt: skip
    found = on_target(manifest, "browser-wasm", "A browser, WASM with SIMD and threads", "browser", "measured", [times])
    invariance = next(one for one in found["results"] if one["metric"] == "cosine to a plain session")
    invariance.update(value=0.97, verdict="broken")
    found["verdict"] = "broken"
    return found, {"runner": "browser", "threads": THREADS, "timings": [], "classes": {}, "changed": []}


def phone(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """No latency at all, and what two accelerators would take."""
    conditions = {"batch": 1, "length": "task", "threads": 6}
    unproven = row(
        "latency", "median", "ms", None, provenance="host", verdict="unproven", reason="emulated times are no latencies", conditions=conditions
    )  # fmt: skip
    found = on_target(manifest, "iphone-current", "iPhone 15 and later", "adb", "host", [unproven])
    for accelerator in ("CoreML", "XNNPACK"):
        for shapes, share in (("as exported", 0.0), ("fixed", 0.93)):
            found["results"].append(
                row(
                    "operators", f"{accelerator} share of arithmetic", "share", share, better="higher", provenance="predicted", n=512,
                    reason="6 partitions of 12 to 88 nodes; worth it: maybe; by the support table of onnxruntime 1.20", profile="iphone-current",
                    conditions={"batch": 1, "shapes": shapes, "partitions": 6},
                )
            )  # fmt: skip
    for one in found["results"]:
        if one["metric"] == "without a kernel":
            one.update(provenance="predicted", reason="by the support table of onnxruntime 1.20")
        elif one["provenance"] == "host" and one["verdict"]:
            one.update(verdict="unproven")
            one["reason"] = one["reason"] or "nothing here can stand for iPhone 15 and later; validate the bundle on such a machine"
    found["verdict"] = "unproven"
    return found, {
        "runner": "local",
        "threads": 6,
        "timings": [],
        "classes": {},
        "changed": [],
        "unpredicted": "no C compiler: apt-get install gcc libc6-dev",
    }
