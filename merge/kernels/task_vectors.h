/* Kernels on task vectors (a source minus the base), straight from storage bytes; included by body.h.
 * A difference's key is the bit pattern of its magnitude in binary32: it sorts as the magnitude does. */

#define PART 256
#define TALLY_BITS 10
#define TALLIES (1 << TALLY_BITS)

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
        for (j = 0; j < count; j++) out[j] = as_bits(x[j] - base[j]) & 0x7fffffffu;
    else
        for (j = 0; j < count; j++) out[j] = as_bits(x[j]) & 0x7fffffffu;
}

static void NAME(all_keys)(const char *source, int type, const char *base, int base_type, size_t count, uint32_t *out) {
    float b[TILE];
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE;
        if (base) NAME(load)(base, base_type, start, tile, b);
        NAME(keys)(source, type, base ? b : 0, start, tile, out + start);
    }
}

static uint32_t NAME(count_inside)(const uint32_t *key, size_t count, uint32_t first, uint32_t span) {
    uint32_t inside = 0;
    for (size_t j = 0; j < count; j++) inside += key[j] - first < span;
    return inside;
}

/* Puts the distances from `first` of the keys inside a window one after the other; there is room for count + 16. Returns
 * how many they are. */
static uint32_t NAME(offsets)(const uint32_t *key, size_t count, uint32_t first, uint32_t span, uint32_t *out) {
    uint32_t found = 0;
    size_t j = 0;
#ifdef COMPRESS
    for (; j + 16 <= count; j += 16) {
        __m512i offset = _mm512_sub_epi32(_mm512_loadu_si512(key + j), _mm512_set1_epi32((int)first));
        __mmask16 inside = _mm512_cmplt_epu32_mask(offset, _mm512_set1_epi32((int)span));
        _mm512_storeu_si512(out + found, _mm512_maskz_compress_epi32(inside, offset));
        found += (uint32_t)__builtin_popcount(inside);
    }
#endif
    for (; j < count; j++) {
        out[found] = key[j] - first;
        found += out[found] < span;
    }
    return found;
}

#define HIGH_SHIFT 19
#define HIGH_BINS 4096
/* Counts all keys by their high 12 bits, in four tables, so that equal neighbours need not wait for each other. */
static int NAME(count_all)(const char *source, int type, const char *base, int base_type, size_t count, int64_t *bin) {
    uint32_t key[TILE], (*table)[HIGH_BINS] = calloc(4, sizeof *table);
    float b[TILE];
    if (!table) return 1;
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE, j = 0;
        if (base) NAME(load)(base, base_type, start, tile, b);
        NAME(keys)(source, type, base ? b : 0, start, tile, key);
        for (; j + 4 <= tile; j += 4)
            for (int k = 0; k < 4; k++) table[k][key[j + k] >> HIGH_SHIFT]++;
        for (; j < tile; j++) table[0][key[j] >> HIGH_SHIFT]++;
    }
    for (int k = 0; k < 4; k++)
        for (int c = 0; c < HIGH_BINS; c++) bin[c] += table[k][c];
    free(table);
    return 0;
}

/* Adds to out[source][window][bin] the number of keys k with (k - first[source][window]) >> shift == bin.
 * Nonzero: out of memory. */
static int NAME(count_keys)(int sources, const char *const *source, const int *type, const char *base,
                            int base_type, size_t count, int windows, const uint32_t *first, int shift,
                            uint32_t bins, int64_t *out) {
    uint32_t key[TILE], offset[TILE + 16], span = bins << shift;
    float b[TILE];
    int failed = 0;
    if (shift == HIGH_SHIFT && bins == HIGH_BINS && windows == 1) {
        for (int i = 0; i < sources; i++)
            failed |= NAME(count_all)(source[i], type[i], base, base_type, count, out + (size_t)i * bins);
        return failed;
    }
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE;
        if (base) NAME(load)(base, base_type, start, tile, b);
        for (int i = 0; i < sources; i++) {
            NAME(keys)(source[i], type[i], base ? b : 0, start, tile, key);
            for (int w = i * windows; w < (i + 1) * windows; w++) {
                int64_t *bin = out + (size_t)w * bins;
                if (bins == 1) *bin += NAME(count_inside)(key, tile, first[w], span);
                else {
                    uint32_t found = NAME(offsets)(key, tile, first[w], span, offset);
                    for (uint32_t j = 0; j < found; j++) bin[offset[j] >> shift]++;
                }
            }
        }
    }
    return 0;
}
#undef HIGH_SHIFT
#undef HIGH_BINS

/* Counts keys in a table with a place for some of them; lists those whose place is taken. Returns how many. */
static size_t NAME(tally)(const uint32_t *offset, uint32_t count, uint32_t first, uint32_t (*table)[2], uint32_t *list) {
    size_t listed = 0;
    for (uint32_t j = 0; j < count; j++) {
        uint32_t key = offset[j] + first, *place = table[(key * 0x9e3779b1u) >> (32 - TALLY_BITS)];
        if (!place[1]) place[0] = key;
        if (place[0] == key) place[1]++;
        else list[listed++] = key;
    }
    return listed;
}

/* A window of keys, and how many keys of a tile are beyond it, its first, its last, and between these. */
typedef struct { uint32_t first, last, beyond, ahead, behind, between; } NAME(window);

