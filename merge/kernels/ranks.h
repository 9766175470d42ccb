/* Ranks of differences from the base within rows, and draws that keep an element the more often, the higher it ranks.
 * Included by task_vectors.h, after the keys that are ranked. */

/* Mean rank, counted from 0, of elements that stand first to stop - 1 in order; half is 1/2 over the highest. */
static inline float NAME(fraction)(uint32_t first, uint32_t stop, double half) {
    return (float)((double)(first + stop - 1) * half);
}

static void NAME(rank_by_counting)(const uint32_t *key, size_t columns, double half, float *out) {
    for (size_t i = 0; i < columns; i++) {
        uint32_t below = 0, same = 0;
        for (size_t j = 0; j < columns; j++) below += key[j] < key[i], same += key[j] == key[i];
        out[i] = NAME(fraction)(below, below + same, half);
    }
}

/* Ranks of pairs of key (high word) and index (low word) in order of their keys, which stand at `at` in the row. */
static void NAME(give_ranks)(const uint64_t *pair, size_t at, size_t count, double half, float *out) {
    for (size_t start = 0, stop; start < count; start = stop) {
        for (stop = start + 1; stop < count && pair[stop] >> 32 == pair[start] >> 32;) stop++;
        float rank = NAME(fraction)((uint32_t)(at + start), (uint32_t)(at + stop), half);
        for (size_t j = start; j < stop; j++) out[(uint32_t)pair[j]] = rank;
    }
}

#define SIGNIFICANDS 128
#define BINADES 16
#define HALVES (SIGNIFICANDS * BINADES)
#define TABLES 4
#define APART 256
/* Counts of high halves of keys: of the same significand one after the other, so that binades are added up side by
 * side; in several tables, so that equal neighbours need not wait for each other. They are 0 between rows. */
typedef struct { uint16_t count[TABLES][HALVES]; } NAME(halves);

static inline uint32_t NAME(half_of)(uint32_t key, uint32_t low) {
    uint32_t high = key >> 16, bin = (high > low ? high : low) - low;
    return bin % SIGNIFICANDS * BINADES + bin / SIGNIFICANDS;
}

/* The places in the table of the keys that are not 0, one after the other, and where those keys stand that only their
 * low halves tell apart, or that are too small. There is room for 16 more than the keys of the first, and for APART + 16
 * of the second. Returns how many the first are, and nothing of use if the second are too many. */
static size_t NAME(find_halves)(const uint32_t *key, size_t count, uint32_t low, uint32_t *slot, uint32_t *apart,
                                size_t *aparts) {
    size_t found = 0, odd = 0, j = 0;
#ifdef COMPRESS
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i least = _mm512_set1_epi32((int)low), last = _mm512_set1_epi32(SIGNIFICANDS - 1);
    for (; j + 16 <= count && odd <= APART; j += 16) {
        __m512i own = _mm512_loadu_si512(key + j);
        __m512i bin = _mm512_sub_epi32(_mm512_max_epu32(_mm512_srli_epi32(own, 16), least), least);
        __m512i place = _mm512_add_epi32(_mm512_slli_epi32(_mm512_and_si512(bin, last), 4), _mm512_srli_epi32(bin, 7));
        __mmask16 changed = _mm512_test_epi32_mask(own, own), strange = _mm512_testn_epi32_mask(bin, bin);
        strange = (strange | _mm512_test_epi32_mask(own, _mm512_set1_epi32(0xffff))) & changed;
        _mm512_storeu_si512(slot + found, _mm512_maskz_compress_epi32(changed, place));
        found += (size_t)__builtin_popcount(changed);
        if (strange) {
            __m512i here = _mm512_add_epi32(at, _mm512_set1_epi32((int)j));
            _mm512_storeu_si512(apart + odd, _mm512_maskz_compress_epi32(strange, here));
            odd += (size_t)__builtin_popcount(strange);
        }
    }
#endif
    for (; j < count && odd <= APART; j++) { /* in arithmetic: jumps would be taken at random */
        uint32_t own = key[j], changed = (own + 0x7fffffffu) >> 31, small = ((own >> 16) - low - 1) >> 31;
        slot[found] = NAME(half_of)(own, low), apart[odd] = (uint32_t)j;
        found += changed, odd += changed & (((own & 0xffff) + 0xffff) >> 16 | small);
    }
    *aparts = odd;
    return found;
}

