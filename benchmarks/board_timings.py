"""Holds the latency predictor against published timings (board_timings.toml) and fits the cores' constants.

Held out of the cores' fit: stated on 2026-11-24 before any constant was fitted, and not changed since.
  models    ResNet-50, EfficientNet (b0, lite0), ViT-B/32: on every board and runtime
  boards    vim3, kirin970 (all that is known of the A73); jetson-orin-nano, jetson-agx-orin (all of the A78AE);
            rock5b, rk3588 (A76 and A55), orangepi5-plus, rpi5-oc; orangepi4-lts (A53 and A72);
            arduino-uno-q, ax630c, eaidk-310, nanopi-r2s (A53); radxa-zero3w, station-p2 (A55)
  runtimes  ONNX Runtime: every figure; TFLite with ruy on RK3588S: both versions
Fitted on what is left: ncnn on rpi3b+, rpizero2w, rdk-x3, orangepi-zero2, rk3399, snapdragon410 (A53), rpi4, rk3399 (A72),
rpi5, orangepi5 (A76), orangepi-cm4, rock3a, station-m2, remipi, orangepi5, avaota-aim-t527 (A55). TFLite: checked only.

ONNX Runtime, stated on 2026-11-25 before its constants were fitted and before any further network was counted: its
twelve comparable figures counted until then (RUNTIME_FITTED on Raspberry Pi 4, 5 and Jetson Orin Nano; all had been
predicted too fast, by 0 to 29 %) are from now on fitted, to at most two constants of that runtime: a factor on its
work and a cost per node. Its hold-out is every comparable row whose network had not been counted by then: of the same
source the nine others (and whatever of them can be rebuilt as published). ncnn's constants do not change, and those of
ONNX Runtime do not change once the hold-out has been predicted. (Frozen at 00:44 UTC that day, factor 1.181 and sync_us
74.51, before any of the hold-out was predicted; the networks are timm's and torchvision's, as the source's own script
makes them.) Only the interval, log_sigma, is set by both. New networks on the boards that were fitted, float32, all
threads: for int8, one thread and other boards it says less, and there the interval is wider (interval_sigma, and
checked_operators, which lists those of comparable figures only).

Constants come from the fitted figures alone. Two parts of the model's form were added after held-out figures of several
threads had been seen (Raspberry Pi 4, ONNX Runtime and TFLite): that cores share what a common cache delivers, which
ncnn's figures then confirm, and that ONNX Runtime 1.20 runs depthwise convolutions on one thread, which its source says.

Not compared with, by what their source says and not by their error: 32-bit systems; four threads on two cores; threads
or clock not stated, or big and little cores mixed (printed apart); and ncnn of before 2023 on cores with float16
arithmetic and dot products (A55, A76, A78AE), whose kernels today's wheel no longer has, as TFLite 2.7's int8 there.

    python benchmarks/board_timings.py            results/board_timings.md from profiles/cores/calibration.toml
    python benchmarks/board_timings.py --fit      fits, and writes that file, first

An error is (predicted - published) / published, in the table and in the summary, where it is the median of its absolute
values. An error of a ratio or a speed-up is the predicted one over the published one, less 1.
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import board_counts
from board_fit import Figure, error, fit, fit_runtime

from edgepipe.cost.cores import CALIBRATION, Calibration, Core, Fitted, FittedRuntime, all_cores, load_calibration
from edgepipe.cost.latency import interval_sigma
from edgepipe.resources import resource

HERE = Path(__file__).parent
HELD_OUT_MODELS = ("resnet-50", "efficientnet-b0", "efficientnet-lite0", "vit-b-32")
HELD_OUT_BOARDS = (
    "vim3", "kirin970", "jetson-orin-nano", "jetson-agx-orin", "rock5b", "rk3588", "orangepi5-plus", "rpi5-oc", "orangepi4-lts",
    "arduino-uno-q", "ax630c", "eaidk-310", "nanopi-r2s", "radxa-zero3w", "station-p2", "rk3588s",
)  # fmt: skip
RUNTIME_FITTED = ("efficientnet-b0", "mobilenet-v2", "mobilenet-v3-large", "resnet-18")  # ONNX Runtime's own constants; stated 2026-11-25
ARMV8_2 = ("cortex-a55", "cortex-a76", "cortex-a78", "cortex-a78ae")
COUNTED_AS = {"cortex-a78": "cortex-a76", "cortex-a78ae": "cortex-a76"}  # the same features, so the same kernels
SHARES = {"cortex-a73": "cortex-a72", "cortex-a78": "cortex-a76", "cortex-x1": "cortex-a76", "neoverse-n1": "cortex-a76"}
INPUTS = {  # counted with, where not 224 × 224
    ("ncnn", "squeezenet-1.1"): "1x3x227x227",
    ("ncnn", "vit-b-32"): "1x3x384x384",
    ("onnxruntime", "yolo11n"): "1x3x640x640",
    ("onnxruntime", "yolo11s"): "1x3x640x640",
}
Z90 = 1.645
COMMAND = "python benchmarks/board_timings.py"
RESULT = HERE / "results" / "board_timings.md"


def figures() -> list[Figure]:
    """Every published figure whose network has been counted."""
    runs = board_counts.read()
    bandwidth = tomllib.loads((HERE / "board_facts.toml").read_text(encoding="utf-8"))["bandwidth_gb_s"]
    found = []
    for row in tomllib.loads((HERE / "board_timings.toml").read_text(encoding="utf-8"))["figure"]:
        precision = "int8" if row["precision"] == "int8" else "float"
        what = "/".join((row["model"], precision, COUNTED_AS.get(row["core"], row["core"])))
        run = runs.get(f"{row['runtime']}/{what}")
        if row["runtime"] == "onnxruntime":  # all figures are of versions before 1.24: the wheel of 1.20 where it was counted
            run = runs.get(f"onnxruntime-1.20/{what}", run)
        if run is None or row["input"] != INPUTS.get((row["runtime"], row["model"]), "1x3x224x224"):
            continue
        found.append(
            Figure(
                row["board"], row["core"], row["runtime"], row["version"], row["model"], precision, row["threads"] or 4,
                row["clock_mhz"] or (1500 if row["board"] == "rpi4" else 2400), bandwidth.get(row["board"], 8.0), row["ms"], row["source"],
                run, held_out(row), doubtful(row),
            )
        )  # fmt: skip
    return found


def held_out(row: dict[str, str]) -> str:
    """Why the figure is in no fit: not in ncnn's, which fits the cores, and of ONNX Runtime not in its own either."""
    if row["runtime"] == "onnxruntime":
        return "" if row["model"] in RUNTIME_FITTED else "network not counted before"
    if row["model"] in HELD_OUT_MODELS:
        return "model"
    if row["board"] in HELD_OUT_BOARDS:
        return "board"
    return ""