static void NAME(look)(const uint32_t *restrict key, size_t count, NAME(window) *w) {
    uint32_t first = w->first, last = w->last, span = last > first ? last - first - 1 : 0;
    uint32_t beyond = 0, ahead = 0, behind = 0, between = 0;
    size_t j;
    if (first == last)
        for (j = 0; j < count; j++) beyond += key[j] > last, ahead += key[j] == first;
    else for (j = 0; j < count; j++) {
        beyond += key[j] > last;
        ahead += key[j] == first;
        behind += key[j] == last;
        between += key[j] - first - 1 < span;
    }
    w->beyond = beyond, w->ahead = ahead, w->behind = behind, w->between = between;
}

/* Counts each source's keys from `least` on (number[0], one a source), and for each of its windows, keys in
 * [first, stop), those from `stop` on (number[1]) and those inside (number[2]). Of those inside it writes to
 * key[window] and times[window] which there are and how many of each, the same key several times perhaps, and
 * how many entries that makes (number[3]). Brackets end at keys that are common: the first and the last are counted
 * apart. There is room for count + TALLIES + 2 in each. Nonzero: out of memory. */
static int NAME(gather_keys)(int sources, const char *const *source, const int *type, const char *base,
                             int base_type, size_t count, int windows, const uint32_t *first,
                             const uint32_t *stop, uint32_t least, uint32_t *const *list, uint32_t *const *times,
                             int64_t *const *number) {
    uint32_t key[TILE], offset[TILE + 16], (*table)[TALLIES][2] = calloc((size_t)sources * windows, sizeof *table);
    uint32_t(*edge)[2] = calloc((size_t)sources * windows, sizeof *edge);
    float b[TILE];
    for (size_t start = 0; table && edge && start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE;
        if (base) NAME(load)(base, base_type, start, tile, b);
        for (int i = 0; i < sources; i++) {
            NAME(keys)(source[i], type[i], base ? b : 0, start, tile, key);
            number[0][i] += NAME(count_inside)(key, tile, least, 0x80000000u - least);
            for (int w = i * windows; w < (i + 1) * windows; w++) {
                NAME(window) seen = {first[w], stop[w] - 1, 0, 0, 0, 0};
                if (stop[w] == first[w]) { /* nothing is inside, not even at 0 */
                    number[1][w] += NAME(count_inside)(key, tile, stop[w], 0x80000000u - stop[w]);
                    continue;
                }
                NAME(look)(key, tile, &seen);
                number[1][w] += seen.beyond, number[2][w] += seen.ahead + seen.behind + seen.between;
                edge[w][0] += seen.ahead, edge[w][1] += seen.behind;
                if (seen.between) {
                    uint32_t found = NAME(offsets)(key, tile, first[w] + 1, stop[w] - first[w] - 2, offset);
                    number[3][w] += NAME(tally)(offset, found, first[w] + 1, table[w], list[w] + number[3][w]);
                }
            }
        }
    }
    for (int w = 0; table && edge && w < sources * windows; w++) {
        for (int64_t j = 0; j < number[3][w]; j++) times[w][j] = 1;
        for (int j = 0; j < TALLIES; j++)
            if (table[w][j][1]) {
                list[w][number[3][w]] = table[w][j][0];
                times[w][number[3][w]++] = table[w][j][1];
            }
        for (int j = 0; j < 2; j++)
            if (edge[w][j]) {
                list[w][number[3][w]] = j ? stop[w] - 1 : first[w];
                times[w][number[3][w]++] = edge[w][j];
            }
    }
    int failed = !table || !edge;
    free(table), free(edge);
    return failed;
}

/* Counts, for each source, the elements whose key is above `low`: in out[0][source] those where another source's
 * is too, in out[1][source] those where it is alone. Nonzero: out of memory. */
static int NAME(count_shared)(int sources, const char *const *source, const int *type, const char *base,
                              int base_type, size_t count, uint32_t low, int64_t *out) {
    uint32_t(*key)[TILE] = malloc((size_t)sources * sizeof *key), number[TILE];
    float b[TILE];
    if (!key) return 1;
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE, j;
        NAME(load)(base, base_type, start, tile, b);
        for (j = 0; j < tile; j++) number[j] = 0;
        for (int i = 0; i < sources; i++) {
            NAME(keys)(source[i], type[i], b, start, tile, key[i]);
            for (j = 0; j < tile; j++) number[j] += key[i][j] > low;
        }
        for (int i = 0; i < sources; i++) {
            uint32_t every = 0, alone = 0;
            for (j = 0; j < tile; j++) every += key[i][j] > low, alone += (key[i][j] > low) & (number[j] == 1);
            out[i] += every - alone, out[sources + i] += alone;
        }
    }
    free(key);
    return 0;
}

#define FEW 4
/* variance_tile with all sources at once. Called with a constant, so that all sums stay in registers. */
static inline __attribute__((always_inline)) void NAME(variance_of_few)(
    const int sources, float (*restrict value)[PART], size_t count, float *restrict out) {
    double each = 1.0 / sources;
    for (size_t j = 0; j < count; j++) {
        double sum = 0, square = 0;
        for (int i = 1; i < sources; i++) {
            double d = (double)value[i][j] - (double)value[0][j];
            sum += d, square += d * d;
        }
        out[j] = (float)((square - sum * sum * each) * each);
    }
}