/* out = the next of `few` where a key is not 0, else `zero`; there is room for 16 more than `found` in few. */
static void NAME(spread)(const uint32_t *key, size_t count, float *few, size_t found, float zero, float *restrict out) {
    size_t j = 0, next = 0;
#ifdef COMPRESS
    __m512 other = _mm512_set1_ps(zero);
    for (; j + 16 <= count; j += 16) {
        __m512i own = _mm512_loadu_si512(key + j);
        __mmask16 changed = _mm512_test_epi32_mask(own, own);
        _mm512_storeu_ps(out + j, _mm512_mask_expand_ps(other, changed, _mm512_loadu_ps(few + next)));
        next += (size_t)__builtin_popcount(changed);
    }
#endif
    few[found] = zero;
    for (; j < count; j++) {
        size_t changed = (key[j] + 0x7fffffffu) >> 31;
        out[j] = few[(next & (0 - changed)) | (found & (changed - 1))];
        next += changed;
    }
}

/* Element by element: vectors would be put together and taken apart again. */
static ONE_BY_ONE void NAME(look_up)(const uint32_t *slot, size_t count, const float *table, float *restrict out) {
    for (size_t j = 0; j < count; j++) out[j] = table[slot[j]];
}

/* Ranks of the keys that are told apart by their high halves alone, as those of most differences of bfloat16 are, by
 * counting; the others are few, and compared with each other. Returns 0 where they are many. */
static int NAME(rank_by_halves)(const uint32_t *key, size_t columns, uint32_t largest, double half, NAME(halves) *table,
                                uint32_t *slot, float *few, float *restrict out) {
    uint32_t before[HALVES], number[HALVES], sum[BINADES] = {0}, start[BINADES];
    uint32_t apart[APART + 16], own[APART], place[APART];
    uint8_t used[SIGNIFICANDS];
    float rank[HALVES];
    uint32_t low = largest >> 16 < HALVES ? 0 : (largest >> 16) - (HALVES - 1), total;
    uint16_t *count = table->count[0];
    size_t aparts, found = NAME(find_halves)(key, columns, low, slot, apart, &aparts), uses = 0, i, j, k;
    if (aparts > APART) return 0;
    for (j = 0; j + TABLES <= found; j += TABLES)
        for (k = 0; k < TABLES; k++) count[k * HALVES + slot[j + k]]++;
    for (; j < found; j++) count[slot[j]]++;
    for (j = 0; j < HALVES; j += BINADES) {
        uint16_t here[BINADES];
        uint64_t any[BINADES / 4], seen = 0;
        for (k = 0; k < BINADES; k++)
            here[k] = (uint16_t)(count[j + k] + count[HALVES + j + k] + count[2 * HALVES + j + k] + count[3 * HALVES + j + k]);
        memcpy(any, here, sizeof here);
        for (k = 0; k < BINADES / 4; k++) seen |= any[k];
        if (!seen) continue;
        used[uses++] = (uint8_t)(j / BINADES);
        for (k = 0; k < TABLES; k++) memset(count + k * HALVES + j, 0, sizeof here);
        for (k = 0; k < BINADES; k++) before[j + k] = sum[k], number[j + k] = here[k], sum[k] += here[k];
    }
    total = (uint32_t)(columns - found);
    float zero = NAME(fraction)(0, total, half);
    for (k = 0; k < BINADES; k++) start[k] = total, total += sum[k];
    for (i = 0; i < uses; i++)
        for (k = 0, j = (size_t)used[i] * BINADES; k < BINADES; k++) {
            before[j + k] += start[k];
            rank[j + k] = (float)((double)(int32_t)(2 * before[j + k] + number[j + k] - 1) * half);
        }
    for (i = 0; i < aparts; i++) own[i] = key[apart[i]], place[i] = NAME(half_of)(own[i], low), number[place[i]]--;
    for (i = 0; i < aparts; i++) rank[place[i]] = NAME(fraction)(before[place[i]], before[place[i]] + number[place[i]], half);
    NAME(look_up)(slot, found, rank, few);
    NAME(spread)(key, columns, few, found, zero, out);
    for (i = 0; i < aparts; i++) {
        uint32_t first = before[place[i]] + number[place[i]], same = 0;
        for (j = 0; j < aparts; j++) first += (own[j] < own[i]) & (place[j] == place[i]), same += own[j] == own[i];
        out[apart[i]] = NAME(fraction)(first, first + same, half);
    }
    return 1;
}

