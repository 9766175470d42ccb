/* Kernels on task vectors (a source minus the base), straight from storage bytes; included by body.h.
 * A difference's key is the bit pattern of its magnitude in binary32: it sorts as the magnitude does. */

#define PART 128

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

/* Keys of source - base; of source where base is NULL. */
static void NAME(keys)(const char *source, int type, const char *base, int base_type, size_t start, size_t count,
                       uint32_t *restrict out) {
    float x[TILE], b[TILE];
    size_t j;
    NAME(load)(source, type, start, count, x);
    if (base) {
        NAME(load)(base, base_type, start, count, b);
        for (j = 0; j < count; j++) x[j] -= b[j];
    }
    for (j = 0; j < count; j++) out[j] = as_bits(x[j]) & 0x7fffffffu;
}

/* Adds to out[source][window][bin] the number of keys k with (k - first[source][window]) >> shift == bin. */
static void NAME(count_keys)(int sources, const char *const *source, const int *type, const char *base,
                             int base_type, size_t count, int windows, const uint32_t *first, int shift,
                             uint32_t bins, int64_t *out) {
    uint32_t key[TILE], span = bins << shift;
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE, j, c;
        for (int i = 0; i < sources; i++) {
            NAME(keys)(source[i], type[i], base, base_type, start, tile, key);
            for (int w = i * windows; w < (i + 1) * windows; w++) {
                uint32_t low = first[w];
                int64_t *bin = out + (size_t)w * bins;
                if (span == 0x80000000u) {
                    for (j = 0; j < tile; j++) bin[key[j] >> shift]++;
                    continue;
                }
                for (c = 0; c < tile; c += 32) { /* most runs hold no key of a narrow window */
                    size_t stop = c + 32 < tile ? c + 32 : tile;
                    uint32_t hit = 0, hits = 0, offset[32];
                    for (j = c; j < stop; j++) hit |= key[j] - low < span;
                    if (!hit) continue;
                    for (j = c; j < stop; j++) {
                        offset[hits] = key[j] - low;
                        hits += offset[hits] < span;
                    }
                    for (j = 0; j < hits; j++) bin[offset[j] >> shift]++;
                }
            }
        }
    }
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

/* weight = factor where a source's key is in [low, high), times scale where that is given, else 0;
 * term = weight * (value - base). */
static void NAME(thin)(const double *restrict value, const double *restrict base, size_t count, uint32_t low,
                       uint32_t high, const float *restrict scale, double factor, double *restrict weight,
                       double *restrict term) {
    float kept[PART];
    uint32_t span = high - low;
    size_t j;
    for (j = 0; j < count; j++) weight[j] = factor;
    if (low || high < 0x80000000u) {
        for (j = 0; j < count; j++) kept[j] = (float)value[j] - (float)base[j];
        for (j = 0; j < count; j++) kept[j] = (as_bits(kept[j]) & 0x7fffffffu) - low < span ? 1.0f : 0.0f;
        for (j = 0; j < count; j++) weight[j] *= (double)kept[j];
    }
    if (scale)
        for (j = 0; j < count; j++) weight[j] *= (double)scale[j];
    for (j = 0; j < count; j++) term[j] = weight[j] != 0 ? (value[j] - base[j]) * weight[j] : 0;
}

/* Sums over the sources that take part: `positive` of these numbers decides. */
typedef struct { double sum[PART], share[PART], whole[PART], weight[PART], least[PART], most[PART]; } NAME(parts);