/* Population variance over the sources at each element of a tile: with differences d from the first source, the mean of
 * their squares less the square of their mean. Equal sources have variance 0, and little cancels, since one d is 0. */
static void NAME(variance_tile)(int sources, const char *const *source, const int *type, size_t start, size_t tile,
                                float *restrict out) {
    double sum[PART], square[PART], each = 1.0 / sources;
    float value[FEW][PART], *first = value[0], *other = value[1];
    size_t j;
    if (sources > 1 && sources <= FEW) {
        for (int i = 0; i < sources; i++) NAME(load)(source[i], type[i], start, tile, value[i]);
        switch (sources) {
        case 2: NAME(variance_of_few)(2, value, tile, out); return;
        case 3: NAME(variance_of_few)(3, value, tile, out); return;
        default: NAME(variance_of_few)(4, value, tile, out); return;
        }
    }
    NAME(load)(source[0], type[0], start, tile, first);
    for (j = 0; j < tile; j++) sum[j] = 0, square[j] = 0;
    for (int i = 1; i < sources; i++) {
        NAME(load)(source[i], type[i], start, tile, other);
        for (j = 0; j < tile; j++) {
            double d = (double)other[j] - (double)first[j];
            sum[j] += d, square[j] += d * d;
        }
    }
    for (j = 0; j < tile; j++) out[j] = (float)((square[j] - sum[j] * sum[j] * each) * each);
}

static void NAME(variance)(int sources, const char *const *source, const int *type, size_t count, float *out) {
    for (size_t start = 0; start < count; start += PART)
        NAME(variance_tile)(sources, source, type, start, count - start < PART ? count - start : PART, out + start);
}
#undef FEW

/* Chris Wellons' triple32 bijection of 32-bit words (public domain), with key words added between its rounds. */
static inline uint32_t NAME(scramble)(uint32_t x, const uint32_t *key) {
    x += key[0];
    x = (x ^ x >> 17) * 0xed5ad4bbu + key[1];
    x = (x ^ x >> 11) * 0xac4c1b51u + key[2];
    x = (x ^ x >> 15) * 0x31848babu;
    return x ^ x >> 14;
}

#include "ranks.h"

/* Brings values within `move` of the base's. */
static void NAME(restrain)(float *restrict value, const float *restrict base, double move, size_t count) {
    for (size_t j = 0; j < count; j++) {
        double own = value[j], least = (double)base[j] - move, most = (double)base[j] + move;
        own = own < least ? least : own;
        value[j] = (float)(own > most ? most : own);
    }
}

/* Sets the first so many elements that have a key, and counts them off. */
static void NAME(set_ties)(const float *restrict value, const float *restrict base, uint32_t key, uint64_t *many, float to,
                           size_t count, float *restrict out) {
    uint32_t ties = 0;
    size_t j;
    for (j = 0; j < count; j++) ties += (as_bits(value[j] - base[j]) & 0x7fffffffu) == key;
    if (ties <= *many) {
        for (j = 0; j < count; j++) {
            float own = out[j];
            out[j] = (as_bits(value[j] - base[j]) & 0x7fffffffu) == key ? to : own;
        }
        *many -= ties;
        return;
    }
    for (j = 0; *many; j++)
        if ((as_bits(value[j] - base[j]) & 0x7fffffffu) == key) out[j] = to, --*many;
}

/* What is left of a tile of a source (or of what else has the keys that decide it), as factors, with draws by rank where they are given; returns the largest size
 * among them. Another draw is the scrambled index, read as signed. */
static float NAME(thin)(const float *restrict value, const float *restrict base, size_t start, size_t count,
                       thinning *by, const float *restrict drawn, float *restrict out) {
    uint32_t low = by->low, span = by->high - low;
    size_t j;
    if (low || by->high < 0x80000000u)
        for (j = 0; j < count; j++) {
            float difference = value[j] - base[j];
            out[j] = (as_bits(difference) & 0x7fffffffu) - low < span ? 1.0f : 0.0f;
        }
    else
        for (j = 0; j < count; j++) out[j] = 1.0f;
    if (by->keep) NAME(set_ties)(value, base, low - 1, &by->keep, 1.0f, count, out);
    if (by->drop) NAME(set_ties)(value, base, by->high - 1, &by->drop, 0.0f, count, out);
    if (by->draws) {
        uint32_t first = (uint32_t)start;
        for (j = 0; j < count; j++)
            out[j] = (int32_t)NAME(scramble)(first + (uint32_t)j, by->key) < by->limit ? out[j] : 0.0f;
    }
    if (!drawn) return 1.0f;
    uint32_t largest = 0;
    for (j = 0; j < count; j++) {
        out[j] *= drawn[j];
        largest = as_bits(out[j]) > largest ? as_bits(out[j]) : largest;
    }
    return as_float(largest);
}

/* Draws by rank, of some sources, for a group of rows: all that a tile needs at a time, and not much more. */
typedef struct { size_t group; void *room; float *draw; } NAME(ranked);