/* Copies the keys that are not 0, and their places; there is room for count + 16 of each. Returns how many they are. */
static uint32_t NAME(changed)(const uint32_t *key, size_t count, uint32_t *kept, uint32_t *place) {
    uint32_t found = 0;
    size_t j = 0;
#ifdef COMPRESS
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; j + 16 <= count; j += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
        __m512i own = _mm512_loadu_si512(key + j);
        __mmask16 inside = _mm512_test_epi32_mask(own, own);
        _mm512_storeu_si512(kept + found, _mm512_maskz_compress_epi32(inside, own));
        _mm512_storeu_si512(place + found, _mm512_maskz_compress_epi32(inside, at));
        found += (uint32_t)__builtin_popcount(inside);
    }
#endif
    for (; j < count; j++) {
        kept[found] = key[j], place[found] = (uint32_t)j;
        found += key[j] != 0;
    }
    return found;
}

#define BINS 4096
#define MIXED 256
/* Ranks differences of 16-bit numbers, of which many are 0 and most are few different ones, by counting them in bins up
 * to the largest. Elements of bins with different keys are few, and compared with each other. Returns 0 where they are
 * many. There is room for 2 * columns words in each of the scratch arrays. */
static int NAME(rank_by_bins)(const uint32_t *key, size_t columns, double half, uint32_t *kept, uint32_t *place,
                              float *restrict out) {
    uint32_t bin[BINS] = {0}, before[BINS], holds[BINS], largest = 0, mixed = 0;
    uint32_t *step = kept + columns, *crowd = place + columns;
    uint32_t bins = columns < BINS ? (uint32_t)columns : BINS;
    float rank[BINS];
    size_t j, k;
    for (j = 0; j < columns; j++) largest = key[j] > largest ? key[j] : largest;
    if ((largest && largest < 0x10000000u) || largest >= 0x7f800000u) return 0;
    uint32_t number = NAME(changed)(key, columns, kept, place), sum = (uint32_t)columns - number;
    float zero = NAME(fraction)(0, sum, half), scale = (float)(bins - 1) / as_float(largest);
    for (j = 0; j < columns; j++) out[j] = zero;
    for (j = 0; j < number; j++) {
        int32_t own = (int32_t)(as_float(kept[j]) * scale);
        step[j] = (uint32_t)own < bins ? (uint32_t)own : bins - 1;
    }
    for (j = 0; j < number; j++) bin[step[j]]++, holds[step[j]] = kept[j];
    for (j = 0; j < bins; j++) {
        uint32_t here = bin[j];
        before[j] = sum, bin[j] = 2 * sum + here - 1, sum += here;
    }
    for (j = 0; j < bins; j++) rank[j] = (float)((double)bin[j] * half);
    for (j = 0; j < number; j++) {
        out[place[j]] = rank[step[j]];
        crowd[mixed] = step[j];
        mixed += holds[step[j]] != kept[j];
    }
    if (!mixed) return 1;
    for (j = 0; j < mixed; j++) holds[crowd[j]] = 0;
    for (j = 0, mixed = 0; j < number; j++) {
        crowd[mixed] = (uint32_t)j;
        mixed += holds[step[j]] == 0;
    }
    if (mixed > MIXED) return 0;
    for (j = 0; j < mixed; j++) {
        uint32_t own = kept[crowd[j]], first = before[step[crowd[j]]], same = 0;
        for (k = 0; k < mixed; k++) {
            uint32_t other = kept[crowd[k]];
            first += other < own && step[crowd[k]] == step[crowd[j]], same += other == own;
        }
        out[place[crowd[j]]] = NAME(fraction)(first, first + same, half);
    }
    return 1;
}
#undef BINS
#undef MIXED

