/* What one AArch64 instruction costs the parts of a core: its class, the registers and bytes it moves.
 *
 * Only as fine as the costs differ in Arm's Software Optimization Guides; encodings after the Arm Architecture
 * Reference Manual (DDI 0487), section C4.1. Included by count.c and by the decoder's test.
 */
#ifndef EDGEPIPE_A64_H
#define EDGEPIPE_A64_H

#include <stdint.h>

/* edgepipe/cost/counting.py reads these names from the plugin's output: add, don't reorder. */
#define QUANTITIES(X) \
    X(fma_q)            /* float multiply(-add), 128-bit vectors */ \
    X(fma_d)            /* the same on 64-bit vectors and on scalars */ \
    X(dot)              /* SDOT, UDOT, USDOT, BFDOT */ \
    X(mmla)             /* SMMLA, UMMLA, USMMLA, BFMMLA */ \
    X(imul)             /* integer vector multiply(-add), widening or not */ \
    X(simd)             /* other vector and float arithmetic: add, compare, shift, convert, select */ \
    X(permute)          /* DUP, ZIP, UZP, TRN, EXT, TBL, INS between vectors */ \
    X(transfer)         /* between vector and general registers */ \
    X(fdiv)             /* float divide and square root */ \
    X(load_simd)        /* instructions */ \
    X(load)             /* into general registers */ \
    X(store_simd) \
    X(store) \
    X(branch) \
    X(alu)              /* integer arithmetic, logic, moves, address computation */ \
    X(mul)              /* integer multiply */ \
    X(div) \
    X(prefetch) \
    X(other)            /* barriers, atomics, system registers, SVE */ \
    X(load_q)           /* 128-bit registers loaded */ \
    X(load_d)           /* vector registers of 64 bits and fewer loaded */ \
    X(store_q) \
    X(store_d) \
    X(load_simd_bytes) \
    X(load_bytes)       /* into general registers */ \
    X(store_simd_bytes) \
    X(store_bytes)

#define AS_ENUM(name) Q_##name,
enum quantity { QUANTITIES(AS_ENUM) N_QUANTITIES };
#undef AS_ENUM
enum { N_CLASSES = Q_other + 1 }; /* every instruction is of one class; what follows are amounts */

static inline uint32_t bits(uint32_t insn, int high, int low) { return (insn >> low) & ((2u << (high - low)) - 1); }

/* Adds a load or store of `n` registers of `size` bytes. */
static inline void add_access(uint16_t *to, int is_load, int is_simd, int n, int size)
{
    to[is_simd ? (is_load ? Q_load_simd : Q_store_simd) : (is_load ? Q_load : Q_store)]++;
    to[is_simd ? (is_load ? Q_load_simd_bytes : Q_store_simd_bytes) : (is_load ? Q_load_bytes : Q_store_bytes)] += n * size;
    if (is_simd) to[is_load ? (size > 8 ? Q_load_q : Q_load_d) : (size > 8 ? Q_store_q : Q_store_d)] += n;
}

static inline void add_memory(uint32_t insn, uint16_t *to)
{
    int simd = bits(insn, 26, 26), opc = bits(insn, 31, 30), load = bits(insn, 22, 22);
    if (simd && bits(insn, 31, 31) == 0 && bits(insn, 29, 25) == 6) { /* LD1 … ST4: structures */
        static const uint8_t registers[16] = {4, 0, 4, 0, 3, 0, 3, 1, 2, 0, 2};
        int q = bits(insn, 30, 30);
        if (!bits(insn, 24, 24)) {
            add_access(to, load, 1, registers[bits(insn, 15, 12)], q ? 16 : 8);
        } else {
            int opcode = bits(insn, 15, 13), scale = opcode >> 1, n = ((opcode & 1) << 1 | bits(insn, 21, 21)) + 1;
            int size = scale == 3 ? 1 << bits(insn, 11, 10) : scale == 2 && bits(insn, 10, 10) ? 8 : 1 << scale;
            add_access(to, load, 1, n, size);
        }
    } else if (bits(insn, 29, 27) == 5) { /* pairs */
        int size = simd ? 4 << opc : opc == 2 ? 8 : 4;
        add_access(to, load, simd, 2, size);
    } else if (bits(insn, 29, 27) == 3 && !bits(insn, 24, 24)) { /* literals */
        if (!simd && opc == 3) to[Q_prefetch]++;
        else add_access(to, 1, simd, 1, simd ? 4 << opc : opc == 1 ? 8 : 4);
    } else if (bits(insn, 29, 27) == 7) { /* one register */
        int how = bits(insn, 23, 22);
        if (simd) add_access(to, how & 1, 1, 1, how & 2 ? 16 : 1 << opc);
        else if (!bits(insn, 24, 24) && bits(insn, 21, 21) && bits(insn, 11, 10) == 0) to[Q_other]++; /* atomics */
        else if (opc == 3 && how == 2) to[Q_prefetch]++;
        else add_access(to, how != 0, 0, 1, 1 << opc);
    } else {
        to[Q_other]++; /* exclusive, acquire and release, tags */
    }
}