/* Nonzero: out of memory. */
static int NAME(start_ranked)(int sources, const thinning *by, size_t count, NAME(ranked) *ranked) {
    size_t columns = 0;
    for (int i = 0; i < sources; i++) columns = by[i].columns ? by[i].columns : columns;
    *ranked = (NAME(ranked)){count, 0, 0};
    if (!columns) return 0;
    ranked->group = columns < PART ? PART / columns * columns : columns;
    ranked->room = NAME(room)(columns);
    ranked->draw = malloc((size_t)sources * ranked->group * sizeof *ranked->draw);
    return !ranked->room || !ranked->draw;
}

static void NAME(end_ranked)(NAME(ranked) *ranked) { free(ranked->room), free(ranked->draw); }

static void NAME(draw_group)(int sources, const char *const *source, const int *type, const char *base, int base_type,
                             size_t start, size_t count, const thinning *by, const NAME(ranked) *ranked) {
    for (int i = 0; i < sources; i++)
        if (by[i].columns)
            NAME(draw_by_rank)(source[i], type[i], base, base_type, start, count, &by[i], ranked->room,
                               ranked->draw + (size_t)i * ranked->group);
}

/* thin of the tile at `start` of the i-th source, with what decides it: the variances over all of them, `spread`, or its
 * differences from the base, and the draws of the group that begins at `from`. */
static float NAME(thin_one)(const float *value, const float *base, const float *spread, size_t start, size_t count,
                            int i, thinning *by, const NAME(ranked) *ranked, size_t from, float *out) {
    static const float nothing[PART] = {0};
    const float *drawn = by->columns ? ranked->draw + ((size_t)i * ranked->group + start - from) : 0;
    return NAME(thin)(by->varied ? spread : value, by->varied ? nothing : base, start, count, by, drawn, out);
}

#define SUMS 32
/* Adds up sizes of value - base, or squares, times what is left where that is given. What is not finite counts as 0. */
static inline __attribute__((always_inline)) void NAME(add_sizes)(
    const float *restrict value, const float *restrict base, const float *restrict left, const int squared, size_t count,
    double *restrict sum) {
    for (size_t j = 0; j < count; j += SUMS)
        for (size_t k = 0; k < SUMS; k++) {
            double d = (double)value[j + k] - (double)base[j + k];
            d = d - d == 0 ? d : 0;
            d = squared ? d * d : fabs(d);
            sum[k] += left ? d * (double)left[j + k] : d;
        }
}

/* out[0][i] = the sum of |source i - base|, out[1][i] = the same of what is left of it; or (squared) of squares, and only
 * of what is left. Nonzero: out of memory. */
static int NAME(norms)(int sources, const char *const *source, const int *type, const char *base, int base_type,
                        const thinning *thinned, int squared, size_t count, double *out) {
    float value[PART], left[PART], b[PART], spread[PART];
    thinning *by = malloc((size_t)sources * (sizeof *by + 2 * SUMS * sizeof(double)));
    double(*sum)[2][SUMS] = (double(*)[2][SUMS])(by + sources);
    NAME(ranked) ranked;
    int failed = NAME(start_ranked)(sources, thinned, count, &ranked) || !by, varied = 0;
    if (!failed) memcpy(by, thinned, (size_t)sources * sizeof *by), memset(sum, 0, (size_t)sources * sizeof *sum);
    for (int i = 0; i < sources; i++) varied |= thinned[i].varied, out[i] = out[sources + i] = 0;
    for (size_t start = 0, tile, from = 0, stop = 0, j; !failed && start < count; start += tile) {
        if (start == stop) {
            from = start, stop = count - start < ranked.group ? count : start + ranked.group;
            NAME(draw_group)(sources, source, type, base, base_type, from, stop - from, by, &ranked);
        }
        tile = stop - start < PART ? stop - start : PART;
        NAME(load)(base, base_type, start, tile, b);
        if (varied) NAME(variance_tile)(sources, source, type, start, tile, spread);
        for (int i = 0; i < sources; i++) {
            NAME(load)(source[i], type[i], start, tile, value);
            if (by[i].move < HUGE_VAL) NAME(restrain)(value, b, by[i].move, tile);
            NAME(thin_one)(value, b, spread, start, tile, i, &by[i], &ranked, from, left);
            for (j = tile; j % SUMS; j++) value[j] = b[j] = left[j] = 0;
            if (squared) NAME(add_sizes)(value, b, left, 1, tile, sum[i][1]);
            else NAME(add_sizes)(value, b, left, 0, tile, sum[i][1]), NAME(add_sizes)(value, b, 0, 0, tile, sum[i][0]);
        }
    }
    for (int i = 0; !failed && i < sources; i++)
        for (int k = 0; k < SUMS; k++) out[i] += sum[i][0][k], out[sources + i] += sum[i][1][k];
    NAME(end_ranked)(&ranked), free(by);
    return failed;
}
#undef SUMS

/* Which terms take part in an element's sum: all that are not thinned out (SUM, ALONE); those of the sign that
 * the sum of all has, where zero and rounding noise count as plus (ELECT); those equal to the term of largest
 * magnitude, the positive one of two (LARGEST); all where enough of them hold their own against the sum of the
 * others (CONSENSUS). `extra` multiplies the terms in ELECT, those alone in their element in ALONE; in CONSENSUS
 * it says how large a term must be against the others. */
typedef struct {
    const double *factor, *extra, *share;
    double lambda;
    int kind, normalize, enough, plain;
    double quotient[16]; /* lambda / (the sum of the shares in each set of up to 4 sources, or 1) */
} NAME(rule);

