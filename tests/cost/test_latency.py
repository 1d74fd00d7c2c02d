"""Predicted latency: what bounds a node, how threads and memory share it, and how wide the interval is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from edgepipe.cost.cores import CALIBRATION, Fitted, core_of, load_calibration, load_core
from edgepipe.cost.counting import Counts, NodeCounts
from edgepipe.cost.latency import cache_shapes, interval_sigma, node_cost, predict, ratio, spread_over
from edgepipe.errors import UsageError
from edgepipe.profile import Profile, load_profile
from edgepipe.resources import resource

if TYPE_CHECKING:
    from edgepipe.cost.cores import Core

CORES = sorted(p for p in (resource("profiles") / "cores").glob("*.toml") if p.name != CALIBRATION)
IDEAL = Fitted(
    to="", figures=1, compute_factor=1, store_cycles=0, l1_line_cycles=2, l1_jump_cycles=10, l2_line_cycles=5, l2_jump_cycles=30,
    shared_line_cycles=4, dram_line_ns=8, dram_jump_ns=40, dram_share=0.5, log_sigma=0.1,
)  # fmt: skip


def core(name: str) -> Core:
    return load_core(resource("profiles") / "cores" / f"{name}.toml")


def counts(*nodes: tuple[str, dict[str, int]], rest: dict[str, int] | None = None) -> Counts:
    return Counts(tuple(NodeCounts(op, op, (), (), amounts) for op, amounts in nodes), rest or {}, ())


def with_cpu(profile: Profile, **facts: Any) -> Profile:
    return profile.model_copy(update={"cpu": profile.cpu.model_copy(update=facts)})


FMA = {"fma_q": 100_000_000, "load_simd": 10_000_000, "load_q": 20_000_000, "alu": 5_000_000}
CHECKED = "FusedConv"


def test_busiest_unit_decides_on_an_out_of_order_core() -> None:
    cost = node_cost({"fma_q": 1000, "load_simd": 400, "load_q": 400}, core("cortex-a76"), IDEAL)
    assert (cost.unit, cost.compute) == ("vector", 500)  # two pipes; the loads run beside
    cost = node_cost({"fma_q": 1000, "load_simd": 1500, "load_q": 1500}, core("cortex-a76"), IDEAL)
    assert (cost.unit, cost.compute) == ("load", 750)


def test_wide_loads_add_up_on_an_in_order_core() -> None:
    alone = node_cost({"fma_q": 1000}, core("cortex-a53"), IDEAL)
    wide = node_cost({"fma_q": 1000, "load_simd": 500, "load_q": 500}, core("cortex-a53"), IDEAL)
    narrow = node_cost({"fma_q": 1000, "load_simd": 500, "load_d": 500}, core("cortex-a53"), IDEAL)
    assert alone.compute == narrow.compute == 1000
    assert wide.compute == 1500


def test_issue_slots_bound_scalar_code() -> None:
    cost = node_cost({"alu": 300, "load": 300, "branch": 300}, core("cortex-a72"), IDEAL)
    assert cost.unit in ("issue", "load", "branch")
    assert cost.compute == 300


def test_a_line_is_priced_where_it_is_found() -> None:
    amounts = {"l1_misses": 100, "l1_jumps": 10, "l2_misses": 40, "l2_jumps": 4, "l3_misses": 10, "l3_jumps": 1, "written_back": 5}
    cost = node_cost(amounts, core("cortex-a76"), IDEAL)
    assert cost.stall == (60 * 2 + 6 * 10) + (30 * 5 + 3 * 30)
    assert cost.dram_lines == 15
    assert cost.dram_ns == 15 * 8 + 40


def test_without_a_third_cache_the_second_borders_on_memory() -> None:
    cost = node_cost({"l1_misses": 100, "l1_jumps": 0, "l2_misses": 40, "l2_jumps": 0}, core("cortex-a72"), IDEAL)
    assert cost.stall == 60 * 2
    assert cost.dram_lines == 40


def test_a_faster_clock_is_faster_and_memory_does_not_follow() -> None:
    profile = load_profile("rpi4")
    fast = with_cpu(profile, clock_mhz=2 * profile.cpu.clock_mhz)
    computing = counts((CHECKED, FMA))
    assert predict(computing, profile, 1).ms == pytest.approx(2 * predict(computing, fast, 1).ms)
    waiting = counts((CHECKED, {"l1_misses": 10**6, "l1_jumps": 0, "l2_misses": 10**6, "l2_jumps": 0}))
    assert predict(waiting, profile, 1).ms == pytest.approx(predict(waiting, fast, 1).ms)
    assert predict(waiting, profile, 1).bound == "memory"


def test_threads_share_work_but_not_bandwidth() -> None:
    profile = load_profile("rpi4")
    computing = counts((CHECKED, FMA))
    one, four = predict(computing, profile, 1).ms, predict(computing, profile, 4).ms
    assert 2.5 < one / four < 4
    waiting = counts((CHECKED, {"l1_misses": 10**7, "l1_jumps": 0, "l2_misses": 10**7, "l2_jumps": 0}))
    assert predict(waiting, profile, 1).ms / predict(waiting, profile, 4).ms < 3


def test_threads_share_what_the_common_cache_delivers() -> None:
    amounts = {**FMA, "l1_misses": 40_000_000, "l1_jumps": 0, "l2_misses": 0, "l2_jumps": 0}
    cost = node_cost(amounts, core("cortex-a72"), IDEAL)
    assert cost.shared_lines == 40_000_000
    assert spread_over(cost, IDEAL, 1000, 10, 4, 0.0)[0] == pytest.approx(160)
    assert spread_over(cost, IDEAL, 1000, 10, 1, 0.0)[0] == pytest.approx(100 + 80)


def test_the_runtimes_factor_and_its_cost_per_shared_node() -> None:
    profile, calibration = load_profile("rpi4"), load_calibration()
    runtime, fitted = calibration.runtimes["onnxruntime"], calibration.cores["cortex-a72"]
    assert calibration.runtimes["ncnn"].factor == 1
    assert runtime.factor > 1
    cost = node_cost(FMA, core("cortex-a72"), fitted)
    arguments = (cost, fitted, profile.cpu.clock_mhz, profile.memory.bandwidth_gb_s)
    one, four = (sum(spread_over(*arguments, threads, calibration.serial_fraction)) for threads in (1, 4))
    assert predict(counts((CHECKED, FMA)), profile, 1).ms == pytest.approx(runtime.factor * one)
    waiting = runtime.sync_us / profile.cpu.clock_mhz
    assert predict(counts((CHECKED, FMA)), profile, 4).ms == pytest.approx(runtime.factor * four + waiting)


def test_a_node_that_costs_more_to_share_stays_on_one_thread() -> None:
    profile = load_profile("rpi4")
    small = counts((CHECKED, {name: n // 10_000 for name, n in FMA.items()}))
    assert predict(small, profile, 4).ms == predict(small, profile, 1).ms


def test_the_interval_is_the_runtimes_own_where_it_has_figures() -> None:
    calibration = load_calibration()
    runtime = calibration.runtimes["onnxruntime"]
    assert interval_sigma("cortex-a72", 4, calibration, "onnxruntime") == runtime.log_sigma
    assert interval_sigma("cortex-a53", 4, calibration, "onnxruntime") > calibration.cores["cortex-a53"].log_sigma
    for threads in (1, 4):  # elsewhere never narrower than what ncnn's boards showed
        of_ncnn = interval_sigma("cortex-a53", threads, calibration, "ncnn")
        assert interval_sigma("cortex-a53", threads, calibration, "onnxruntime") >= of_ncnn
    assert interval_sigma("cortex-a72", 1, calibration, "onnxruntime") >= calibration.cores["cortex-a72"].log_sigma


def test_more_threads_than_cores_change_nothing() -> None:
    profile = load_profile("rpi4")
    assert predict(counts((CHECKED, FMA)), profile, 64).ms == predict(counts((CHECKED, FMA)), profile, 4).ms


def test_what_runs_between_nodes_counts_and_stays_on_one_thread() -> None:
    profile = load_profile("rpi4")
    between = counts(rest={"alu": 10**7})
    assert predict(between, profile, 4).ms == predict(between, profile, 1).ms > 1


def test_an_operator_without_a_figure_is_named_counted_and_widens() -> None:
    profile = load_profile("rpi4")
    known, unknown = predict(counts((CHECKED, FMA)), profile), predict(counts(("Mystery", FMA)), profile)
    assert unknown.ms == known.ms
    assert unknown.unchecked == ("Mystery",)
    assert unknown.high / unknown.low > known.high / known.low
    assert any("no published figure" in reason for reason in unknown.reasons)


def test_a_core_that_another_stands_for_widens_and_says_so() -> None:
    profile = load_profile("rpi4")
    other = with_cpu(profile, model="cortex-a57")
    assert core_of(other.cpu)[1] == "cortex-a72"
    assert predict(counts((CHECKED, FMA)), other).high > predict(counts((CHECKED, FMA)), profile).high
    assert any("cortex-a57" in reason for reason in predict(counts((CHECKED, FMA)), other).reasons)


def test_an_unheard_of_core_goes_by_its_features() -> None:
    cpu = load_profile("rpi5").cpu.model_copy(update={"model": "oryon"})
    assert core_of(cpu)[1] == "cortex-a76"


def test_ratio_is_narrower_than_two_latencies() -> None:
    profile = load_profile("rpi4")
    whole = predict(counts((CHECKED, FMA)), profile)
    half = predict(counts((CHECKED, {name: n // 2 for name, n in FMA.items()})), profile)
    found = ratio(half, whole)
    assert found.value == pytest.approx(0.5, rel=0.05)
    unrelated = math.hypot(*(math.log(one.high / one.low) for one in (half, whole)))
    assert math.log(found.high / found.low) < unrelated
    assert found.low < found.value < found.high


def test_common_unchecked_operators_cancel_in_the_ratio() -> None:
    profile = load_profile("rpi4")
    both = ratio(predict(counts(("Mystery", FMA)), profile), predict(counts(("Mystery", FMA)), profile))
    one = ratio(predict(counts(("Mystery", FMA)), profile), predict(counts((CHECKED, FMA)), profile))
    assert both.high / both.low < one.high / one.low


def test_browsers_and_pcs_are_refused() -> None:
    with pytest.raises(UsageError, match="ARM boards"):
        predict(counts((CHECKED, FMA)), load_profile("x86-avx2"))


def test_caches_come_from_the_profile() -> None:
    assert [(shape.kib, shape.ways) for shape in cache_shapes(load_profile("rpi4"))] == [(32, 2), (1024, 16)]
    assert [shape.kib for shape in cache_shapes(load_profile("rpi5"))] == [64, 512, 2048]


@pytest.mark.parametrize("path", CORES, ids=lambda path: path.stem)
def test_every_core_loads_has_sources_and_constants(path: Any) -> None:
    table = load_core(path)
    assert table.core == path.stem
    assert table.core in load_calibration().cores
    facts = set(table.model_dump(exclude_none=True, exclude_unset=True)) - {"core", "sources"}
    assert facts <= set(table.sources)
