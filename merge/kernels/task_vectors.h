/* Kernels on task vectors (a source minus the base), straight from storage bytes; included by body.h.
 * A difference's key is the bit pattern of its magnitude in binary32: it sorts as the magnitude does. */

#define PART 128
#define HIGH_SHIFT 19
#define HIGH_BINS 4096

/* out = source, in float: exact for every type here. */
static void NAME(load)(const char *source, int type, size_t start, size_t count, float *restrict out) {
#define USE out[j] = (float)x
    EACH_TYPE
#undef USE
}

static int NAME(is_finite)(const char *source, int type, size_t count) {
    float x[TILE];
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE, j;
        uint32_t bad = 0;
        NAME(load)(source, type, start, tile, x);
        for (j = 0; j < tile; j++) bad |= (as_bits(x[j]) & 0x7f800000u) == 0x7f800000u;
        if (bad) return 0;
    }
    return 1;
}

/* Keys of source - base (floats); of source where base is NULL. */
static void NAME(keys)(const char *source, int type, const float *restrict base, size_t start, size_t count,
                       uint32_t *restrict out) {
    float x[TILE];
    size_t j;
    NAME(load)(source, type, start, count, x);
    if (base)
        for (j = 0; j < count; j++) x[j] -= base[j];
    for (j = 0; j < count; j++) out[j] = as_bits(x[j]) & 0x7fffffffu;
}

/* Counts the keys in a window of `bins << shift` keys by bin; few keys are in it. */
static void NAME(count_window)(const uint32_t *key, size_t count, uint32_t first, int shift, uint32_t span,
                               int64_t *bin) {
    uint8_t inside[TILE];
    uint64_t eight;
    for (size_t j = 0; j < count; j++) inside[j] = key[j] - first < span;
    memset(inside + count, 0, -count & 7);
    for (size_t start = 0; start < count; start += 8)
        for (memcpy(&eight, inside + start, 8); eight; eight &= eight - 1)
            bin[(key[start + (unsigned)__builtin_ctzll(eight) / 8] - first) >> shift]++;
}

/* Counts all keys by their high 12 bits, in four tables, so that equal neighbours need not wait for each other. */
static void NAME(count_all)(const uint32_t *key, size_t count, uint32_t table[4][HIGH_BINS]) {
    size_t j = 0;
    for (; j + 4 <= count; j += 4)
        for (int k = 0; k < 4; k++) table[k][key[j + k] >> HIGH_SHIFT]++;
    for (; j < count; j++) table[0][key[j] >> HIGH_SHIFT]++;
}

/* Adds to out[source][window][bin] the number of keys k with (k - first[source][window]) >> shift == bin.
 * Nonzero: out of memory. */
static int NAME(count_keys)(int sources, const char *const *source, const int *type, const char *base,
                            int base_type, size_t count, int windows, const uint32_t *first, int shift,
                            uint32_t bins, int64_t *out) {
    uint32_t key[TILE], (*table)[4][HIGH_BINS] = 0;
    float b[TILE];
    int all = shift == HIGH_SHIFT && bins == HIGH_BINS && windows == 1;
    if (all && !(table = calloc((size_t)sources, sizeof *table))) return 1;
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE;
        if (base) NAME(load)(base, base_type, start, tile, b);
        for (int i = 0; i < sources; i++) {
            NAME(keys)(source[i], type[i], base ? b : 0, start, tile, key);
            if (all) NAME(count_all)(key, tile, table[i]);
            else
                for (int w = i * windows; w < (i + 1) * windows; w++)
                    NAME(count_window)(key, tile, first[w], shift, bins << shift, out + (size_t)w * bins);
        }
    }
    for (int i = 0; all && i < sources; i++)
        for (uint32_t k = 0; k < 4; k++)
            for (uint32_t c = 0; c < HIGH_BINS; c++) out[(size_t)i * HIGH_BINS + c] += table[i][k][c];
    free(table);
    return 0;
}

/* Population variance over the sources at each element; differences from the first source first, so that
 * equal sources have variance 0. Nonzero: out of memory. */