/* A tile's sums over the sources. */
typedef struct {
    double all[PART], size[PART], high[PART], low[PART], number[PART], chosen[PART];
    double sum[PART], total[PART], part[PART], whole[PART], least[PART], most[PART];
} NAME(sums);

/* What the rule must know of all terms: adds up one source's. */
static void NAME(survey_terms)(int kind, const double *restrict term, const double *restrict weight, size_t count,
                               NAME(sums) *restrict s) {
    size_t j;
    if (kind == ELECT || kind == CONSENSUS)
        for (j = 0; j < count; j++) s->all[j] += term[j], s->size[j] += term[j] < 0 ? -term[j] : term[j];
    if (kind == LARGEST)
        for (j = 0; j < count; j++) {
            s->high[j] = term[j] > s->high[j] ? term[j] : s->high[j];
            s->low[j] = term[j] < s->low[j] ? term[j] : s->low[j];
        }
    if (kind == ALONE)
        for (j = 0; j < count; j++) s->number[j] += weight[j] != 0 ? 1.0 : 0;
}

/* What the terms must be compared with to take part. */
static void NAME(choose)(int sources, const NAME(rule) *rule, double (*restrict term)[PART], size_t count,
                         NAME(sums) *restrict s) {
    double noise = -0x1p-51 * sources;
    size_t j;
    if (rule->kind == ELECT)
        for (j = 0; j < count; j++) s->chosen[j] = s->all[j] >= noise * s->size[j] ? 1.0 : -1.0;
    if (rule->kind == LARGEST)
        for (j = 0; j < count; j++) s->chosen[j] = s->high[j] >= -s->low[j] ? s->high[j] : s->low[j];
    if (rule->kind != CONSENSUS) return;
    for (j = 0; j < count; j++) s->number[j] = 0;
    for (int i = 0; i < sources; i++) {
        double ratio = rule->extra[i];
        for (j = 0; j < count; j++) {
            double rest = s->all[j] - term[i][j], own = term[i][j] < 0 ? -term[i][j] : term[i][j];
            s->number[j] += own >= ((rest < 0 ? -rest : rest) + noise * s->size[j]) * ratio ? 1.0 : 0;
        }
    }
    for (j = 0; j < count; j++) s->chosen[j] = s->number[j] >= (double)rule->enough ? 1.0 : 0;
}

/* Adds one source's terms where they take part (where `takes` is 1, not 0). */
static void NAME(add_terms)(const NAME(rule) *rule, int i, const float *restrict value, const double *restrict term,
                            const double *restrict weight, size_t count, NAME(sums) *restrict s) {
    double extra = rule->extra[i], share = rule->share[i], whole = share < 0 ? -share : share;
    double takes[PART], gain[PART];
    size_t j;
    if (rule->kind == ELECT)
        for (j = 0; j < count; j++) takes[j] = term[j] * s->chosen[j] > 0 ? 1.0 : 0;
    else
        for (j = 0; j < count; j++) takes[j] = weight[j] != 0 ? 1.0 : 0;
    if (rule->kind == LARGEST)
        for (j = 0; j < count; j++) takes[j] = term[j] == s->chosen[j] ? takes[j] : 0;
    if (rule->kind == CONSENSUS)
        for (j = 0; j < count; j++) takes[j] *= s->chosen[j];
    for (j = 0; j < count; j++) gain[j] = rule->kind == ELECT ? extra * takes[j] : takes[j];
    if (rule->kind == ALONE)
        for (j = 0; j < count; j++) gain[j] *= s->number[j] == 1.0 ? extra : 1.0;
    for (j = 0; j < count; j++) {
        s->sum[j] += term[j] * gain[j];
        s->total[j] += weight[j] * gain[j];
    }
    for (j = 0; j < count; j++) {
        double y = value[j], under = takes[j] > 0 ? y : HUGE_VAL, over = takes[j] > 0 ? y : -HUGE_VAL;
        s->least[j] = under < s->least[j] ? under : s->least[j];
        s->most[j] = over > s->most[j] ? over : s->most[j];
    }
    if (rule->normalize)
        for (j = 0; j < count; j++) {
            s->part[j] += takes[j] * share;
            s->whole[j] += takes[j] * whole;
        }
}

static void NAME(mix_tile)(int sources, float (*restrict value)[PART], double (*restrict term)[PART],
                           double (*restrict weight)[PART], const float *restrict base, size_t count,
                           const NAME(rule) *rule, NAME(sums) *restrict s, float *restrict out) {
    double lambda = rule->lambda;
    size_t j;
    memset(s, 0, sizeof *s);
    for (j = 0; j < count; j++) s->least[j] = HUGE_VAL, s->most[j] = -HUGE_VAL;
    for (int i = 0; i < sources; i++) NAME(survey_terms)(rule->kind, term[i], weight[i], count, s);
    NAME(choose)(sources, rule, term, count, s);
    for (int i = 0; i < sources; i++) NAME(add_terms)(rule, i, value[i], term[i], weight[i], count, s);
    for (j = 0; j < count; j++) {
        double absolute = s->part[j] < 0 ? -s->part[j] : s->part[j];
        s->part[j] = rule->normalize && absolute > 1e-12 * s->whole[j] ? s->part[j] : 1.0;
    }
    for (j = 0; j < count; j++) {
        double q = lambda / s->part[j], gap = s->total[j] * q - 1.0, own = base[j];
        double mixed = s->sum[j] == 0 ? own : own + s->sum[j] * q;
        gap = gap < 0 ? -gap : gap;
        int one = (gap <= 1e-13) & (s->least[j] == s->most[j]);
        out[j] = (float)(one ? s->least[j] : mixed);
    }
}

