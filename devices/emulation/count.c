/* QEMU TCG plugin: executed AArch64 instructions by class, and the cache lines they fetch, of marked regions.
 *
 * The guest marks by write(MARK_FD, buffer, CODE), which fails harmlessly: 1 the caches begin to fill (warm-up),
 * 2 a measured run begins, 3 it ends. While it runs, a border is written at every clock_gettime (under user-mode
 * emulation a real system call: ONNX Runtime's profiler takes two per node) or every `slice` memory accesses.
 * Output: a header line with the names, then `KIND v0 v1 … us` with sums since the run began and the host's clock.
 * `written_back` are lines that go back to main memory, `lN_misses` lines the cache did not have, `lN_jumps` those of them that follow none of the latest misses, so
 * that no prefetcher expects them. One thread is assumed; sums of several would be right only roughly.
 *
 * qemu-aarch64 -plugin count.so,out=FILE[,l1=KIB:WAYS][,l2=…][,l3=…][,slice=N] …
 *
 * The API's prototypes (QEMU 7.2, include/qemu/qemu-plugin.h, version 1 of the interface) are declared here, so that
 * the host needs a compiler and no headers.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "a64.h"

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 = 0, CB_NO_REGS = 0, MEM_RW = 3 };
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_mem_cb(
    struct qemu_plugin_insn *, void (*)(unsigned, uint32_t, uint64_t, void *), int, int, void *);
extern bool qemu_plugin_mem_is_store(uint32_t);
extern void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

int qemu_plugin_version = 1;

enum { SYS_WRITE = 64, SYS_CLOCK_GETTIME = 113, MARK_FD = 31415, MARK_WARM = 1, MARK_BEGIN = 2, MARK_END = 3 };
enum { LINE_BITS = 6, MAX_WAYS = 16, LEVELS = 3, STREAMS = 16 };

struct block { /* one translation block: how often it ran, and what one run of it executes */
    uint64_t runs, seen;
    uint16_t amounts[N_QUANTITIES];
};
enum { CHUNK = 4096 };
struct chunk { struct chunk *next; size_t used; struct block blocks[CHUNK]; };
static struct chunk *chunks; /* blocks never move: generated code holds their addresses */

struct cache {
    unsigned sets, ways, next_stream;
    uint64_t *tags; /* of a set: latest first; the top bit tells written lines */
    uint64_t streams[STREAMS]; /* the line each of the latest streams of misses is expected to go on with */
    uint64_t misses, jumps, misses_before, jumps_before;
};
#define DIRTY (1ull << 63)
static struct cache caches[LEVELS];
static int n_caches;
static uint64_t written_back, written_before; /* lines, to main memory */

static FILE *out;
static int filling, counting;
static uint64_t totals[N_QUANTITIES], slice, accesses;

static uint16_t *new_block(struct qemu_plugin_tb *tb)
{
    if (!chunks || chunks->used == CHUNK) {
        struct chunk *fresh = calloc(1, sizeof *fresh);
        if (!fresh) abort();
        fresh->next = chunks;
        chunks = fresh;
    }
    struct block *block = &chunks->blocks[chunks->used++];
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &block->runs, 1);
    return block->amounts;
}

