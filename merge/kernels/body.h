/* The kernels proper; native.c includes this once per instruction set, with NAME() adding the suffix.
 * Every product and sum is a separately rounded double (no contraction), in an order fixed by the element
 * index alone: the same bytes on every machine. */

#define TILE 512
#define LANES 8

#define EACH(element, CONVERT)                                                     \
    { const element *p = (const element *)source + start;                          \
      for (size_t j = 0; j < count; j++) { double x = (double)CONVERT(p[j]); USE; } \
      break; }
#define EACH_TYPE                                      \
    switch (type) {                                    \
    case T_F32: EACH(float, )                          \
    case T_F16: EACH(uint16_t, f16_to_float)           \
    case T_BF16: EACH(uint16_t, bf16_to_float)         \
    case T_F8_E4M3: EACH(uint8_t, f8_e4m3_to_float)    \
    default: EACH(uint8_t, f8_e5m2_to_float)           \
    }

/* out = weight * source, in double. */
static void NAME(scale)(const char *source, int type, double weight, size_t start, size_t count, double *restrict out) {
#define USE out[j] = x * weight
    EACH_TYPE
#undef USE
}

/* out += weight * source. */
static void NAME(add_scaled)(const char *source, int type, double weight, size_t start, size_t count, double *restrict out) {
#define USE out[j] += x * weight
    EACH_TYPE
#undef USE
}

/* out = source, in float: exact for every type here. */
static void NAME(load)(const char *source, int type, size_t start, size_t count, float *restrict out) {
#define USE out[j] = (float)x
    EACH_TYPE
#undef USE
}

/* out = source - reference. */
static void NAME(subtract)(const char *source, int type, const double *restrict reference, size_t start, size_t count,
                           double *restrict out) {
#define USE out[j] = x - reference[j]
    EACH_TYPE
#undef USE
}

/* Rounds one tile of floats. Returns nonzero where a stored value is not finite. */
static uint32_t NAME(store_floats)(const float *in, int type, size_t start, size_t count, char *target) {
    size_t j;
    uint32_t bad = 0;
    switch (type) {
    case T_F32: { float *p = (float *)target + start;
        for (j = 0; j < count; j++) {
            p[j] = in[j];
            bad |= (as_bits(in[j]) & 0x7f800000u) == 0x7f800000u;
        }
        break; }
    case T_F16: { uint16_t *p = (uint16_t *)target + start;
        for (j = 0; j < count; j++) {
            p[j] = bits_to_f16(as_bits(in[j]));
            bad |= (p[j] & 0x7c00u) == 0x7c00u;
        }
        break; }
    case T_BF16: { uint16_t *p = (uint16_t *)target + start;
        for (j = 0; j < count; j++) {
            p[j] = bits_to_bf16(as_bits(in[j]));
            bad |= (p[j] & 0x7f80u) == 0x7f80u;
        }
        break; }
    }
    return bad;
}

static int NAME(weighted_sum)(int sources, const char *const *source, const int *type, const double *weight,
                              size_t count, char *target, int target_type) {
    double sum[TILE];
    float rounded[TILE];
    int bad_in = 0, bad_out = 0;
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE, j;
        NAME(scale)(source[0], type[0], weight[0], start, tile, sum);
        for (int i = 1; i < sources; i++) NAME(add_scaled)(source[i], type[i], weight[i], start, tile, sum);
        int bad = 0;
        for (j = 0; j < tile; j++) bad |= !(sum[j] - sum[j] == 0.0), rounded[j] = (float)sum[j];
        bad_in |= bad;
        bad_out |= NAME(store_floats)(rounded, target_type, start, tile, target) != 0;
    }
    return bad_in | (bad_out << 1);
}

/* Four vectors of eight lanes hide the latency of addition; their number is part of the definition. */
static double NAME(dot)(const double *a, const double *b, size_t count) {
    lanes sum0 = {0}, sum1 = {0}, sum2 = {0}, sum3 = {0};
    size_t j = 0;
    for (; j + 4 * LANES <= count; j += 4 * LANES) {
        lanes x0, x1, x2, x3, y0, y1, y2, y3;
        memcpy(&x0, a + j, sizeof x0), memcpy(&y0, b + j, sizeof y0);
        memcpy(&x1, a + j + LANES, sizeof x1), memcpy(&y1, b + j + LANES, sizeof y1);
        memcpy(&x2, a + j + 2 * LANES, sizeof x2), memcpy(&y2, b + j + 2 * LANES, sizeof y2);
        memcpy(&x3, a + j + 3 * LANES, sizeof x3), memcpy(&y3, b + j + 3 * LANES, sizeof y3);
        sum0 += x0 * y0, sum1 += x1 * y1, sum2 += x2 * y2, sum3 += x3 * y3;
    }
    sum0 = (sum0 + sum1) + (sum2 + sum3);
    double total = 0;
    for (; j < count; j++) total += a[j] * b[j];
    for (int k = 0; k < LANES; k++) total += sum0[k];
    return total;
}

