/* Fused block kernels: one pass over the parents, in double, rounded once.
 * Plain C without Python's headers; kernels/__init__.py loads it with ctypes, which lets go of the GIL. */
#include "convert.h"
#include "series.h"
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

typedef double lanes __attribute__((vector_size(64)));
typedef float floats __attribute__((vector_size(32)));
typedef int64_t indices __attribute__((vector_size(64)));

/* How terms are mixed: task_vectors.h says what each does. */
enum { SUM, ELECT, LARGEST, CONSENSUS, ALONE };

/* What is left of a source's difference from the base: a move by at most `move`; elements with keys in [low, high), the
 * first `keep` of those with key low - 1, and not the first `drop` of those with key high - 1, where keys are those of
 * the difference, or (varied) of the variance over all sources; of these, where it draws, those whose draw is below a
 * limit; or, with rows of `columns`, those that a draw keeps with probability least + rise * (the rank of their
 * difference in the row), over that probability (inverse). */
typedef struct {
    double move;
    uint32_t low, high;
    uint64_t keep, drop;
    size_t columns;
    float least, rise;
    uint32_t key[3];
    int32_t limit, draws, inverse, varied;
} thinning;

#if defined(__GNUC__) && !defined(__clang__)
#define ONE_BY_ONE __attribute__((noinline, optimize("no-tree-vectorize", "unroll-loops")))
#else
#define ONE_BY_ONE
#endif

#define NAME(x) x##_portable
#include "body.h"
#undef NAME

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define FUSED
#pragma GCC diagnostic ignored "-Wpsabi" /* wide vectors are only passed to functions that are inlined */
/* Lets a product and a sum be one instruction: for products that are exact, where the bits are the same. */
#define CONTRACTED __attribute__((optimize("fp-contract=fast")))
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#define NAME(x) x##_avx2
#include "body.h"
#undef NAME
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define COMPRESS
#define NAME(x) x##_avx512
#include "body.h"
#undef NAME
#undef COMPRESS
#pragma GCC pop_options

static int width(void) {
    static int known = 0;
    if (!known) {
        __builtin_cpu_init();
        known = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") ? 3
                : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 2 : 1;
    }
    return known;
}
#define DISPATCH(call, ...) \
    (width() == 3 ? call##_avx512(__VA_ARGS__) : width() == 2 ? call##_avx2(__VA_ARGS__) : call##_portable(__VA_ARGS__))
#else
#define DISPATCH(call, ...) call##_portable(__VA_ARGS__)
#endif

/* target[j] = sum_i weight[i] * source[i][j]. Bit 0: a sum is not finite; bit 1: a stored value is not finite. */
int merge_models_weighted_sum(int sources, const char *const *source, const int *type, const double *weight,
                              size_t count, char *target, int target_type) {
    return DISPATCH(weighted_sum, sources, source, type, weight, count, target, target_type);
}

/* Adds the moments of count elements to out (layout: see gram in body.h). Nonzero: out of memory. */
int merge_models_gram(const char *reference, int reference_type, int sources, const char *const *source,
                      const int *type, size_t count, double *out) {
    return DISPATCH(gram, reference, reference_type, sources, source, type, count, out);
}

/* Kernels on task vectors: task_vectors.h says what each does. */
int merge_models_is_finite(const char *source, int type, size_t count) { return DISPATCH(is_finite, source, type, count); }

void merge_models_keys(const char *source, int type, const char *base, int base_type, size_t count, uint32_t *out) {
    DISPATCH(all_keys, source, type, base, base_type, count, out);
}

int merge_models_count_keys(int sources, const char *const *source, const int *type, const char *base,
                            int base_type, size_t count, int windows, const uint32_t *first, int shift,
                            uint32_t bins, int64_t *out) {
    return DISPATCH(count_keys, sources, source, type, base, base_type, count, windows, first, shift, bins, out);
}

int merge_models_gather_keys(int sources, const char *const *source, const int *type, const char *base,
                             int base_type, size_t count, int windows, const uint32_t *first, const uint32_t *stop,
                             uint32_t least, uint32_t *const *list, uint32_t *const *times, int64_t *const *number) {
    return DISPATCH(gather_keys, sources, source, type, base, base_type, count, windows, first, stop, least, list,
                    times, number);
}

int merge_models_count_shared(int sources, const char *const *source, const int *type, const char *base,
                              int base_type, size_t count, uint32_t low, int64_t *out) {
    return DISPATCH(count_shared, sources, source, type, base, base_type, count, low, out);
}

void merge_models_variance(int sources, const char *const *source, const int *type, size_t count, float *out) {
    DISPATCH(variance, sources, source, type, count, out);
}

int merge_models_norms(int sources, const char *const *source, const int *type, const char *base, int base_type,
                        const thinning *thinned, int squared, size_t count, double *out) {
    return DISPATCH(norms, sources, source, type, base, base_type, thinned, squared, count, out);
}

int merge_models_mix(int sources, const char *const *source, const int *type, const char *base, int base_type,
                     const thinning *thinned, const double *factor, const double *extra, const double *share, int kind,
                     int normalize, int enough, double lambda, size_t count, char *target, int target_type) {
    return DISPATCH(mix, sources, source, type, base, base_type, thinned, factor, extra, share, kind, normalize,
                    enough, lambda, count, target, target_type);
}

/* Parameter competition: competition.h says what each does. */
int merge_models_scores(int sources, const char *const *source, const int *type, const char *base, int base_type,
                        const float *low, const float *high, size_t count, float *const *out) {
    return DISPATCH(scores, sources, source, type, base, base_type, low, high, count, out);
}

int merge_models_compete(int sources, const char *const *source, const int *type, const char *base, int base_type,
                         const float *const *range, const double *weight, double lambda, size_t count, char *target,
                         int target_type) {
    return DISPATCH(compete, sources, source, type, base, base_type, range, weight, lambda, count, target, target_type);
}

/* Importances of changes: importance.h says what each does. */
int merge_models_divergences(const char *parent, int type, const char *base, int base_type, size_t runs, size_t length,
                             double *out) {
    return DISPATCH(divergences, parent, type, base, base_type, runs, length, out);
}

void merge_models_importances(const char *parent, int type, const char *base, int base_type, const double *divergence,
                              size_t length, size_t count, float *out) {
    DISPATCH(importances, parent, type, base, base_type, divergence, length, count, out);
}

int merge_models_take_important(const char *parent, int type, const char *base, int base_type,
                                const double *divergence, size_t length, float threshold, size_t count, char *target,
                                int target_type) {
    return DISPATCH(take_important, parent, type, base, base_type, divergence, length, threshold, count, target,
                    target_type);
}

void merge_models_checksum(const char *data, size_t bytes, uint64_t *out) { DISPATCH(checksum, data, bytes, out); }

/* Rounding to 16 bits: rounding.h says what each does. */
int merge_models_round(const float *source, size_t count, int type, const uint32_t *key, char *target) {
    return DISPATCH(round, source, count, type, key, target);
}

void merge_models_survival(const float *value, const char *stored, int type, const char *reference,
                           int reference_type, size_t count, double *out) {
    DISPATCH(survival, value, stored, type, reference, reference_type, count, out);
}

/* Compared with _INTERFACE of blocks.py: a library built from other sources is not used. */
const int merge_models_interface = 13;