def doubtful(row: dict[str, str]) -> str:
    if "32-bit" in row["note"] or "4 threads on 2 cores" in row["note"]:
        return row["note"]
    if row["runtime"] == "ncnn" and row["core"] in ARMV8_2 and row["version"] < "2023":
        return "older kernels"
    if row["version"] == "2.7.1" and row["core"] in ARMV8_2:
        return "older kernels"
    if "threads not stated" in row["note"] or "threads, clock" in row["note"] or "not pinned" in row["note"]:
        return "threads not stated"
    return ""


def quantile90(values: list[float]) -> float:
    ordered = sorted(abs(value) for value in values)
    return ordered[min(len(ordered) - 1, math.ceil(0.9 * len(ordered)) - 1)] if ordered else 0.0


def runtime_sigma(figures: list[Figure], tables: dict[str, Core], constants: dict[str, Fitted], serial_fraction: float) -> float:
    """So wide that 90 % of a runtime's figures lie inside, fitted or held out, each by constants that its board had no
    part in; and one figure more than that for there being few."""
    offs = []
    for board in sorted({f.board for f in figures}):
        without = fit_runtime([f for f in figures if f.board != board and not f.held_out], tables, constants, serial_fraction)
        offs += [abs(error(f, tables, constants, serial_fraction, without)) for f in figures if f.board == board]
    return sorted(offs)[min(len(offs) - 1, math.ceil(0.9 * (len(offs) + 1)))] / Z90


