/* exp, log and their like in double, by series and bit patterns: plain code that compilers vectorise, and whose results
 * are the same on every machine. torch_importance.py does the same steps. */
#ifndef MERGE_MODELS_SERIES_H
#define MERGE_MODELS_SERIES_H
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Coefficients, the constant term first: of (exp(t) - 1) / t; of log((1 + s) / (1 - s)) / 2s in s^2; and of
 * ((1 + x) log(1 + x) - x) / x^2. */
static const double EXPONENTIAL[] = {1, 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880,
                                     1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
static const double LOGARITHM[] = {1, 1. / 3, 1. / 5, 1. / 7, 1. / 9, 1. / 11, 1. / 13, 1. / 15, 1. / 17, 1. / 19};
static const double EXCESS[] = {1. / 2, -1. / 6, 1. / 12, -1. / 20, 1. / 30, -1. / 42, 1. / 56, -1. / 72};

INLINE double as_double(uint64_t bits) { double d; memcpy(&d, &bits, 8); return d; }
INLINE uint64_t bits_of(double d) { uint64_t bits; memcpy(&bits, &d, 8); return bits; }

INLINE double polynomial(double x, const double *coefficient, const int terms) {
    double sum = x * coefficient[terms - 1] + coefficient[terms - 2];
    for (int k = terms - 3; k >= 0; k--) sum = sum * x + coefficient[k];
    return sum;
}

/* exp(t) = scale * (1 + rest), for t up to 700; the least result is about 2^-1022. */
INLINE double exponential(double t, double *rest) {
    t = t < -708 ? -708 : t;
    double rounded = t * 0x1.71547652b82fep0 + 0x1.8p52, k = rounded - 0x1.8p52;
    t = (t - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    *rest = t * polynomial(t, EXPONENTIAL, 13);
    return as_double((bits_of(rounded) + 1023) << 52);
}

/* log(1 + x), for x > -1. */
INLINE double logarithm(double x) {
    uint64_t bits = bits_of(1 + x), k = (bits - 0x3fe6a09e667f3bcdu + ((uint64_t)1024 << 52)) >> 52;
    double m = as_double(bits - ((k - 1024) << 52)); /* 2^(k - 1024) m = 1 + x, with m^2 from 1/2 to 2 */
    double over = k == 1024 ? x : m - 1, s = over / (2 + over);
    double exponent = as_double(0x4330000000000000u | k) - (0x1p52 + 1024);
    return (s + s) * polynomial(s * s, LOGARITHM, 10) + exponent * 0x1.62e42fefa39efp-1;
}
#undef INLINE
#endif