#ifdef FUSED
/* out = base + sums * the quotient of an element's set of sources: there are few sets. */
static inline __attribute__((always_inline)) void NAME(divide)(
    const int sources, const double *quotient, const double *restrict sums, const int64_t *restrict which,
    const float *restrict base, size_t count, float *restrict out) {
    lanes low, high, sum, found, own;
    floats narrow;
    indices set;
    memcpy(&low, quotient, sizeof low), memcpy(&high, quotient + 8, sizeof high);
    for (size_t j = 0; j < count; j += 8) {
        memcpy(&sum, sums + j, sizeof sum), memcpy(&set, which + j, sizeof set);
        found = sources < 4 ? __builtin_shuffle(low, set) : __builtin_shuffle(low, high, set);
        memcpy(&narrow, base + j, sizeof narrow), own = __builtin_convertvector(narrow, lanes);
        floats mixed = __builtin_convertvector(own + sum * found, floats);
        memcpy(out + j, &mixed, sizeof mixed);
    }
}

#ifdef COMPRESS
#define HAS_ELECTED 1
/* What fused does for ELECT, in fewer instructions than compilers make of it. */
static inline __attribute__((always_inline)) void NAME(elected)(
    const int sources, const int normalize, const int plain, float (*restrict value)[PART],
    float (*restrict left)[PART], const float *restrict base, size_t count, const NAME(rule) *rule,
    float *restrict out) {
    __m512d zero = _mm512_setzero_pd(), minus = _mm512_set1_pd(-0.0), lambda = _mm512_set1_pd(rule->lambda);
    __m512d noise = _mm512_set1_pd(-0x1p-51 * sources), factor[4], extra[4], low, high;
    low = _mm512_loadu_pd(rule->quotient), high = _mm512_loadu_pd(rule->quotient + 8);
    for (int i = 0; i < sources; i++) factor[i] = _mm512_set1_pd(rule->factor[i]), extra[i] = _mm512_set1_pd(rule->extra[i]);
    for (size_t j = 0; j < count; j += 8) {
        __m512d b = _mm512_cvtps_pd(_mm256_loadu_ps(base + j)), all = zero, sizes = zero, sum = zero, term[4];
        __m512i set = _mm512_setzero_si512();
        for (int i = 0; i < sources; i++) {
            __m512d own = _mm512_cvtps_pd(_mm256_loadu_ps(value[i] + j)), weight = factor[i];
            if (!plain) weight = _mm512_mul_pd(weight, _mm512_cvtps_pd(_mm256_loadu_ps(left[i] + j)));
            term[i] = _mm512_mul_pd(_mm512_sub_pd(own, b), weight);
            all = i ? _mm512_add_pd(all, term[i]) : term[i];
            sizes = i ? _mm512_add_pd(sizes, _mm512_abs_pd(term[i])) : _mm512_abs_pd(term[i]);
        }
        __mmask8 up = _mm512_cmp_pd_mask(all, _mm512_mul_pd(noise, sizes), _CMP_GE_OQ);
        __m512d turn = _mm512_mask_mov_pd(minus, up, zero);
        for (int i = 0; i < sources; i++) {
            __mmask8 part = _mm512_cmp_pd_mask(_mm512_xor_pd(term[i], turn), zero, _CMP_GT_OQ);
            sum = _mm512_mask_add_pd(sum, part, sum, _mm512_mul_pd(term[i], extra[i]));
            if (normalize) set = _mm512_mask_or_epi64(set, part, set, _mm512_set1_epi64(1 << i));
        }
        __m512d scale = !normalize ? lambda : sources < 4 ? _mm512_permutexvar_pd(set, low)
                                                          : _mm512_permutex2var_pd(low, set, high);
        _mm256_storeu_ps(out + j, _mm512_cvtpd_ps(_mm512_add_pd(b, _mm512_mul_pd(sum, scale))));
    }
}
#else
#define HAS_ELECTED 0
#define elected_avx2(...) ((void)0)
#endif

/* mix_tile for the commonest rules and numbers of sources, all in registers. Called with constants, so that the
 * loops over sources are unrolled and that over elements is vectorised. Where it is plain, what is not left of a value
 * is the base's already, and `left` is not looked at. It leaves out what only matters where a sum nearly cancels the
 * base; returns whether one did, and mix_tile must do the tile. */