static void NAME(take_part)(const double *restrict positive, const double *restrict value,
                            const double *restrict term, const double *restrict weight, double gain,
                            double share, size_t count, NAME(parts) *restrict to) {
    double size = share < 0 ? -share : share;
    for (size_t j = 0; j < count; j++) {
        to->sum[j] += positive[j] > 0 ? term[j] * gain : 0;
        to->share[j] += positive[j] > 0 ? share : 0;
        to->whole[j] += positive[j] > 0 ? size : 0;
        to->weight[j] += positive[j] > 0 ? weight[j] * gain : 0;
    }
    for (size_t j = 0; j < count; j++) {
        double low = positive[j] > 0 ? value[j] : HUGE_VAL, high = positive[j] > 0 ? value[j] : -HUGE_VAL;
        to->least[j] = low < to->least[j] ? low : to->least[j];
        to->most[j] = high > to->most[j] ? high : to->most[j];
    }
}

/* Terms are factor * scale * (source - base) where the key is in [low, high), else 0. Those not 0 take part;
 * elect: those of the sign that their sum has (zero and rounding noise count as plus).
 * out = base + lambda * sum of gain * term over those that take part; normalize: over the sum of their shares.
 * Where their sources are all equal and their coefficients sum to 1, that source. Nonzero: out of memory. */
static int NAME(elected_sum)(int sources, const char *const *source, const int *type, const char *base,
                             int base_type, const uint32_t *low, const uint32_t *high,
                             const float *const *scale, const double *factor, const double *gain,
                             const double *share, int elect, int normalize, double lambda, size_t count,
                             float *out) {
    size_t n = (size_t)sources * PART;
    double *value = malloc(3 * n * sizeof(double)), *term = value + n, *weight = term + n;
    double b[PART], sum[PART], size[PART], positive[PART], noise = 0x1p-51 * sources;
    NAME(parts) to;
    if (!value) return 1;
    for (size_t start = 0; start < count; start += PART) {
        size_t tile = count - start < PART ? count - start : PART, j;
        memset(&to, 0, sizeof to);
        for (j = 0; j < tile; j++) sum[j] = size[j] = 0, to.least[j] = HUGE_VAL, to.most[j] = -HUGE_VAL;
        NAME(scale)(base, base_type, 1.0, start, tile, b);
        for (int i = 0; i < sources; i++) {
            double *x = value + (size_t)i * PART, *v = term + (size_t)i * PART, *w = weight + (size_t)i * PART;
            NAME(scale)(source[i], type[i], 1.0, start, tile, x);
            NAME(thin)(x, b, tile, low[i], high[i], scale[i] ? scale[i] + start : 0, factor[i], w, v);
            for (j = 0; j < tile; j++) {
                sum[j] += v[j];
                size[j] += v[j] < 0 ? -v[j] : v[j];
            }
        }
        for (j = 0; j < tile; j++) sum[j] = sum[j] >= -noise * size[j] ? 1.0 : -1.0;
        for (int i = 0; i < sources; i++) {
            const double *x = value + (size_t)i * PART, *v = term + (size_t)i * PART, *w = weight + (size_t)i * PART;
            if (elect) for (j = 0; j < tile; j++) positive[j] = v[j] * sum[j];
            else for (j = 0; j < tile; j++) positive[j] = w[j] < 0 ? -w[j] : w[j];
            NAME(take_part)(positive, x, v, w, gain[i], share[i], tile, &to);
        }
        for (j = 0; j < tile; j++) {
            double absolute = to.share[j] < 0 ? -to.share[j] : to.share[j];
            double q = lambda / (normalize && absolute > 1e-12 * to.whole[j] ? to.share[j] : 1.0);
            double gap = to.weight[j] * q - 1.0, mixed = b[j] + to.sum[j] * q;
            gap = gap < 0 ? -gap : gap;
            mixed = to.least[j] == to.most[j] && gap <= 1e-13 ? to.least[j] : mixed;
            out[start + j] = (float)mixed;
        }
    }
    free(value);
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
    if (!pairs) return 1;
    for (size_t row = 0; row < rows; row++, out += columns) {
        for (size_t start = 0; start < columns; start += TILE) {
            size_t tile = columns - start < TILE ? columns - start : TILE;
            NAME(keys)(source, type, base, base_type, row * columns + start, tile, key + start);
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