static int NAME(variance)(int sources, const char *const *source, const int *type, size_t count, float *out) {
    double *e = malloc((size_t)sources * PART * sizeof(double)), first[PART], mean[PART], sum[PART];
    if (!e) return 1;
    for (size_t start = 0; start < count; start += PART) {
        size_t tile = count - start < PART ? count - start : PART, j;
        NAME(scale)(source[0], type[0], 1.0, start, tile, first);
        for (j = 0; j < tile; j++) mean[j] = 0, sum[j] = 0;
        for (int i = 0; i < sources; i++) {
            double *d = e + (size_t)i * PART;
            NAME(subtract)(source[i], type[i], first, start, tile, d);
            for (j = 0; j < tile; j++) mean[j] += d[j];
        }
        for (j = 0; j < tile; j++) mean[j] /= sources;
        for (int i = 0; i < sources; i++) {
            const double *d = e + (size_t)i * PART;
            for (j = 0; j < tile; j++) sum[j] += (d[j] - mean[j]) * (d[j] - mean[j]);
        }
        for (j = 0; j < tile; j++) out[start + j] = (float)(sum[j] / sources);
    }
    free(e);
    return 0;
}

/* Chris Wellons' triple32 bijection of 32-bit words (public domain), with key words added between its rounds. */
static inline uint32_t NAME(mix)(uint32_t x, const uint32_t *key) {
    x += key[0];
    x = (x ^ x >> 17) * 0xed5ad4bbu + key[1];
    x = (x ^ x >> 11) * 0xac4c1b51u + key[2];
    x = (x ^ x >> 15) * 0x31848babu;
    return x ^ x >> 14;
}

/* The mixed index, read as signed, is the draw. Without probability: out[j] = 1 where it is below a limit,
 * else 0. With it: 1, or 1 / probability[j] (inverse), where draw plus 2^31, over 2^32, is below
 * probability[j]. */
static void NAME(draw)(size_t count, const uint32_t *key, const float *probability, int32_t limit, int inverse,
                       float *restrict out) {
    size_t j;
    if (probability) {
        for (j = 0; j < count; j++) {
            double u = ((double)(int32_t)NAME(mix)((uint32_t)j, key) + 2147483648.0) * 0x1p-32;
            float kept = inverse ? 1.0f / probability[j] : 1.0f;
            out[j] = u < probability[j] ? kept : 0.0f;
        }
        return;
    }
    for (j = 0; j < count; j++) out[j] = (int32_t)NAME(mix)((uint32_t)j, key) < limit ? 1.0f : 0.0f;
}

/* Which part of a source takes part: keys in [low, high), and those that a draw keeps (limit, below 2^31, of
 * the mixed index: see draw); times scale where that is given. */
typedef struct { uint32_t low, high; const float *scale; const uint32_t *key; int32_t limit; } NAME(thinning);

static void NAME(thin)(const float *restrict value, const float *restrict base, size_t start, size_t count,
                       const NAME(thinning) *by, float *restrict out) {
    uint32_t low = by->low, span = by->high - low;
    size_t j;
    if (low || by->high < 0x80000000u)
        for (j = 0; j < count; j++) {
            float difference = value[j] - base[j];
            out[j] = (as_bits(difference) & 0x7fffffffu) - low < span ? 1.0f : 0.0f;
        }
    else
        for (j = 0; j < count; j++) out[j] = 1.0f;
    if (by->key) {
        uint32_t first = (uint32_t)start;
        for (j = 0; j < count; j++)
            out[j] = (int32_t)NAME(mix)(first + (uint32_t)j, by->key) < by->limit ? out[j] : 0.0f;
    }
    if (by->scale)
        for (j = 0; j < count; j++) out[j] *= by->scale[start + j];
}

/* How the terms of elected_sum are added up; gain is NULL where all are 1. */
typedef struct {
    const double *factor, *gain, *share;
    double lambda, noise;
    int elect, normalize;
} NAME(rule);

/* One tile of elected_sum. Called with constants for sources and flags, so that the compiler unrolls the loops
 * over sources and vectorises the one over elements. */