#define CROWD 64
/* Sorts magnitudes by 65536 steps up to the row's largest, byte by byte; different ones that share a step are few,
 * and sorted by insertion. Returns 0 where they are many. */
static int NAME(rank_by_steps)(const uint32_t *key, size_t columns, uint32_t *from, uint32_t *to, double half,
                               float *out) {
    uint32_t low[256] = {0}, high[256] = {0}, largest = 0, sum[2] = {0, 0};
    size_t i, j, start, stop;
    for (j = 0; j < columns; j++) largest = key[j] > largest ? key[j] : largest;
    if (columns > 65536 || largest < 0x10000000u || largest >= 0x7f800000u) return 0;
    float scale = 65535.0f / as_float(largest);
    for (j = 0; j < columns; j++) {
        int32_t step = (int32_t)(as_float(key[j]) * scale);
        from[j] = (uint32_t)(step > 65535 ? 65535 : step) << 16 | (uint32_t)j;
    }
    for (j = 0; j < columns; j++) low[from[j] >> 16 & 255]++, high[from[j] >> 24]++;
    for (j = 0; j < 256; j++) {
        uint32_t l = low[j], h = high[j];
        low[j] = sum[0], high[j] = sum[1], sum[0] += l, sum[1] += h;
    }
    for (j = 0; j < columns; j++) to[low[from[j] >> 16 & 255]++] = from[j];
    for (j = 0; j < columns; j++) from[high[to[j] >> 24]++] = to[j];
    for (start = 0; start < columns; start = stop) {
        uint64_t pair[CROWD], own;
        uint32_t first = key[from[start] & 65535], alike = 1;
        for (stop = start + 1; stop < columns && from[stop] >> 16 == from[start] >> 16; stop++)
            alike &= key[from[stop] & 65535] == first;
        if (alike) {
            float rank = NAME(fraction)((uint32_t)start, (uint32_t)stop, half);
            for (j = start; j < stop; j++) out[from[j] & 65535] = rank;
            continue;
        }
        if (stop - start > CROWD) return 0;
        for (j = 0; j < stop - start; j++) {
            own = (uint64_t)key[from[start + j] & 65535] << 32 | (from[start + j] & 65535);
            for (i = j; i && pair[i - 1] > own; i--) pair[i] = pair[i - 1];
            pair[i] = own;
        }
        NAME(give_ranks)(pair, start, stop - start, half, out);
    }
    return 1;
}
#undef CROWD

/* Sorts (key, index) pairs by key, eleven bits at a time; they end in the one of the two buffers that it returns. */
static uint64_t *NAME(sorted)(const uint32_t *key, size_t columns, uint64_t *from, uint64_t *to) {
    uint32_t place[3][2048] = {{0}};
    size_t j;
    for (j = 0; j < columns; j++) {
        from[j] = (uint64_t)key[j] << 32 | (uint32_t)j;
        place[0][key[j] & 2047]++, place[1][key[j] >> 11 & 2047]++, place[2][key[j] >> 22]++;
    }
    for (int digit = 0; digit < 3; digit++) {
        uint32_t *at = place[digit], sum = 0, shift = 32 + 11 * digit;
        for (j = 0; j < 2048; j++) { uint32_t here = at[j]; at[j] = sum; sum += here; }
        for (j = 0; j < columns; j++) to[at[from[j] >> shift & 2047]++] = from[j];
        uint64_t *swap = from; from = to; to = swap;
    }
    return from;
}

/* Memory for the ranks of rows of so many columns, to be freed; NULL where there is none. */
static void *NAME(room)(size_t columns) {
    return calloc(1, sizeof(NAME(halves)) + (columns + 16) * (2 * sizeof(uint64_t) + sizeof(uint32_t)));
}