static inline __attribute__((always_inline)) int NAME(fused)(
    const int sources, const int kind, const int normalize, const int plain, float (*restrict value)[PART],
    float (*restrict left)[PART], const float *restrict base, size_t count, const NAME(rule) *rule,
    float *restrict out) {
    double lambda = rule->lambda, noise = -0x1p-51 * sources, enough = rule->enough;
    double factor[4], extra[4], sums[PART];
    int64_t which[PART];
    uint32_t cancels = 0;
    for (int i = 0; i < sources; i++) factor[i] = rule->factor[i], extra[i] = rule->extra[i];
    if (HAS_ELECTED && kind == ELECT) NAME(elected)(sources, normalize, plain, value, left, base, count, rule, out);
    else for (size_t j = 0; j < count; j++) {
        double b = base[j], all = 0, sizes = 0, sum = 0, number = 0, high = 0, low = 0, sign = 1;
        double term[4], weight[4];
        int64_t set = 0;
        int part[4];
        for (int i = 0; i < sources; i++) {
            weight[i] = plain ? factor[i] : factor[i] * (double)left[i][j];
            term[i] = ((double)value[i][j] - b) * weight[i];
            if (kind == ELECT || kind == CONSENSUS) all += term[i];
            if (kind == ELECT || kind == CONSENSUS) sizes += fabs(term[i]);
            if (kind == LARGEST) high = term[i] > high ? term[i] : high, low = term[i] < low ? term[i] : low;
            if (kind == ALONE) number += weight[i] != 0 ? 1.0 : 0;
        }
        if (kind == ELECT) sign = all >= noise * sizes ? 1.0 : -1.0;
        if (kind == LARGEST) high = high >= -low ? high : low;
        for (int i = 0; kind == CONSENSUS && i < sources; i++) {
            number += fabs(term[i]) >= (fabs(all - term[i]) + noise * sizes) * extra[i] ? 1.0 : 0;
        }
        for (int i = 0; i < sources; i++) {
            double gained = term[i];
            part[i] = kind == ELECT ? gained * sign > 0 : plain || weight[i] != 0;
            if (kind == LARGEST) part[i] &= gained == high;
            if (kind == CONSENSUS) part[i] &= number >= enough;
            if (kind == ELECT) gained *= extra[i];
            if (kind == ALONE) gained *= number == 1.0 ? extra[i] : 1.0;
            sum += part[i] ? gained : 0;
            if (normalize) set += part[i] ? 1 << i : 0;
        }
        if (normalize) sums[j] = sum, which[j] = set;
        else out[j] = (float)(b + sum * lambda);
    }
    if (normalize && !(HAS_ELECTED && kind == ELECT)) NAME(divide)(sources, rule->quotient, sums, which, base, count, out);
    for (size_t j = 0; j < count; j++) cancels |= !(fabsf(out[j]) > fabsf(base[j]) * 0x1p-12f);
    return cancels != 0;
}

#define FUSE(sources, kind, normalize, plain) \
    case 32 * sources + 4 * kind + 2 * normalize + plain: \
        return !NAME(fused)(sources, kind, normalize, plain, plain ? part : value, left, base, count, rule, out);
#define FUSE_EACH(kind, normalize, plain) \
    FUSE(2, kind, normalize, plain) FUSE(3, kind, normalize, plain) FUSE(4, kind, normalize, plain)
/* Returns 0 where it is not made for the rule, or for the tile. */
static int NAME(mix_fused)(int sources, float (*restrict value)[PART], float (*restrict left)[PART],
                           float (*restrict part)[PART], const float *restrict base, size_t count,
                           const NAME(rule) *rule, float *restrict out) {
    switch (32 * sources + 4 * rule->kind + 2 * (rule->normalize != 0) + rule->plain) {
        FUSE_EACH(SUM, 0, 0) FUSE_EACH(SUM, 1, 0) FUSE_EACH(ELECT, 0, 0) FUSE_EACH(ELECT, 1, 0) FUSE_EACH(ALONE, 1, 0)
        FUSE(1, SUM, 0, 1) FUSE_EACH(SUM, 0, 1) FUSE_EACH(ELECT, 0, 1) FUSE_EACH(ELECT, 1, 1) FUSE_EACH(LARGEST, 1, 1)
        FUSE_EACH(CONSENSUS, 0, 1)
    }
    return 0;
}
#undef FUSE
#undef FUSE_EACH
#undef HAS_ELECTED
#else
#define mix_fused_portable(...) 0
#endif

/* How large the coefficients of one element's terms can be together, at most; HUGE_VAL where shares may cancel.
 * Up to MODERATE, equal sources whose coefficients sum to 1 come out equal without more ado: with |mixed| above
 * |base| / 4096 the error of the sum is below 1e-9 of it, and so lost when it is rounded to binary32. */
#define MODERATE 256
static double NAME(reach)(int sources, const NAME(rule) *rule, const float *largest) {
    double reach = 0, least = HUGE_VAL;
    for (int i = 0; i < sources; i++) {
        double gain = rule->kind == ELECT || rule->kind == ALONE ? fabs(rule->extra[i]) : 1.0;
        reach += fabs(rule->factor[i]) * (gain > 1.0 || rule->kind == ELECT ? gain : 1.0) * (double)largest[i];
        if (rule->share[i] < 0) return rule->normalize ? HUGE_VAL : reach;
        if (rule->share[i] > 0 && rule->share[i] < least) least = rule->share[i];
    }
    return reach * fabs(rule->lambda) / (rule->normalize && least < HUGE_VAL ? least : 1.0);
}

#define WORDS 16
/* The largest sizes seen of numbers in every so-manieth place, as bits. */
static void NAME(note_sizes)(const float *x, size_t count, uint32_t *restrict most) {
    size_t j = 0, k;
    for (; j + WORDS <= count; j += WORDS)
        for (k = 0; k < WORDS; k++) {
            uint32_t size = as_bits(x[j + k]) & 0x7fffffffu;
            most[k] = size > most[k] ? size : most[k];
        }
    for (k = 0; j + k < count; k++) {
        uint32_t size = as_bits(x[j + k]) & 0x7fffffffu;
        most[k] = size > most[k] ? size : most[k];
    }
}