static void border(char kind)
{
    if (kind == 'B') {
        memset(totals, 0, sizeof totals);
        written_before = written_back;
        for (int i = 0; i < n_caches; i++) caches[i].misses_before = caches[i].misses, caches[i].jumps_before = caches[i].jumps;
    }
    for (struct chunk *chunk = chunks; chunk; chunk = chunk->next) {
        for (size_t i = 0; i < chunk->used; i++) {
            struct block *block = &chunk->blocks[i];
            uint64_t runs = block->runs - block->seen;
            if (!runs) continue;
            block->seen = block->runs;
            if (kind != 'B')
                for (int q = 0; q < N_QUANTITIES; q++) totals[q] += runs * block->amounts[q];
        }
    }
    fputc(kind, out);
    for (int q = 0; q < N_QUANTITIES; q++) fprintf(out, " %" PRIu64, totals[q]);
    for (int i = 0; i < n_caches; i++) {
        const struct cache *cache = &caches[i];
        fprintf(out, " %" PRIu64 " %" PRIu64, cache->misses - cache->misses_before, cache->jumps - cache->jumps_before);
    }
    if (n_caches) fprintf(out, " %" PRIu64, written_back - written_before);
    struct timespec now; /* last, so that only the system call itself lies between this and the guest's reading */
    clock_gettime(CLOCK_MONOTONIC, &now);
    fprintf(out, " %" PRIu64 "\n", (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000);
}

/* Whether the line was there. It is the latest of its set afterwards; what it drove out is in `evicted`, or 0. */
static int look_up(struct cache *cache, uint64_t line, uint64_t dirty, uint64_t *evicted)
{
    uint64_t *set = cache->tags + (line % cache->sets) * cache->ways;
    unsigned way = 0;
    while (way < cache->ways - 1 && (set[way] & ~DIRTY) != line) way++;
    int hit = (set[way] & ~DIRTY) == line;
    *evicted = hit ? 0 : set[way];
    dirty |= hit ? set[way] & DIRTY : 0;
    memmove(set + 1, set, way * sizeof *set);
    set[0] = line | dirty;
    return hit;
}

/* A written line leaves level `level` - 1 for the next, and main memory after the last. */
static void write_back(int level, uint64_t evicted)
{
    for (; evicted & DIRTY; level++) {
        if (level == n_caches) {
            written_back++;
            return;
        }
        look_up(&caches[level], evicted & ~DIRTY, DIRTY, &evicted);
    }
}

static void miss(struct cache *cache, uint64_t line)
{
    cache->misses++;
    for (int i = 0; i < STREAMS; i++) {
        if (cache->streams[i] == line) {
            cache->streams[i]++;
            return;
        }
    }
    cache->jumps++;
    cache->streams[cache->next_stream++ % STREAMS] = line + 1;
}

static void on_access(unsigned cpu, uint32_t info, uint64_t address, void *data)
{
    static uint64_t latest;
    (void)cpu, (void)data;
    if (!filling) return;
    uint64_t line = address >> LINE_BITS, dirty = qemu_plugin_mem_is_store(info) ? DIRTY : 0, evicted;
    if (slice && counting && ++accesses % slice == 0) border('S');
    if ((line | dirty) == latest) return;
    latest = line | dirty;
    for (int i = 0; i < n_caches; i++) {
        int hit = look_up(&caches[i], line, i == 0 ? dirty : 0, &evicted);
        write_back(i + 1, evicted);
        if (hit) return;
        miss(&caches[i], line);
    }
}

static void on_translate(plugin_id id, struct qemu_plugin_tb *tb)
{
    uint16_t *amounts = new_block(tb);
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint32_t opcode;
        memcpy(&opcode, qemu_plugin_insn_data(insn), sizeof opcode);
        add_instruction(opcode, amounts);
        if (n_caches || slice) qemu_plugin_register_vcpu_mem_cb(insn, on_access, CB_NO_REGS, MEM_RW, NULL);
    }
}

static void on_syscall(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                       uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)cpu, (void)a2, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == SYS_CLOCK_GETTIME && counting) border('C');
    if (number != SYS_WRITE || a1 != MARK_FD) return;
    filling |= a3 == MARK_WARM || a3 == MARK_BEGIN;
    if (a3 == MARK_BEGIN || (a3 == MARK_END && counting)) border(a3 == MARK_BEGIN ? 'B' : 'E');
    counting = a3 == MARK_BEGIN;
    accesses = 0;
    fflush(out);
}

static void at_exit(plugin_id id, void *data)
{
    (void)id, (void)data;
    fclose(out);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++) {
        unsigned level, kib, ways;
        if (!strncmp(argv[i], "out=", 4)) {
            out = fopen(argv[i] + 4, "w");
        } else if (!strncmp(argv[i], "slice=", 6)) {
            slice = strtoull(argv[i] + 6, NULL, 10);
        } else if (sscanf(argv[i], "l%u=%u:%u", &level, &kib, &ways) == 3 && level == (unsigned)n_caches + 1 && level <= LEVELS && ways && ways <= MAX_WAYS) {
            struct cache *cache = &caches[n_caches++];
            cache->ways = ways;
            cache->sets = (kib << (10 - LINE_BITS)) / ways;
            cache->tags = calloc((size_t)cache->sets * ways, sizeof *cache->tags);
            if (!cache->sets || !cache->tags) return -1;
        } else {
            fprintf(stderr, "count: cannot read argument %s\n", argv[i]);
            return -1;
        }
    }
    if (!out) return fprintf(stderr, "count: out=FILE is missing or cannot be written\n"), -1;
#define AS_NAME(name) " " #name
    fputs("#" QUANTITIES(AS_NAME), out);
    for (int i = 1; i <= n_caches; i++) fprintf(out, " l%d_misses l%d_jumps", i, i);
    fputs(n_caches ? " written_back us\n" : " us\n", out);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}