/* Ranks of keys in their row, as fractions of the highest; equal keys share their mean rank; 1/2 in rows of one. */
static void NAME(rank)(const uint32_t *key, size_t columns, int narrow, NAME(halves) *table, uint64_t *pairs,
                       uint64_t *others, float *restrict out) {
    double half = columns > 1 ? 0.5 / (double)(columns - 1) : 0;
    uint32_t largest = 0;
    for (size_t j = 0; j < columns; j++) largest = key[j] > largest ? key[j] : largest;
    if (columns == 1) *out = 0.5f;
    else if (columns <= 64) NAME(rank_by_counting)(key, columns, half, out);
    else if (!(narrow && columns <= 65536 &&
               NAME(rank_by_halves)(key, columns, largest, half, table, (uint32_t *)pairs, (float *)others, out)) &&
             !(narrow && NAME(rank_by_bins)(key, columns, half, (uint32_t *)pairs, (uint32_t *)others, out)) &&
             !NAME(rank_by_steps)(key, columns, (uint32_t *)pairs, (uint32_t *)others, half, out))
        NAME(give_ranks)(NAME(sorted)(key, columns, pairs, others), 0, columns, half, out);
}

/* Puts in the place of ranks what draws leave of the elements: 1, or 1 / p (inverse), or 0; p = least + rise * rank. */
static void NAME(draw)(uint32_t first, size_t count, const thinning *by, float *restrict out) {
    uint32_t word[3] = {by->key[0], by->key[1], by->key[2]};
    float least = by->least, rise = by->rise;
    int inverse = by->inverse;
    size_t j = 0;
#ifdef COMPRESS
    /* A word is below a float where it is when it is rounded down to a float itself. */
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), sign = _mm512_set1_epi32(INT32_MIN);
    __m512 one = _mm512_set1_ps(1.0f);
    for (; j + 16 <= count; j += 16) {
        __m512i x = _mm512_add_epi32(at, _mm512_set1_epi32((int)(first + (uint32_t)j + word[0])));
        x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 17)), _mm512_set1_epi32((int)0xed5ad4bbu));
        x = _mm512_add_epi32(x, _mm512_set1_epi32((int)word[1]));
        x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 11)), _mm512_set1_epi32((int)0xac4c1b51u));
        x = _mm512_add_epi32(x, _mm512_set1_epi32((int)word[2]));
        x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), _mm512_set1_epi32((int)0x31848babu));
        x = _mm512_xor_si512(_mm512_xor_si512(x, _mm512_srli_epi32(x, 14)), sign);
        __m512 p = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(out + j), _mm512_set1_ps(rise)), _mm512_set1_ps(least));
        __m512 drawn = _mm512_cvt_roundepu32_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
        __mmask16 kept = _mm512_cmp_ps_mask(drawn, _mm512_mul_ps(p, _mm512_set1_ps(0x1p32f)), _CMP_LT_OQ);
        _mm512_storeu_ps(out + j, inverse ? _mm512_maskz_div_ps(kept, one, p) : _mm512_maskz_mov_ps(kept, one));
    }
#endif
    for (; j < count; j++) {
        double uniform = ((double)(int32_t)NAME(scramble)(first + (uint32_t)j, word) + 2147483648.0) * 0x1p-32;
        float p = out[j] * rise + least;
        out[j] = uniform < p ? inverse ? 1.0f / p : 1.0f : 0.0f;
    }
}

/* out = 1, or 1 / p (inverse), where a draw keeps an element, else 0; p = least + rise * its rank in its row. */
static void NAME(draw_by_rank)(const char *source, int type, const char *base, int base_type, size_t start,
                               size_t count, const thinning *by, void *room, float *restrict out) {
    size_t columns = by->columns;
    NAME(halves) *table = room;
    uint64_t *pairs = (uint64_t *)(table + 1), *others = pairs + columns + 16;
    uint32_t *key = (uint32_t *)(others + columns + 16);
    int narrow = type != T_F32 && base_type != T_F32;
    float b[TILE];
    for (size_t stop = start + count; start < stop; start += columns, out += columns) {
        for (size_t at = 0; at < columns; at += TILE) {
            size_t tile = columns - at < TILE ? columns - at : TILE;
            NAME(load)(base, base_type, start + at, tile, b);
            NAME(keys)(source, type, b, start + at, tile, key + at);
        }
        NAME(rank)(key, columns, narrow, table, pairs, others, out);
        NAME(draw)((uint32_t)start, columns, by, out);
    }
}
#undef SIGNIFICANDS
#undef BINADES
#undef HALVES
#undef TABLES
#undef APART
