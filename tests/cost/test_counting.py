"""The instruction counter: what class an opcode has, and which counted border belongs to which node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgepipe.cost.borders import Border, align, match, read_borders
from edgepipe.cost.counting import (
    CacheShape,
    Counts,
    NodeCounts,
    _by_node,
    build_plugin,
    plugin_option,
    run_counted,
    sliced,
)
from edgepipe.errors import DeviceError
from edgepipe.resources import resource

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

# opcode, what it adds (1 where no number stands), and the instruction; assembled with llvm-mc
OPCODES = """
4e22cc20 fma_q                                            fmla v0.4s, v1.4s, v2.4s
4fa21020 fma_q                                            fmla v0.4s, v1.4s, v2.s[1]
4f125020 fma_q                                            fmls v0.8h, v1.8h, v2.h[1]
4e420c20 fma_q                                            fmla v0.8h, v1.8h, v2.8h
0fa21820 fma_d                                            fmla v0.2s, v1.2s, v2.s[3]
6e22dc20 fma_q                                            fmul v0.4s, v1.4s, v2.4s
4fc29820 fma_q                                            fmul v0.2d, v1.2d, v2.d[1]
1f020c20 fma_d                                            fmadd s0, s1, s2, s3
1e220820 fma_d                                            fmul s0, s1, s2
4f820020 fma_q                                            fmlal v0.4s, v1.4h, v2.h[0]
6f828020 fma_q                                            fmlal2 v0.4s, v1.4h, v2.h[0]
4e22ec20 fma_q                                            fmlal v0.4s, v1.4h, v2.4h
4fa2e020 dot                                              sdot v0.4s, v1.16b, v2.4b[1]
4e829420 dot                                              sdot v0.4s, v1.16b, v2.16b
6fa2e020 dot                                              udot v0.4s, v1.16b, v2.4b[1]
4fa2f020 dot                                              usdot v0.4s, v1.16b, v2.4b[1]
4e829c20 dot                                              usdot v0.4s, v1.16b, v2.16b
4f62f020 dot                                              bfdot v0.4s, v1.8h, v2.2h[1]
4e82a420 mmla                                             smmla v0.4s, v1.16b, v2.16b
6e82a420 mmla                                             ummla v0.4s, v1.16b, v2.16b
4e82ac20 mmla                                             usmmla v0.4s, v1.16b, v2.16b
6e42ec20 mmla                                             bfmmla v0.4s, v1.8h, v2.8h
0e22c020 imul                                             smull v0.8h, v1.8b, v2.8b
0f622020 imul                                             smlal v0.4s, v1.4h, v2.h[2]
6e628020 imul                                             umlal2 v0.4s, v1.8h, v2.8h
4ea29c20 imul                                             mul v0.4s, v1.4s, v2.4s
6f520020 imul                                             mla v0.8h, v1.8h, v2.h[1]
4fa28020 imul                                             mul v0.4s, v1.4s, v2.s[1]
6ea2b420 imul                                             sqrdmulh v0.4s, v1.4s, v2.4s
0e62d020 imul                                             sqdmull v0.4s, v1.4h, v2.4h
0f62a020 imul                                             smull v0.4s, v1.4h, v2.h[2]
6e828420 imul                                             sqrdmlah v0.4s, v1.4s, v2.4s
4e606820 simd                                             sadalp v0.4s, v1.8h
0e621020 simd                                             saddw v0.4s, v1.4s, v2.4h
4ea2bc20 simd                                             addp v0.4s, v1.4s, v2.4s
4e22d420 simd                                             fadd v0.4s, v1.4s, v2.4s
4e22f420 simd                                             fmax v0.4s, v1.4s, v2.4s
1e226820 simd                                             fmaxnm s0, s1, s2
0e614820 simd                                             sqxtn v0.4h, v1.4s
4e21d820 simd                                             scvtf v0.4s, v1.4s
4e21a820 simd                                             fcvtns v0.4s, v1.4s
4f3d0420 simd                                             sshr v0.4s, v1.4s, #3
0f08a420 simd                                             sxtl v0.8h, v1.8b
4f000400 simd                                             movi v0.4s, #0
4e221c20 simd                                             and v0.16b, v1.16b, v2.16b
4e421420 simd                                             fadd v0.8h, v1.8h, v2.8h
1e2e1000 simd                                             fmov s0, #1.0
1e212000 simd                                             fcmp s0, s1
1e220c20 simd                                             fcsel s0, s1, s2, eq
1e222820 simd                                             fadd s0, s1, s2
2e303820 simd                                             uaddlv h0, v1.8b
7e30d820 simd                                             faddp s0, v1.2s
1e22c020 simd                                             fcvt d0, s1
4e040420 permute                                          dup v0.4s, v1.s[0]
4e823820 permute                                          zip1 v0.4s, v1.4s, v2.4s
4e826820 permute                                          trn2 v0.4s, v1.4s, v2.4s
6e022020 permute                                          ext v0.16b, v1.16b, v2.16b, #4
4e020020 permute                                          tbl v0.16b, {v1.16b}, v2.16b
6e0c0420 permute                                          ins v0.s[1], v1.s[0]
4e040c20 transfer                                         dup v0.4s, w1
4e0c1c20 transfer                                         ins v0.s[1], w1
0e0c3c20 transfer                                         umov w0, v1.s[1]
0e062c20 transfer                                         smov w0, v1.h[1]
1e270020 transfer                                         fmov s0, w1
9e660020 transfer                                         fmov x0, d1
1e220020 transfer                                         scvtf s0, w1
1e380020 transfer                                         fcvtzs w0, s1
6e22fc20 fdiv                                             fdiv v0.4s, v1.4s, v2.4s
1e221820 fdiv                                             fdiv s0, s1, s2
6ea1f820 fdiv                                             fsqrt v0.4s, v1.4s
1e61c020 fdiv                                             fsqrt d0, d1
6e423c20 fdiv                                             fdiv v0.8h, v1.8h, v2.8h
3dc00020 load_simd+load_q=1+load_simd_bytes=16            ldr q0, [x1]
acc10420 load_simd+load_q=2+load_simd_bytes=32            ldp q0, q1, [x1], #32
4cdf2820 load_simd+load_q=4+load_simd_bytes=64            ld1 {v0.4s, v1.4s, v2.4s, v3.4s}, [x1], #64
4c408820 load_simd+load_q=2+load_simd_bytes=32            ld2 {v0.4s, v1.4s}, [x1]
4d40c820 load_simd+load_d=1+load_simd_bytes=4             ld1r {v0.4s}, [x1]
0d409020 load_simd+load_d=1+load_simd_bytes=4             ld1 {v0.s}[1], [x1]
4d408420 load_simd+load_d=1+load_simd_bytes=8             ld1 {v0.d}[1], [x1]
0c407020 load_simd+load_d=1+load_simd_bytes=8             ld1 {v0.8b}, [x1]
fc626820 load_simd+load_d=1+load_simd_bytes=8             ldr d0, [x1, x2]
bd400420 load_simd+load_d=1+load_simd_bytes=4             ldr s0, [x1, #4]
3cdfc020 load_simd+load_q=1+load_simd_bytes=16            ldur q0, [x1, #-4]
6d400420 load_simd+load_d=2+load_simd_bytes=16            ldp d0, d1, [x1]
f9400020 load+load_bytes=8                                ldr x0, [x1]
a9400440 load+load_bytes=16                               ldp x0, x1, [x2]
b9800020 load+load_bytes=4                                ldrsw x0, [x1]
39400020 load+load_bytes=1                                ldrb w0, [x1]
58000080 load+load_bytes=8                                ldr x0, #16
f9000020 store+store_bytes=8                              str x0, [x1]
39000420 store+store_bytes=1                              strb w0, [x1, #1]
29000440 store+store_bytes=8                              stp w0, w1, [x2]
3d800020 store_simd+store_q=1+store_simd_bytes=16         str q0, [x1]
ad000420 store_simd+store_q=2+store_simd_bytes=32         stp q0, q1, [x1]
4c00a820 store_simd+store_q=2+store_simd_bytes=32         st1 {v0.4s, v1.4s}, [x1]
4d008020 store_simd+store_d=1+store_simd_bytes=4          st1 {v0.s}[2], [x1]
bd000020 store_simd+store_d=1+store_simd_bytes=4          str s0, [x1]
f9802020 prefetch                                         prfm pldl1keep, [x1, #64]
f8a26820 prefetch                                         prfm pldl1keep, [x1, x2]
f8200041 other                                            ldadd x0, x1, [x2]
c85f7c20 other                                            ldxr x0, [x1]
d5033bbf other                                            dmb ish
d53b4400 other                                            mrs x0, fpcr
d503201f alu                                              nop
8b020020 alu                                              add x0, x1, x2
f1000420 alu                                              subs x0, x1, #1
9b020c20 mul                                              madd x0, x1, x2, x3
9b027c20 mul                                              mul x0, x1, x2
9b227c20 mul                                              smull x0, w1, w2
9ac20820 div                                              udiv x0, x1, x2
1ac20c20 div                                              sdiv w0, w1, w2
9ac22020 alu                                              lslv x0, x1, x2
9a820020 alu                                              csel x0, x1, x2, eq
d2800020 alu                                              mov x0, #1
d3410820 alu                                              ubfx x0, x1, #1, #2
14000002 branch                                           b #8
54000041 branch                                           b.ne #8
b4000040 branch                                           cbz x0, #8
d65f03c0 branch                                           ret
94000002 branch                                           bl #8
"""
HARNESS = """
#include <stdio.h>
#include "a64.h"
#define AS_NAME(name) #name,
static const char *names[] = {QUANTITIES(AS_NAME)};
int main(void)
{
    unsigned opcode;
    while (scanf("%x", &opcode) == 1) {
        uint16_t to[N_QUANTITIES] = {0};
        add_instruction(opcode, to);
        for (int i = 0; i < N_QUANTITIES; i++)
            if (to[i]) printf("%s=%d ", names[i], to[i]);
        puts("");
    }
}
"""


@needs_compiler
def test_decoder_puts_every_instruction_in_its_class(tmp_path: Path) -> None:
    (tmp_path / "harness.c").write_text(HARNESS)
    include = f"-I{resource('devices') / 'emulation'}"
    subprocess.run(["cc", include, "-o", str(tmp_path / "harness"), str(tmp_path / "harness.c")], check=True)
    rows = [line.split(maxsplit=2) for line in OPCODES.strip().splitlines()]
    given = "\n".join(opcode for opcode, _, _ in rows)
    found = subprocess.run([str(tmp_path / "harness")], input=given, capture_output=True, text=True, check=True).stdout.splitlines()
    for (opcode, expected, text), got in zip(rows, found, strict=True):
        wanted = {part if "=" in part else f"{part}=1" for part in expected.split("+")}
        assert set(got.split()) == wanted, f"{opcode} {text}"


@needs_compiler
def test_plugin_is_built_once(tmp_path: Path) -> None:
    first = build_plugin(tmp_path)
    made = first.stat().st_mtime_ns
    assert build_plugin(tmp_path) == first
    assert first.stat().st_mtime_ns == made


def test_plugin_that_was_changed_is_compiled_again(tmp_path: Path) -> None:
    built = build_plugin(tmp_path)
    cut = built.read_bytes()[:1000]
    built.write_bytes(cut)

    assert build_plugin(tmp_path) == built
    assert built.read_bytes() != cut


def test_a_missing_compiler_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError) as caught:
        build_plugin(tmp_path / "built")
    assert "gcc" in str(caught.value)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(DeviceError, match="does not compile"):
        build_plugin(tmp_path)


def test_plugin_option_names_caches_by_level(tmp_path: Path) -> None:
    option = plugin_option(Path("/p/count.so"), Path("/o/b.txt"), [CacheShape(32, 2), CacheShape(1024, 16)], 1000)
    assert option == "/p/count.so,out=/o/b.txt,l1=32:2,l2=1024:16,slice=1000"
    with pytest.raises(DeviceError, match="comma"):
        plugin_option(Path("/a,b/count.so"), Path("/o"), [])


def test_a_failed_run_quotes_the_last_line() -> None:
    with pytest.raises(DeviceError, match="cannot open model"):
        run_counted(["sh", "-c", "echo cannot open model >&2; exit 3"], {"PATH": "/bin:/usr/bin"})


def test_borders_are_read_run_by_run(tmp_path: Path) -> None:
    path = tmp_path / "borders.txt"
    path.write_text("# fma_q load us\nB 0 0 10\nC 5 1 20\nE 9 2 30\nB 0 0 40\nE 8 1 50\n")
    first, second = read_borders(path)
    assert [border.sums["fma_q"] for border in first] == [0, 5, 9]
    assert [border.time_us for border in second] == [40, 50]


def test_slices_are_what_lies_between_borders(tmp_path: Path) -> None:
    path = tmp_path / "borders.txt"
    path.write_text("# fma_q us\nB 0 10\nS 5 20\nE 9 30\n")
    assert [node.amounts["fma_q"] for node in sliced(path, ()).nodes] == [5, 4]


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "borders.txt").write_text("")
    with pytest.raises(DeviceError, match="no whole run"):
        read_borders(tmp_path / "borders.txt")


def test_matching_skips_clock_reads_of_others() -> None:
    points = [1000, 5000, 6000, 9000]
    borders = [500, 1400, 5400, 5700, 6400, 9400, 9900]  # 400 later; three more that no node took
    assert match(borders, points) == [1, 2, 4, 5]


def test_matching_survives_a_border_that_came_late() -> None:
    points = [1000, 5000, 6000, 9000, 12000]
    borders = [4100, 5100, 6100, 9100, 12100, 12300]  # the process lost the CPU in the first: 3 ms late
    assert match(borders, points) == [0, 1, 2, 3, 4]


def test_clocks_that_never_meet_are_an_error() -> None:
    with pytest.raises(DeviceError, match="do not match"):
        match([0, 10_000, 90_000, 91_000], [0, 40_000, 50_000, 60_000])


def test_alignment_keeps_the_order() -> None:
    assert align([0, 10, 20, 30], [11.0, 29.0], 2) == [1, 3]


def _event(name: str, ts: int, dur: int, op: str) -> dict[str, object]:
    shape = [{"float": [1, 4]}]
    args = {"op_name": op, "input_type_shape": shape, "output_type_shape": shape}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def test_nodes_lose_the_profilers_own_work() -> None:
    events = [
        _event("big", 1000, 2000, "MatMul"),
        _event("least", 4000, 1000, "Shape"),
        {"name": "model_run", "cat": "Session", "ts": 500, "dur": 9000},
    ]
    profiled = [Border(t, {"alu": n}) for t, n in ((400, 0), (1000, 10), (3000, 1020), (4000, 1040), (5000, 1060), (9500, 1100))]
    plain = [Border(0, {"alu": 0}), Border(10, {"alu": 1005})]
    counts = _by_node(profiled, plain, events, ())
    assert [(node.name, node.amounts["alu"]) for node in counts.nodes] == [("big", 990), ("least", 0)]
    assert counts.nodes[0].inputs == (("float", (1, 4)),)
    assert counts.rest == {"alu": 15}
    assert counts.total == {"alu": 1005}


def test_a_node_with_a_subgraph_keeps_only_its_own_work() -> None:
    events = [
        _event("inner", 2000, 1000, "Add"),
        _event("loop", 1000, 3000, "Loop"),
        {"name": "model_run", "cat": "Session", "ts": 500, "dur": 9000},
    ]
    profiled = [Border(t, {"alu": n}) for t, n in ((400, 0), (1000, 0), (2000, 300), (3000, 400), (4000, 650), (9500, 700))]
    counts = _by_node(profiled, [Border(0, {"alu": 0}), Border(1, {"alu": 700})], events, ())
    assert {node.name: node.amounts["alu"] for node in counts.nodes} == {"inner": 0, "loop": 450}  # less the least: 100


def test_counts_survive_json() -> None:
    node = NodeCounts("a", "MatMul", (("float", (1, 2)),), (("float", (1, 3)),), {"fma_q": 7})
    counts = Counts((node,), {"fma_q": 1}, (CacheShape(32, 4),))
    assert Counts.from_json(counts.to_json()) == counts
    assert counts.total == {"fma_q": 8}
