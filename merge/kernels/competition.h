/* Kernels of parameter competition (PCB), straight from storage bytes; included by body.h.
 * All in binary32 but for sums, each operation rounded by itself: torch does the same. */

/* e^r - 1 - r over r for |r| <= ln 2 / 2: Taylor's series, whose next term is below 1e-8 of it. */
static inline float NAME(series)(float r) {
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    return p * r;
}

/* x = times ln 2 + rest: returns 2^times. */
static inline float NAME(power)(float x, float *rest) {
    float times = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = x - times * 0.693359375f;
    *rest = r - times * -2.12194440e-4f;
    return as_float((uint32_t)((int32_t)times + 127) << 23);
}

/* e^x for x <= 0; 0 below -87. */
static inline float NAME(falling)(float x) {
    float r, scale = NAME(power)(x > -87.0f ? x : -87.0f, &r), p = NAME(series)(r);
    float all = (p * r + r + 1.0f) * scale;
    return x > -87.0f ? all : 0.0f;
}

#define SMALL 0.03125f
/* tanh x for x > 0, else 0: of small x by Taylor's series, whose next term is below 1e-10 of it. */
static inline float NAME(rising_little)(float x) {
    float y = x > 0 ? x : 0.0f, z = y * y;
    return ((2.0f / 15 * z - 1.0f / 3) * z) * y + y;
}

/* tanh x for x > 0, else 0: of others e / (e + 2) with e = e^2x - 1, no small difference of large numbers. */
static inline float NAME(rising)(float x) {
    float y = x > 0 ? x + x : 0.0f, r, scale = NAME(power)(y < 30.0f ? y : 30.0f, &r), p = NAME(series)(r);
    float e = (p * r + r) * scale + (scale - 1.0f);
    return x < SMALL ? NAME(rising_little)(x) : e / (e + 2.0f);
}

/* One source's scores in a tile: exp(number * (s^2 - 1)) * tanh(delta * whole), or 0 where that is not positive; s is the
 * size of delta, scaled to [0, 1]. */
static void NAME(score)(const float *restrict delta, const float *restrict whole, float number, float low, float high,
                        size_t count, float *restrict out) {
    float scale = high > low ? 1.0f / (high - low) : 1.0f;
    uint32_t large = 0;
    size_t j;
    for (j = 0; j < count; j++) {
        out[j] = delta[j] * whole[j];
        large |= !(out[j] < SMALL);
    }
    if (large)
        for (j = 0; j < count; j++) out[j] = NAME(rising)(out[j]);
    else
        for (j = 0; j < count; j++) out[j] = NAME(rising_little)(out[j]);
    for (j = 0; j < count; j++) {
        float size = fabsf(delta[j]);
        size = size > low ? size : low;
        size = ((size < high ? size : high) - low) * scale;
        out[j] *= NAME(falling)((size * size - 1.0f) * number);
    }
}
#undef SMALL

/* Differences of a tile's sources from the base (floats), and their sum; notes the largest sizes of what is stored. */
static void NAME(differences)(int sources, const char *const *source, const int *type, const float *restrict base,
                              size_t start, size_t count, float (*restrict delta)[PART], float *restrict whole,
                              uint32_t *restrict most) {
    double sum[PART];
    size_t j;
    for (j = 0; j < count; j++) sum[j] = 0;
    for (int i = 0; i < sources; i++) {
        NAME(load)(source[i], type[i], start, count, delta[i]);
        NAME(note_sizes)(delta[i], count, most);
        for (j = 0; j < count; j++) delta[i][j] -= base[j], sum[j] += delta[i][j];
    }
    for (j = 0; j < count; j++) whole[j] = (float)sum[j];
}

/* out[i] = the scores of source i. Nonzero: out of memory. */
static int NAME(scores)(int sources, const char *const *source, const int *type, const char *base, int base_type,
                        const float *low, const float *high, size_t count, float *const *out) {
    float(*delta)[PART] = malloc((size_t)sources * sizeof *delta), b[PART], whole[PART];
    uint32_t most[WORDS] = {0};
    for (size_t start = 0; delta && start < count; start += PART) {
        size_t tile = count - start < PART ? count - start : PART;
        NAME(load)(base, base_type, start, tile, b);
        NAME(differences)(sources, source, type, b, start, tile, delta, whole, most);
        for (int i = 0; i < sources; i++)
            NAME(score)(delta[i], whole, (float)sources, low[i], high[i], tile, out[i] + start);
    }
    free(delta);
    return !delta;
}

/* total += weight * share * (delta, its size clamped), shares += share: the score scaled to [0, 1] from least to most. */
static void NAME(add_share)(const float *restrict delta, const float *restrict score, double weight, float low, float high,
                            float least, float most, size_t count, double *restrict total, double *restrict shares) {
    float scale = most > least ? 1.0f / (most - least) : 0.0f, flat = most > least ? 0.0f : 1.0f;
    for (size_t j = 0; j < count; j++) {
        float share = (score[j] - least) * scale + flat, size = fabsf(delta[j]);
        share = (score[j] >= least) & (score[j] > 0) ? share : 0.0f;
        size = size > low ? size : low;
        size = size < high ? size : high;
        total[j] += (double)copysignf(size, delta[j]) * (double)share * weight;
        shares[j] += share;
    }
}

/* target = base + lambda * the mean of task vectors, weighted by shares. Flags as mix's. */
static int NAME(compete)(int sources, const char *const *source, const int *type, const char *base, int base_type,
                         const float *const *range, const double *weight, double lambda, size_t count, char *target,
                         int target_type) {
    float(*delta)[PART] = malloc((size_t)sources * sizeof *delta), b[PART], whole[PART], score[PART], out[PART];
    const float *low = range[0], *high = range[1], *least = range[2], *most = range[3];
    double total[PART], shares[PART];
    uint32_t largest[WORDS] = {0}, bad = 0, overflows = 0;
    if (!delta) return -1;
    for (size_t start = 0; start < count; start += PART) {
        size_t tile = count - start < PART ? count - start : PART, j;
        NAME(load)(base, base_type, start, tile, b);
        NAME(note_sizes)(b, tile, largest);
        NAME(differences)(sources, source, type, b, start, tile, delta, whole, largest);
        for (j = 0; j < tile; j++) total[j] = shares[j] = 0;
        for (int i = 0; i < sources; i++) {
            NAME(score)(delta[i], whole, (float)sources, low[i], high[i], tile, score);
            NAME(add_share)(delta[i], score, weight[i], low[i], high[i], least[i], most[i], tile, total, shares);
        }
        for (j = 0; j < tile; j++) {
            double q = shares[j] > 0 ? shares[j] : 1.0;
            out[j] = (float)(total[j] * lambda / q + (double)b[j]);
        }
        overflows |= NAME(store_floats)(out, target_type, start, tile, target);
    }
    free(delta);
    for (int k = 0; k < WORDS; k++) bad |= largest[k] >= 0x7f800000u;
    return (int)(bad | overflows << 1);
}