def fit_and_write(every: list[Figure], tables: dict[str, Core]) -> None:
    """Fits, and sets each interval by boards that were left out in turn, so that it is as wide as on a new board."""
    used = [f for f in every if not f.held_out and not f.doubtful and f.runtime == "ncnn"]
    constants, common = fit(used, tables)
    serial, unit = common["serial_fraction"], ncnn_runtime(used, common)
    left_out: list[tuple[Figure, float]] = []
    for board in sorted({f.board for f in used}):
        others = [f for f in used if f.board != board]
        without, common_without = fit(others, tables)
        runtime = ncnn_runtime(others, common_without)
        left_out += [
            (f, error(f, tables, without, common_without["serial_fraction"], runtime))
            for f in used if f.board == board and f.core in without
        ]  # fmt: skip
    one = {core: quantile90([e for f, e in left_out if f.core == core and f.threads == 1]) / Z90 for core in constants}
    typical = max(quantile90([e for f, e in left_out if f.threads == 1]) / Z90, 0.05)
    many = quantile90([e for f, e in left_out if f.threads > 1]) / Z90
    pairs = ratio_errors(left_out)
    own = [f for f in every if f.runtime == "onnxruntime" and not f.doubtful]
    operators = sorted({op for f in own for op, *_ in f.run.groups if op})
    lines = [
        "# Written by benchmarks/board_timings.py --fit, from the figures that it does not hold out. Not edited by hand.",
        f"serial_fraction = {serial:.4f}",
        f"threads_log_sigma = {math.sqrt(max(0.0, many**2 - typical**2)):.3f}",
        f"ratio_log_sigma = {quantile90(pairs) / Z90:.3f}",
        "unchecked_log_sigma = 0.2  # assumed: as far as the fitted runtimes' networks are off at worst",
        "stand_in_log_sigma = 0.15  # assumed: as far as cores of one family are apart",
        f"checked_operators = {json.dumps(operators)}",
    ]
    for core, table in sorted(tables.items()):
        source = core if core in constants else SHARES.get(core, "")
        if source not in constants or core != table.core:
            continue
        found = constants[source]
        boards = sorted({f.board for f in used if f.core == core})
        lines += ["", f"[cores.{core}]", f"to = {json.dumps('ncnn on ' + ', '.join(boards) if boards else source)}"]
        lines += [f"figures = {sum(f.core == core for f in used)}"]
        lines += [f"{name} = {value:.3f}" for name, value in found.model_dump().items() if name not in ("to", "figures", "log_sigma")]
        lines += [f"log_sigma = {max(one[source], typical):.3f}"]
    constants |= {core: constants[source] for core, source in SHARES.items()} | {"cortex-a78ae": constants["cortex-a76"]}
    found_runtime = fit_runtime([f for f in own if not f.held_out], tables, constants, serial)
    sigma = runtime_sigma(own, tables, constants, serial)
    for name, runtime in (("ncnn", unit), ("onnxruntime", found_runtime)):
        lines += ["", f"[runtimes.{name}]", f"to = {json.dumps(runtime.to)}", f"figures = {runtime.figures}"]
        lines += [f"factor = {runtime.factor:.3f}", f"sync_us = {runtime.sync_us:.2f}"]
    lines += [f"log_sigma = {sigma:.3f}", f"cores = {json.dumps(sorted({tables[f.core].core for f in own}))}"]
    (resource("profiles") / "cores" / CALIBRATION).write_text("\n".join(lines) + "\n", encoding="utf-8")
    load_calibration.cache_clear()


def ncnn_runtime(figures: list[Figure], common: dict[str, float]) -> FittedRuntime:
    """The unit that other runtimes' factors are of."""
    return FittedRuntime(to="the figures of the cores", figures=len(figures), factor=1.0, sync_us=common["sync_us"])


def ratio_errors(found: list[tuple[Figure, float]]) -> list[float]:
    """log(predicted ÷ published) of int8 over float, wherever one source has both."""
    sides = defaultdict(dict)
    for figure, off in found:
        sides[figure.runtime, figure.board, figure.core, figure.threads, figure.model, figure.version][figure.precision] = off
    return [both["int8"] - both["float"] for both in sides.values() if len(both) == 2]


def scaling(found: list[tuple[Figure, float]]) -> str:
    """How far off the speed-up from one thread to all of them is."""
    sides: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
    for figure, off in found:
        sides[figure.runtime, figure.board, figure.core, figure.model, figure.precision, figure.version][figure.threads] = off
    offs = sorted(abs(math.expm1(by[1] - by[max(by)])) for by in sides.values() if 1 in by and len(by) > 1)
    return f"speed-up from one thread to all of {len(offs)} networks: median error {offs[len(offs) // 2]:.1%}" if offs else ""