static void NAME(blend)(const float *restrict value, const float *restrict base, const float *restrict left, size_t count,
                        float *restrict out) {
    for (size_t j = 0; j < count; j++) {
        float own = value[j], other = base[j];
        out[j] = left[j] != 0 ? own : other;
    }
}

static int NAME(leaves_all)(const thinning *by) { return !by->low && by->high >= 0x80000000u && !by->keep && !by->drop && !by->draws && !by->columns; }

/* Whether a value that is set to the base's where it is not left is as good as a factor 0: where 0 is no part of a vote
 * or a sum, or all is left. */
static int NAME(is_plain)(int sources, const thinning *by, const NAME(rule) *rule) {
    int plain = 1;
    for (int i = 0; i < sources; i++) {
        int blends = rule->kind == ELECT || (rule->kind == SUM && !rule->normalize);
        plain &= !by[i].inverse && rule->factor[i] != 0 && (blends || NAME(leaves_all)(&by[i]));
    }
    return plain;
}

/* Terms are factor * (what thin leaves) * (source - base); the rule says which take part.
 * target = base + lambda * sum of those that take part; normalize: over the sum of their shares. Where their
 * sources are all equal and their coefficients sum to 1, that source. Bit 0: a source is not finite; bit 1: a
 * stored value is not; -1: out of memory. */
static int NAME(mix)(int sources, const char *const *source, const int *type, const char *base, int base_type,
                     const thinning *thinned, const double *factor, const double *extra, const double *share, int kind,
                     int normalize, int enough, double lambda, size_t count, char *target, int target_type) {
    size_t each = PART * (2 * sizeof(double) + 3 * sizeof(float)) + sizeof(thinning) + sizeof(float);
    double(*term)[PART] = malloc((size_t)sources * each), (*weight)[PART] = term + sources;
    float(*value)[PART] = (float(*)[PART])(weight + sources), (*left)[PART] = value + sources, (*part)[PART] = left + sources;
    thinning *by = (thinning *)(part + sources);
    float b[PART], out[PART], spread[PART], *largest = (float *)(by + sources);
    NAME(rule) rule = {factor, extra, share, lambda, kind, normalize, enough, 0, {0}};
    NAME(sums) sums;
    uint32_t most[WORDS] = {0}, bad = 0, overflows = 0;
    int varied = 0;
    NAME(ranked) ranked;
    if (NAME(start_ranked)(sources, thinned, count, &ranked) || !term) {
        NAME(end_ranked)(&ranked), free(term);
        return -1;
    }
    memcpy(by, thinned, (size_t)sources * sizeof *by);
    rule.plain = NAME(is_plain)(sources, by, &rule);
    for (int i = 0; i < sources; i++) varied |= by[i].varied, largest[i] = 1.0f;
    for (int k = 0; k < 16; k++) {
        double part = 0;
        for (int i = 0; i < sources && i < 4; i++) part += k >> i & 1 ? share[i] : 0;
        rule.quotient[k] = lambda / (part > 0 ? part : 1.0);
    }
    double reach = NAME(reach)(sources, &rule, largest);
    for (size_t start = 0, tile, from = 0, stop = 0; start < count; start += tile) {
        if (start == stop) {
            from = start, stop = count - start < ranked.group ? count : start + ranked.group;
            NAME(draw_group)(sources, source, type, base, base_type, from, stop - from, by, &ranked);
        }
        tile = stop - start < PART ? stop - start : PART;
        NAME(load)(base, base_type, start, tile, b);
        NAME(note_sizes)(b, tile, most);
        if (varied) NAME(variance_tile)(sources, source, type, start, tile, spread);
        for (int i = 0; i < sources; i++) {
            NAME(load)(source[i], type[i], start, tile, value[i]);
            NAME(note_sizes)(value[i], tile, most);
            if (by[i].move < HUGE_VAL) NAME(restrain)(value[i], b, by[i].move, tile);
            largest[i] = NAME(thin_one)(value[i], b, spread, start, tile, i, &by[i], &ranked, from, left[i]);
            if (rule.plain) NAME(blend)(value[i], b, left[i], tile, part[i]);
        }
        if (ranked.room) reach = NAME(reach)(sources, &rule, largest);
        if (!(reach <= MODERATE) ||
            !NAME(mix_fused)(sources, value, left, part, b, tile, &rule, out)) {
            for (int i = 0; i < sources; i++) {
                double own = factor[i];
                for (size_t j = 0; j < tile; j++) {
                    weight[i][j] = own * (double)left[i][j];
                    term[i][j] = ((double)value[i][j] - (double)b[j]) * weight[i][j];
                }
            }
            NAME(mix_tile)(sources, value, term, weight, b, tile, &rule, &sums, out);
        }
        overflows |= NAME(store_floats)(out, target_type, start, tile, target);
    }
    NAME(end_ranked)(&ranked), free(term);
    for (int k = 0; k < WORDS; k++) bad |= most[k] >= 0x7f800000u;
    return (int)(bad | overflows << 1);
}
#undef MODERATE

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