static inline __attribute__((always_inline)) void NAME(elect)(
    const int sources, const int elect, const int normalize, const int gains, float (*restrict value)[PART],
    float (*restrict left)[PART], const float *restrict base, size_t count, const NAME(rule) *rule,
    float *restrict out) {
    double lambda = rule->lambda, noise = rule->noise;
    double factor[sources], gain[sources], share[sources], whole[sources];
    for (int i = 0; i < sources; i++) {
        factor[i] = rule->factor[i], gain[i] = gains ? rule->gain[i] : 1.0, share[i] = rule->share[i];
        whole[i] = share[i] < 0 ? -share[i] : share[i];
    }
    for (size_t j = 0; j < count; j++) {
        double b = base[j], votes = 0, size = 0, sum = 0, parts = 0, wholes = 0, total = 0;
        double least = HUGE_VAL, most = -HUGE_VAL, sign = 1, q = lambda;
        if (elect) {
            for (int i = 0; i < sources; i++) {
                double weight = factor[i] * (double)left[i][j], term = ((double)value[i][j] - b) * weight;
                votes += term;
                size += term < 0 ? -term : term;
            }
            sign = votes >= -noise * size ? 1.0 : -1.0;
        }
        for (int i = 0; i < sources; i++) {
            double weight = factor[i] * (double)left[i][j], y = value[i][j], term = (y - b) * weight;
            double positive = elect ? term * sign : weight < 0 ? -weight : weight;
            if (gains) term *= gain[i], weight *= gain[i];
            sum += positive > 0 ? term : 0;
            total += positive > 0 ? weight : 0;
            if (normalize) {
                parts += positive > 0 ? share[i] : 0;
                wholes += positive > 0 ? whole[i] : 0;
            }
            double low = positive > 0 ? y : HUGE_VAL, high = positive > 0 ? y : -HUGE_VAL;
            least = low < least ? low : least;
            most = high > most ? high : most;
        }
        if (normalize) {
            double absolute = parts < 0 ? -parts : parts;
            q = lambda / (absolute > 1e-12 * wholes ? parts : 1.0);
        }
        double gap = total * q - 1.0, mixed = b + sum * q;
        gap = gap < 0 ? -gap : gap;
        mixed = gap <= 1e-13 ? (least == most ? least : mixed) : mixed;
        out[j] = (float)mixed;
    }
}

#define ELECT(sources) \
    case sources: \
        if (rule->gain) NAME(elect)(sources, 1, 1, 1, value, left, base, count, rule, out); \
        else if (rule->elect && rule->normalize) NAME(elect)(sources, 1, 1, 0, value, left, base, count, rule, out); \
        else if (rule->elect) NAME(elect)(sources, 1, 0, 0, value, left, base, count, rule, out); \
        else if (rule->normalize) NAME(elect)(sources, 0, 1, 0, value, left, base, count, rule, out); \
        else NAME(elect)(sources, 0, 0, 0, value, left, base, count, rule, out); \
        break;

static void NAME(elect_tile)(int sources, float (*restrict value)[PART], float (*restrict left)[PART],
                             const float *restrict base, size_t count, const NAME(rule) *rule,
                             float *restrict out) {
    switch (rule->gain && !(rule->elect && rule->normalize) ? 0 : sources) {
    ELECT(1) ELECT(2) ELECT(3) ELECT(4)
    default:
        NAME(elect)(sources, rule->elect, rule->normalize, !!rule->gain, value, left, base, count, rule, out);
    }
}
#undef ELECT

/* Terms are factor * (what thin leaves) * (source - base). Those not 0 take part; elect: those of the sign
 * that their sum has (zero and rounding noise count as plus).
 * out = base + lambda * sum of gain * term over those that take part; normalize: over the sum of their shares.
 * Where their sources are all equal and their coefficients sum to 1, that source. Nonzero: out of memory. */
static int NAME(elected_sum)(int sources, const char *const *source, const int *type, const char *base,
                             int base_type, const uint32_t *low, const uint32_t *high,
                             const float *const *scale, const uint32_t *const *key, const int32_t *limit,
                             const double *factor, const double *gain, const double *share, int elect,
                             int normalize, double lambda, size_t count, float *out) {
    float(*value)[PART] = malloc(2 * (size_t)sources * sizeof *value), (*left)[PART] = value + sources;
    float b[PART];
    NAME(rule) rule = {factor, gain, share, lambda, 0x1p-51 * sources, elect, normalize};
    if (!value) return 1;
    for (size_t start = 0; start < count; start += PART) {
        size_t tile = count - start < PART ? count - start : PART;
        NAME(load)(base, base_type, start, tile, b);
        for (int i = 0; i < sources; i++) {
            NAME(thinning) by = {low[i], high[i], scale[i], key[i], limit[i]};
            NAME(load)(source[i], type[i], start, tile, value[i]);
            NAME(thin)(value[i], b, start, tile, &by, left[i]);
        }
        NAME(elect_tile)(sources, value, left, b, tile, &rule, out + start);
    }
    free(value);
    return 0;
}

