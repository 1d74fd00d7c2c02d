"""Heads and feed-forward neurons of the demo model cut at several ratios, then int8: accuracy, size, latency, as a plot."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from demo import RESULTS, request, write_result

from edgepipe.build import compress
from edgepipe.config import Recipe, dump_recipe

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
LOOSE = ["max_accuracy_drop=100", "max_size_ratio=1", "max_latency_ratio=10"]  # a curve is wanted, not a verdict


def recipe(ratio: float) -> Recipe:
    cut = [{"pass": "prune-heads", "options": {"ratio": ratio}}, {"pass": "prune-ffn", "options": {"ratio": ratio}}] if ratio else []
    names = [{"pass": "merge-lora"}, *cut, {"pass": "export-onnx"}, {"pass": "optimize-graph"}, {"pass": "quantize-dynamic"}]
    return Recipe.model_validate({"step": names})


def build(ratio: float, work: Path) -> dict[str, Any]:
    path = work / f"{ratio}.toml"
    path.write_text(dump_recipe(recipe(ratio)))
    made = compress(request(profiles=["host"], recipe=str(path), budget=LOOSE, out=str(work / f"out-{ratio}")))[0]
    rows = {(row["metric"], row["conditions"].get("length")): row for row in made.manifest["results"]}
    accuracy, drop, timed = rows["accuracy", "task"], rows["accuracy drop", "task"], rows["median", "128"]
    return {
        "ratio": ratio, "accuracy": accuracy["value"], "interval": accuracy["interval"], "drop": drop["value"], "size_bytes": made.manifest["model"]["size_bytes"],
        "parameters": made.manifest["model"]["parameters"], "flops": made.manifest["model"]["flops"], "ms_1x128": timed["value"], "float32_ms_1x128": timed["baseline"],
    }  # fmt: skip


def plot(rows: list[dict[str, Any]]) -> str:
    """Accuracy with its interval against size and against latency, as one SVG."""
    width, height, pad = 340, 260, 46

    def panel(left: int, key: str, scale: float, label: str) -> str:
        xs = [row[key] / scale for row in rows]
        low_x, high_x = min(xs) * 0.95, max(xs) * 1.05
        low_y = min(row["interval"][0] for row in rows) - 1
        high_y = max(row["interval"][1] for row in rows) + 1

        def at(x: float, y: float) -> tuple[float, float]:
            return left + pad + (x - low_x) / (high_x - low_x) * (width - pad - 12), 12 + (high_y - y) / (high_y - low_y) * (
                height - pad - 12
            )

        parts = [f'<rect x="{left + pad}" y="12" width="{width - pad - 12}" height="{height - pad - 12}" fill="none" stroke="#999"/>']
        for tick in range(5):
            value = low_y + (high_y - low_y) * tick / 4
            y = at(low_x, value)[1]
            parts.append(f'<text x="{left + pad - 6}" y="{y + 4:.0f}" text-anchor="end">{value:.0f}</text>')
            where = low_x + (high_x - low_x) * tick / 4
            parts.append(f'<text x="{at(where, low_y)[0]:.0f}" y="{height - pad + 16}" text-anchor="middle">{where:.1f}</text>')
        points = [at(x, row["accuracy"]) for x, row in zip(xs, rows, strict=True)]
        parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" stroke="#2563eb"/>')
        for x, row in zip(xs, rows, strict=True):
            (px, top), (_, bottom), (_, py) = at(x, row["interval"][1]), at(x, row["interval"][0]), at(x, row["accuracy"])
            parts.append(
                f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="#2563eb"/><circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="#2563eb"/>'
            )
            parts.append(f'<text x="{px + 6:.1f}" y="{py - 6:.1f}" fill="#555">{row["ratio"]:.0%}</text>')
        parts.append(f'<text x="{left + (width + pad) / 2:.0f}" y="{height - 8}" text-anchor="middle">{label}</text>')
        return "".join(parts)

    inner = panel(0, "size_bytes", 1e6, "size, MB (accuracy in points; share cut at each point)") + panel(
        width, "ms_1x128", 1, "latency at 1 × 128, ms"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {height}" font-family="sans-serif" font-size="11">'
    return f'{head}<rect width="100%" height="100%" fill="white"/>{inner}</svg>\n'


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [build(ratio, Path(folder)) for ratio in RATIOS]
    lines = [
        "| cut | accuracy [95 %] | drop | bytes | parameters | GFLOP | ms at 1 × 128 | over float32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['ratio']:.0%} | {row['accuracy']:.2f} [{row['interval'][0]:.2f}, {row['interval'][1]:.2f}] | {row['drop']:.2f} | {row['size_bytes']:,} | "
            f"{row['parameters']:,} | {row['flops'] / 1e9:.2f} | {row['ms_1x128']:.2f} | {row['float32_ms_1x128'] / row['ms_1x128']:.2f} × |"
        )
    write_result("pruning", "python benchmarks/pruning.py", "\n".join(lines), rows)
    (RESULTS / "pruning.svg").write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