/* Vector arithmetic on several elements: bits 28-24 are 01110 or 01111, bit 31 is 0 and bit 28 tells it from scalars. */
static inline enum quantity vector_class(uint32_t insn)
{
    int u = bits(insn, 29, 29), q = bits(insn, 30, 30), size = bits(insn, 23, 22);
    enum quantity fma = q ? Q_fma_q : Q_fma_d;
    if (bits(insn, 24, 24)) { /* by element, or shift by immediate */
        if (bits(insn, 10, 10)) return Q_simd;
        switch (bits(insn, 15, 12)) {
        case 0x1: case 0x5: case 0x9: return fma;                  /* FMLA FMLS FMUL */
        case 0x0: case 0x4: return u ? Q_imul : fma;               /* MLA MLS, FMLAL FMLSL */
        case 0x8: case 0xc: return u ? fma : Q_imul;               /* FMLAL2 FMLSL2, MUL SQDMULH */
        case 0xe: return Q_dot;                                    /* SDOT UDOT */
        case 0xf: return u ? Q_imul : Q_dot;                       /* SQRDMLSH, USDOT SUDOT BFDOT */
        default: return Q_imul;
        }
    }
    if (!bits(insn, 21, 21)) { /* copies, permutes, three-same of half floats, dot products */
        if (bits(insn, 15, 15) && bits(insn, 10, 10)) {
            int opcode = bits(insn, 14, 11);
            if (opcode == 2 || opcode == 3) return Q_dot;          /* SDOT UDOT, USDOT */
            if (opcode == 4 || opcode == 5 || (opcode == 13 && size == 1)) return Q_mmla;
            if (opcode == 15) return size == 1 ? Q_dot : fma;      /* BFDOT, BFMLAL */
            return opcode < 2 ? Q_imul : fma;                      /* SQRDMLAH, FCMLA */
        }
        if (bits(insn, 22, 22) && bits(insn, 10, 10)) {            /* half floats */
            int opcode = bits(insn, 13, 11);
            if (opcode == 1 || (opcode == 3 && (u || !bits(insn, 23, 23)))) return fma; /* FMLA FMLS, FMUL FMULX */
            return opcode == 7 && u ? Q_fdiv : Q_simd;
        }
        if (size == 0 && bits(insn, 10, 10) && !u) {
            int opcode = bits(insn, 14, 11);
            return opcode == 1 || opcode == 3 || opcode == 5 || opcode == 7 ? Q_transfer : Q_permute; /* DUP/INS general, SMOV UMOV */
        }
        return Q_permute;
    }
    if (bits(insn, 10, 10)) { /* three of the same kind */
        switch (bits(insn, 15, 11)) {
        case 0x19: case 0x1b: return fma;                          /* FMLA FMLS FMLAL2, FMUL FMULX */
        case 0x1d: return u ? Q_simd : fma;                        /* FACGE, FMLAL FMLSL */
        case 0x12: case 0x13: case 0x16: return Q_imul;            /* MLA MLS, MUL PMUL, SQDMULH */
        case 0x1f: return u ? Q_fdiv : Q_simd;
        default: return Q_simd;
        }
    }
    if (bits(insn, 11, 11)) { /* two registers, across lanes: FSQRT is the only slow one */
        return bits(insn, 21, 17) == 16 && bits(insn, 16, 12) == 31 && u ? Q_fdiv : Q_simd;
    }
    switch (bits(insn, 15, 12)) { /* three of different kinds */
    case 8: case 9: case 10: case 11: case 12: case 13: case 14: return Q_imul;
    default: return Q_simd;
    }
}

static inline enum quantity float_class(uint32_t insn)
{
    if (bits(insn, 31, 31) == 0 && bits(insn, 28, 28) == 0) return vector_class(insn);
    if (bits(insn, 30, 30)) return bits(insn, 15, 12) == 9 && bits(insn, 24, 24) && !bits(insn, 10, 10) ? Q_fma_d : Q_simd; /* scalars of SIMD */
    if (bits(insn, 24, 24)) return Q_fma_d;                        /* FMADD */
    if (!bits(insn, 21, 21)) return Q_transfer;                    /* to and from fixed point */
    if (bits(insn, 11, 10) == 2) {
        int opcode = bits(insn, 15, 12);
        return opcode == 0 || opcode == 8 ? Q_fma_d : opcode == 1 ? Q_fdiv : Q_simd; /* FMUL FNMUL, FDIV */
    }
    if (bits(insn, 14, 10) == 16) return bits(insn, 20, 15) == 3 ? Q_fdiv : Q_simd;  /* FSQRT among one-operand ones */
    return bits(insn, 15, 10) == 0 ? Q_transfer : Q_simd;          /* to and from integers */
}

/* Adds one instruction to its class and amounts. */
static inline void add_instruction(uint32_t insn, uint16_t *to)
{
    uint32_t op0 = bits(insn, 28, 25);
    if ((op0 & 0xe) == 0x8) {
        to[Q_alu]++;
    } else if ((op0 & 0xe) == 0xa) {
        int system = bits(insn, 31, 24) == 0xd5 || bits(insn, 31, 24) == 0xd4;
        to[!system ? Q_branch : bits(insn, 31, 12) == 0xd5032 ? Q_alu : Q_other]++; /* hints (NOP, BTI, PAC) are nearly free */
    } else if ((op0 & 0x5) == 0x4) {
        add_memory(insn, to);
    } else if ((op0 & 0x7) == 0x5) {
        if (bits(insn, 28, 24) == 0x1b) to[Q_mul]++;
        else if (bits(insn, 30, 21) == 0xd6 && bits(insn, 15, 11) == 1) to[Q_div]++;
        else to[Q_alu]++;
    } else if ((op0 & 0x7) == 0x7) {
        to[float_class(insn)]++;
    } else {
        to[Q_other]++;
    }
}

#endif
