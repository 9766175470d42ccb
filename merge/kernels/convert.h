/* Bit-level conversions between storage formats and binary32, branch-free so that compilers vectorise them.
 * Formats: IEEE 754 binary16/32, bfloat16, and OCP OFP8 E4M3 (finite-only) and E5M2. */
#ifndef MERGE_MODELS_CONVERT_H
#define MERGE_MODELS_CONVERT_H
#include <stdint.h>
#include <string.h>

enum { T_F32 = 0, T_F16 = 1, T_BF16 = 2, T_F8_E4M3 = 3, T_F8_E5M2 = 4 };

static inline float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

static inline float bf16_to_float(uint16_t h) { return as_float((uint32_t)h << 16); }

/* Moves a small float's exponent and significand into place, then rescales: exact for subnormals too. */
static inline float small_to_float(uint32_t magnitude, uint32_t sign, uint32_t infinity, float rescale) {
    uint32_t bits = as_bits(as_float(magnitude) * rescale);
    bits |= magnitude >= infinity ? 0x7f800000u : 0u;
    return as_float(bits | sign);
}
static inline float f16_to_float(uint16_t h) {
    return small_to_float((uint32_t)(h & 0x7fff) << 13, (uint32_t)(h & 0x8000) << 16, 0x0f800000u,
                          0x1p112f);
}
static inline float f8_e5m2_to_float(uint8_t h) { return f16_to_float((uint16_t)((uint16_t)h << 8)); }
static inline float f8_e4m3_to_float(uint8_t h) { /* no infinities; only S.1111.111 is NaN */
    float f = as_float(as_bits(as_float((uint32_t)(h & 0x7f) << 20) * 0x1p120f) |
                       ((uint32_t)(h & 0x80) << 24));
    return (h & 0x7f) == 0x7f ? as_float(0x7fc00000u) : f;
}

/* Rounding, to nearest even. A double goes through binary32 first, as torch's own conversion does: that
 * absorbs the last bits of a double sum, so that the order of parents cannot decide a tie. */
static inline uint16_t bits_to_bf16(uint32_t u) {
    uint32_t nearest = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    uint32_t nan = (u >> 16) | 0x40u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : nearest);
}
static inline uint16_t bits_to_f16(uint32_t u) {
    uint32_t a = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
    uint32_t subnormal = as_bits(as_float(a) + 0.5f) - 0x3f000000u;
    uint32_t normal = (a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13;
    uint32_t large = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t h = a < 0x38800000u ? subnormal : normal;
    h = a >= 0x47800000u ? large : h;
    return (uint16_t)(h | sign);
}
#endif