/* Mean rank, counted from 0, of elements that stand first to stop - 1 in order, over the highest rank. */
static inline float NAME(fraction)(size_t first, size_t stop, size_t columns) {
    return columns > 1 ? (float)((double)(first + stop - 1) * 0.5 / (double)(columns - 1)) : 0.5f;
}

static void NAME(rank_by_counting)(const uint32_t *key, size_t columns, float *out) {
    for (size_t i = 0; i < columns; i++) {
        uint32_t below = 0, same = 0;
        for (size_t j = 0; j < columns; j++) below += key[j] < key[i], same += key[j] == key[i];
        out[i] = NAME(fraction)(below, below + same, columns);
    }
}

/* A radix sort of (key, index) pairs, least digit first. */
static void NAME(rank_by_sorting)(const uint32_t *key, size_t columns, uint64_t *from, uint64_t *to, float *out) {
    uint32_t place[3][2048] = {{0}};
    size_t j;
    for (j = 0; j < columns; j++) {
        from[j] = (uint64_t)key[j] << 32 | (uint32_t)j;
        place[0][key[j] & 2047]++, place[1][key[j] >> 11 & 2047]++, place[2][key[j] >> 22]++;
    }
    for (int digit = 0; digit < 3; digit++) {
        uint32_t *at = place[digit], sum = 0, shift = 32 + 11 * digit;
        if (at[from[0] >> shift & 2047] == columns) continue; /* all alike in this digit */
        for (j = 0; j < 2048; j++) { uint32_t here = at[j]; at[j] = sum; sum += here; }
        for (j = 0; j < columns; j++) to[at[from[j] >> shift & 2047]++] = from[j];
        uint64_t *swap = from; from = to; to = swap;
    }
    for (size_t first = 0, stop; first < columns; first = stop) {
        for (stop = first + 1; stop < columns && from[stop] >> 32 == from[first] >> 32;) stop++;
        float rank = NAME(fraction)(first, stop, columns);
        for (j = first; j < stop; j++) out[(uint32_t)from[j]] = rank;
    }
}

/* out = the rank of each key of source - base in its row, as a fraction of the row's highest rank; equal keys
 * share their mean rank; 1/2 in rows of one. Nonzero: out of memory. */
static int NAME(row_ranks)(const char *source, int type, const char *base, int base_type, size_t rows,
                           size_t columns, float *out) {
    uint64_t *pairs = malloc(columns * (2 * sizeof(uint64_t) + sizeof(uint32_t)));
    uint32_t *key = (uint32_t *)(pairs + 2 * columns);
    float b[TILE];
    if (!pairs) return 1;
    for (size_t row = 0; row < rows; row++, out += columns) {
        for (size_t start = 0; start < columns; start += TILE) {
            size_t tile = columns - start < TILE ? columns - start : TILE;
            NAME(load)(base, base_type, row * columns + start, tile, b);
            NAME(keys)(source, type, b, row * columns + start, tile, key + start);
        }
        if (columns <= 256) NAME(rank_by_counting)(key, columns, out);
        else NAME(rank_by_sorting)(key, columns, pairs, pairs + columns, out);
    }
    free(pairs);
    return 0;
}

/* Adds up 64-bit words, plainly and by position; the last word is padded with zeros. */
static void NAME(checksum)(const char *data, size_t bytes, uint64_t *out) {
    uint64_t plain = 0, placed = 0, word, words = bytes / 8;
    for (uint64_t j = 0; j < words; j++) {
        memcpy(&word, data + 8 * j, 8);
        plain += word;
        placed += word * (j + 1);
    }
    word = 0;
    memcpy(&word, data + 8 * words, bytes - 8 * words);
    out[0] = plain + word;
    out[1] = placed + word * (words + 1);
}
#undef PART
#undef HIGH_SHIFT
#undef HIGH_BINS