def summary(title: str, found: list[tuple[Figure, float]], sigma: Callable[[Figure], float], ratio_sigma: float) -> str:
    if not found:
        return ""
    offs = sorted(abs(math.expm1(off)) for _, off in found)
    inside = sum(abs(off) <= Z90 * sigma(figure) for figure, off in found)
    pairs = ratio_errors(found)
    text = f"{title:44s} {len(found):4d} figures, median error {offs[len(offs) // 2]:6.1%}, {inside / len(found):4.0%} inside the interval"
    if pairs:
        typical = sorted(abs(math.expm1(pair)) for pair in pairs)[len(pairs) // 2]
        held = sum(abs(pair) <= Z90 * ratio_sigma for pair in pairs) / len(pairs)
        text += f"; int8/float ratio of {len(pairs)}: median error {typical:.1%}, {held:.0%} inside"
    return text


def in_words(figure: Figure) -> str:
    if figure.doubtful:
        return f"not comparable: {figure.doubtful}"
    if figure.held_out:
        return f"held out: {figure.held_out}"
    return "fitted" if figure.runtime in ("ncnn", "onnxruntime") else "checked"


def summaries(found: list[tuple[Figure, float]], sigma: Callable[[Figure], float], ratio_sigma: float) -> list[str]:
    lines = []
    for runtime in ("onnxruntime", *sorted({figure.runtime for figure, _ in found} - {"onnxruntime"})):
        rows = [(f, e) for f, e in found if f.runtime == runtime and not f.doubtful]
        for title, part in (
            ("fitted" if runtime in ("ncnn", "onnxruntime") else "checked", [(f, e) for f, e in rows if not f.held_out]),
            ("held out" + ", new networks" * (runtime == "onnxruntime"), [(f, e) for f, e in rows if f.held_out]),
            ("held out: networks", [(f, e) for f, e in rows if f.held_out == "model"]),
            ("held out: boards", [(f, e) for f, e in rows if f.held_out == "board"]),
            ("held out, one thread", [(f, e) for f, e in rows if f.held_out and f.threads == 1]),
            ("held out, several threads", [(f, e) for f, e in rows if f.held_out and f.threads > 1]),
            ("not comparable (see the script)", [(f, e) for f, e in found if f.runtime == runtime and f.doubtful]),
        ):
            if runtime == "onnxruntime" and title.startswith("held out") and title != "held out, new networks":
                continue  # all of it new networks, and on several threads
            if line := summary(f"{runtime}: {title}", part, sigma, ratio_sigma):
                lines.append(line)
        if runtime == "onnxruntime":
            for board in sorted({f.board for f, _ in rows}):
                part = [(f, e) for f, e in rows if f.held_out and f.board == board]
                lines.append(summary(f"{runtime}: held out on {board}", part, sigma, ratio_sigma))
    comparable = [(f, e) for f, e in found if not f.doubtful]
    for title, part in (
        ("fitted", [(f, e) for f, e in comparable if not f.held_out]),
        ("held out", [(f, e) for f, e in comparable if f.held_out]),
    ):
        lines.append(f"{title}: {scaling(part)}")
    return [line for line in lines if line]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit the constants first, and write them")
    options = parser.parse_args()
    tables, every = all_cores(), figures()
    if options.fit:
        fit_and_write(every, tables)
    calibration: Calibration = load_calibration()
    constants = {core: calibration.cores[table.core] for core, table in tables.items() if table.core in calibration.cores}

    def runtime_of(figure: Figure) -> str:
        return figure.runtime if figure.runtime in calibration.runtimes else "ncnn"

    def sigma(figure: Figure) -> float:  # as edgepipe.cost.latency.predict has it
        core = tables[figure.core].core
        stand_in = 0.0 if calibration.cores[core].figures else calibration.stand_in_log_sigma
        return math.hypot(interval_sigma(core, figure.threads, calibration, runtime_of(figure)), stand_in)

    found = [
        (f, error(f, tables, constants, calibration.serial_fraction, calibration.runtimes[runtime_of(f)]))
        for f in every
        if f.core in constants
    ]
    found.sort(key=lambda pair: (pair[0].runtime != "onnxruntime", bool(pair[0].doubtful)))
    lines = summaries(found, sigma, calibration.ratio_log_sigma)
    rows = [
        "| runtime | board | core | threads | network | precision | published ms | predicted ms | 90 % interval | error | set | source |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for f, off in found:
        ms, wide = f.ms * math.exp(off), math.exp(Z90 * sigma(f))
        times = f"{f.ms:.2f} | {ms:.2f} | {ms / wide:.1f} to {ms * wide:.1f} | {math.expm1(off):+.0%}"
        cells = (f.runtime, f.board, f.core, str(f.threads), f.model, f.precision, times, in_words(f), f.source)
        rows.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines)
    RESULT.write_text(
        f"`{COMMAND}`: published times of one inference against the predicted ones (nothing is run; the constants are those of"
        " `profiles/cores/calibration.toml`, the counts those of `board_counts.json`). Error: (predicted - published) / published;"
        f" summaries give the median of its absolute value.\n\n```text\n{text}\n```\n\n" + "\n".join(rows) + "\n",
        encoding="utf-8",
    )
    print(f"{text}\n\nThe table: {RESULT.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
