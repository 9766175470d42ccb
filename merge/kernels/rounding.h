/* From floats to 16-bit formats: to nearest even or by keyed draws; and what that leaves of a change.
 * Included by body.h, after task_vectors.h. */

/* Up with the probability that makes the mean right: the bits that are cut off, against as many random ones.
 * Numbers not below the largest one are rounded to nearest: which become infinite is no matter of luck. */
static inline uint16_t NAME(drawn_bf16)(uint32_t u, uint32_t word) {
    return (u & 0x7fffffffu) >= 0x7f7f0000u ? bits_to_bf16(u) : (uint16_t)((u + (word >> 16)) >> 16);
}
static inline uint16_t NAME(drawn_f16)(uint32_t u, uint32_t word) {
    uint32_t a = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
    uint32_t normal = (a + (word >> 19) + 0xc8000000u) >> 13;
    float small = a < 0x38800000u ? as_float(a) : 0.0f; /* multiples of 2^-24 count from 2^-56 on */
    uint32_t subnormal = (uint32_t)(((uint64_t)((double)small * 0x1p56) + word) >> 32);
    uint32_t h = a < 0x38800000u ? subnormal : normal;
    return (uint16_t)(a >= 0x477fe000u ? bits_to_f16(u) : h | sign);
}

/* target[j] = source[j], rounded to nearest, or (with a key) by the draw of index j. Nonzero: one is not finite. */
static int NAME(round)(const float *restrict source, size_t count, int type, const uint32_t *key, char *target) {
    uint16_t *restrict p = (uint16_t *)target;
    uint32_t exponent = type == T_F16 ? 0x7c00u : 0x7f80u, bad = 0;
    size_t j;
    if (type == T_F16 && key)
        for (j = 0; j < count; j++) p[j] = NAME(drawn_f16)(as_bits(source[j]), NAME(scramble)((uint32_t)j, key));
    else if (type == T_F16)
        for (j = 0; j < count; j++) p[j] = bits_to_f16(as_bits(source[j]));
    else if (key)
        for (j = 0; j < count; j++) p[j] = NAME(drawn_bf16)(as_bits(source[j]), NAME(scramble)((uint32_t)j, key));
    else
        for (j = 0; j < count; j++) p[j] = bits_to_bf16(as_bits(source[j]));
    for (j = 0; j < count; j++) bad |= (p[j] & exponent) == exponent;
    return bad != 0;
}

/* Adds to out, for changes c = value - reference and what is left of them, k = stored - rounded reference:
 * sum c^2, sum c k, sum (stored - value)^2, how many c are not 0, and of these how many k are 0.
 * Elements where anything is not finite do not count. */
static void NAME(survival)(const float *value, const char *stored, int type, const char *reference,
                           int reference_type, size_t count, double *out) {
    double c[TILE], k[TILE], e[TILE];
    float r[TILE], o[TILE];
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE, j;
        uint32_t changed = 0, lost = 0;
        NAME(load)(reference, reference_type, start, tile, r);
        NAME(load)(stored, type, start, tile, o);
        for (j = 0; j < tile; j++) {
            float near = type == T_F16 ? f16_to_float(bits_to_f16(as_bits(r[j]))) : bf16_to_float(bits_to_bf16(as_bits(r[j])));
            double v = value[start + j], change = v - r[j], left = (double)o[j] - near, error = o[j] - v;
            int fine = (change - change) + (left - left) + (error - error) == 0.0;
            c[j] = fine ? change : 0.0, k[j] = fine ? left : 0.0, e[j] = fine ? error : 0.0;
            changed += c[j] != 0.0, lost += (c[j] != 0.0) & (k[j] == 0.0);
        }
        out[0] += NAME(dot)(c, c, tile), out[1] += NAME(dot)(c, k, tile), out[2] += NAME(dot)(e, e, tile);
        out[3] += changed, out[4] += lost;
    }
}