#ifdef FUSED
static inline lanes NAME(widen)(const float *x) {
    lanes wide;
    for (int l = 0; l < LANES; l++) wide[l] = x[l];
    return wide;
}

/* gram for the commonest numbers of sources of at most 16 bits, whose differences are as good in float: products
 * of two floats are exact in double. Called with a constant, so that all sums stay in registers. */
static inline CONTRACTED __attribute__((always_inline)) void NAME(gram_narrow)(
    const int sources, const float *r, float (*x)[TILE], size_t count, double *out) {
    const int number = 1 + sources + sources * (sources + 1) / 2;
    lanes sum[15], d[4];
    size_t j = 0;
    for (int k = 0; k < number; k++) sum[k] = (lanes){0};
    for (; j + LANES <= count; j += LANES) {
        lanes own = NAME(widen)(r + j);
        int k = 0;
        for (int i = 0; i < sources; i++) d[i] = NAME(widen)(x[i] + j);
        sum[k++] += own * own;
        for (int i = 0; i < sources; i++) sum[k++] += own * d[i];
        for (int i = 0; i < sources; i++)
            for (int l = i; l < sources; l++) sum[k++] += d[i] * d[l];
    }
    for (int k = 0; k < number; k++)
        for (int l = 0; l < LANES; l++) out[k] += sum[k][l];
    for (; j < count; j++) {
        double *o = out;
        *o++ += (double)r[j] * r[j];
        for (int i = 0; i < sources; i++) *o++ += (double)r[j] * x[i][j];
        for (int i = 0; i < sources; i++)
            for (int l = i; l < sources; l++) *o++ += (double)x[i][j] * x[l][j];
    }
}

/* Returns 0 where it is not made for the sources. */
static CONTRACTED int NAME(gram_fused)(const char *reference, int reference_type, int sources, const char *const *source,
                            const int *type, size_t count, double *out) {
    float r[TILE], x[4][TILE];
    int narrow = reference_type != T_F32 && sources >= 1 && sources <= 4;
    for (int i = 0; narrow && i < sources; i++) narrow = type[i] != T_F32;
    if (!narrow) return 0;
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE;
        NAME(load)(reference, reference_type, start, tile, r);
        for (int i = 0; i < sources; i++) {
            NAME(load)(source[i], type[i], start, tile, x[i]);
            for (size_t j = 0; j < tile; j++) x[i][j] -= r[j];
        }
        switch (sources) {
        case 1: NAME(gram_narrow)(1, r, x, tile, out); break;
        case 2: NAME(gram_narrow)(2, r, x, tile, out); break;
        case 3: NAME(gram_narrow)(3, r, x, tile, out); break;
        default: NAME(gram_narrow)(4, r, x, tile, out);
        }
    }
    return 1;
}
#else
#define gram_fused_portable(...) 0
#endif

/* Adds to out: |r|^2, then <r, x_i - r> for each i, then <x_i - r, x_j - r> for i <= j (row by row).
 * Returns nonzero where memory is short. */
static int NAME(gram)(const char *reference, int reference_type, int sources, const char *const *source,
                      const int *type, size_t count, double *out) {
    if (NAME(gram_fused)(reference, reference_type, sources, source, type, count, out)) return 0;
    double *scratch = malloc(((size_t)sources + 1) * TILE * sizeof(double)), *r = scratch;
    if (!scratch) return 1;
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE;
        double *o = out;
        NAME(scale)(reference, reference_type, 1.0, start, tile, r);
        *o++ += NAME(dot)(r, r, tile);
        for (int i = 0; i < sources; i++) {
            double *d = scratch + (size_t)(i + 1) * TILE;
            NAME(subtract)(source[i], type[i], r, start, tile, d);
            *o++ += NAME(dot)(r, d, tile);
        }
        for (int i = 0; i < sources; i++)
            for (int k = i; k < sources; k++)
                *o++ += NAME(dot)(scratch + (size_t)(i + 1) * TILE, scratch + (size_t)(k + 1) * TILE, tile);
    }
    free(scratch);
    return 0;
}

#include "task_vectors.h"
#include "competition.h"
#include "importance.h"
#include "rounding.h"
#undef PART
#undef WORDS
#undef TALLY_BITS
#undef TALLIES
#undef EACH
#undef EACH_TYPE
#undef TILE
#undef LANES
