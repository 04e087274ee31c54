#pragma once

// Generated mutants: each is one change of the code, at most one is active

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// of the mutants from `first` on, `count` are asked for: the active one, none, or all to note them
GGML_API int  ggml_fa_generated_first;
GGML_API int  ggml_fa_generated_count;
GGML_API bool ggml_fa_generated_reach(int n);

#ifdef __cplusplus
}
#define FA_AUTO auto
#else
#define FA_AUTO __auto_type
#endif

#ifdef FA_ONLY
// one mutant alone, or none: for a comparison of object code
#define FA_M(n) ((n) == FA_ONLY)
#else
// is the mutant active; to ask is to reach it
#define FA_M(n) \
    (__builtin_expect((unsigned) ((n) - ggml_fa_generated_first) < (unsigned) ggml_fa_generated_count, 0) && \
     ggml_fa_generated_reach(n))
#endif

#define FA_CONST(c, i, j)             (FA_M(i) ? c + 1 : FA_M(j) ? c - 1 : c)
#define FA_FLOAT(c, i, to, j)         (FA_M(i) ? 0*c + to : FA_M(j) ? 2*c + 1 : c)
#define FA_NEG(i, x)                  (FA_M(i) ? x : -x)
#define FA_LOGIC(i, a, op, other, b)  (FA_M(i) ? (a other b) : (a op b))

// operands are evaluated once, whatever is active
#define FA_COND(i, j, x) __extension__ ({ \
    const bool fa_c = (x); \
    FA_M(i) ? true : FA_M(j) ? false : fa_c; })
#define FA_F16(i, x) __extension__ ({ \
    const float fa_x = (x); \
    FA_M(i) ? ggml_fp16_to_fp32(ggml_fp32_to_fp16(fa_x)) : fa_x; })
#define FA_BINARY1(a, op, b, i, x) __extension__ ({ \
    FA_AUTO fa_a = a; \
    FA_AUTO fa_b = b; \
    FA_M(i) ? (__typeof__(fa_a op fa_b)) (fa_a x fa_b) : fa_a op fa_b; })
#define FA_BINARY2(a, op, b, i, x, j, y) __extension__ ({ \
    FA_AUTO fa_a = a; \
    FA_AUTO fa_b = b; \
    FA_M(i) ? (__typeof__(fa_a op fa_b)) (fa_a x fa_b) : \
    FA_M(j) ? (__typeof__(fa_a op fa_b)) (fa_a y fa_b) : fa_a op fa_b; })
