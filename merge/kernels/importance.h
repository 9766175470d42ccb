/* How important a parent's changes are: the size of each times its run's divergence, a run being the elements along
 * the last dimension; included by body.h. torch_importance.py does the same steps.
 *
 * The divergence of a run is KL(p + f || q + f), with p, q = softmax of parent, base, f = FLOOR. Since the sums of
 * p + f and of q + f are equal, it is sum (q + f) h(x), x = (p - q) / (q + f), h(x) = (1 + x) log(1 + x) - x, where
 * all terms are positive. With weights e of the base (q = e / sum e), g those of the parent minus e, and
 * k = sum g / sum e, it is (p - q) sum e = c (g - k e), c = 1 / (1 + k). A common factor of all p changes nothing, so
 * a shift of the changes makes k small: g - k e is then no difference of nearly equal numbers.
 *
 * Arrays of a run are as long as the next multiple of STEP. */

#define FLOOR 1e-8
#define STEP 8

/* A tile's sum has eight lanes, element j in lane j % 8, which are folded in halves; tiles are added in order. */
static double NAME(total)(const double *x, size_t count) {
    double total = 0;
    for (size_t start = 0; start < count; start += TILE) {
        size_t stop = count - start < TILE ? count : start + TILE;
        double s[STEP] = {0};
        for (size_t j = start; j < stop; j += STEP)
            for (int k = 0; k < STEP; k++) s[k] += x[j + k];
        total += ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
    }
    return total;
}

/* The least and largest of changes and of values of the base, and the parent's largest. */
typedef struct { double least, most, low, high, top; } NAME(range);

static NAME(range) NAME(ranged)(const float *parent, const float *base, size_t count) {
    double least[STEP], most[STEP], low[STEP], high[STEP], top[STEP];
    for (int k = 0; k < STEP; k++) {
        top[k] = parent[k], low[k] = high[k] = base[k];
        least[k] = most[k] = top[k] - low[k];
    }
    for (size_t j = STEP; j < count; j += STEP)
        for (int k = 0; k < STEP; k++) {
            double own = parent[j + k], other = base[j + k], change = own - other;
            least[k] = change < least[k] ? change : least[k], most[k] = change > most[k] ? change : most[k];
            low[k] = other < low[k] ? other : low[k], high[k] = other > high[k] ? other : high[k];
            top[k] = own > top[k] ? own : top[k];
        }
    for (int k = 1; k < STEP; k++) {
        *least = least[k] < *least ? least[k] : *least, *most = most[k] > *most ? most[k] : *most;
        *low = low[k] < *low ? low[k] : *low, *high = high[k] > *high ? high[k] : *high;
        *top = top[k] > *top ? top[k] : *top;
    }
    return (NAME(range)){*least, *most, *low, *high, *top};
}

/* Weights of the base, and how much larger the parent's are: for changes of at most 1/64, and values of the base of at
 * most 1/4; */
static void NAME(weigh_small)(const float *restrict parent, const float *restrict base, double shift, size_t count,
                              double *restrict e, double *restrict g) {
    for (size_t j = 0; j < count; j++) {
        double b = base[j], change = (parent[j] - b) - shift;
        e[j] = 1 + b * polynomial(b, EXPONENTIAL, 10);
        g[j] = e[j] * (change * polynomial(change, EXPONENTIAL, 6));
    }
}

/* for changes of at most 1/64; */
static void NAME(weigh_near)(const float *restrict parent, const float *restrict base, double level, double shift, size_t count,
                             double *restrict e, double *restrict g) {
    for (size_t j = 0; j < count; j++) {
        double b = base[j], change = (parent[j] - b) - shift, rest, scale = exponential(b - level, &rest);
        e[j] = scale + scale * rest;
        g[j] = e[j] * (change * polynomial(change, EXPONENTIAL, 6));
    }
}

/* for any changes, by the larger weight of the two and the ratio of the smaller one to it. */
static void NAME(weigh_far)(const float *restrict parent, const float *restrict base, double level, double shift, size_t count,
                            double *restrict e, double *restrict g) {
    for (size_t j = 0; j < count; j++) {
        double b = base[j], change = (parent[j] - b) - shift, rest;
        int grows = change > 0;
        b -= level;
        double scale = exponential(grows ? b + change : b, &rest), most = scale + scale * rest;
        scale = exponential(grows ? -change : change, &rest);
        double least = most * (scale + scale * rest), step = most * (scale * rest + (scale - 1));
        e[j] = grows ? least : most;
        g[j] = grows ? -step : step;
    }
}

/* Replaces weights by terms of the sum, times sum e; f is FLOOR sum e. */
static void NAME(near_terms)(double *restrict e, const double *restrict g, double k, double f, size_t count) {
    double c = 1 / (1 + k);
    for (size_t j = 0; j < count; j++) {
        double moved = (g[j] - e[j] * k) * c, x = moved / (e[j] + f);
        e[j] = moved * (x * polynomial(x, EXCESS, 8));
    }
}

static void NAME(far_terms)(double *restrict e, const double *restrict g, double k, double f, size_t count) {
    double c = 1 / (1 + k);
    for (size_t j = 0; j < count; j++) {
        double moved = (g[j] - e[j] * k) * c, whole = e[j] + f, x = moved / whole;
        double little = moved * (x * polynomial(x, EXCESS, 8)), large = whole * ((1 + x) * logarithm(x) - x);
        e[j] = fabs(x) <= 0x1p-5 ? little : large;
    }
}

/* The divergence of one run, whose first element is repeated in its arrays after the last. */
static double NAME(divergence)(const float *parent, const float *base, size_t count, double *e, double *g) {
    size_t padded = (count + STEP - 1) / STEP * STEP;
    NAME(range) r = NAME(ranged)(parent, base, padded);
    int near = r.most - r.least <= 0x1p-5, small = near && r.low >= -0.25 && r.high <= 0.25;
    double level = fabs(r.high) > 16 ? r.high : 0, shift = near ? 0.5 * r.least + 0.5 * r.most : r.top - r.high, whole, k;
    for (int again = 0;; again++) {
        if (small) NAME(weigh_small)(parent, base, shift, padded, e, g);
        else if (near) NAME(weigh_near)(parent, base, level, shift, padded, e, g);
        else NAME(weigh_far)(parent, base, level, shift, padded, e, g);
        for (size_t j = count; j < padded; j++) e[j] = g[j] = 0;
        whole = NAME(total)(e, padded), k = NAME(total)(g, padded) / whole;
        if (near || again || fabs(k) <= 0x1p-6) break;
        shift += logarithm(k);
    }
    if (near) NAME(near_terms)(e, g, k, FLOOR * whole, padded);
    else NAME(far_terms)(e, g, k, FLOOR * whole, padded);
    return NAME(total)(e, padded) / whole;
}

/* out[run] = its divergence. Nonzero: out of memory. */
static int NAME(divergences)(const char *parent, int type, const char *base, int base_type, size_t runs, size_t length,
                             double *out) {
    size_t padded = (length + STEP - 1) / STEP * STEP;
    double *e = malloc(padded * (2 * sizeof(double) + 2 * sizeof(float))), *g = e + padded;
    float *p = (float *)(g + padded), *b = p + padded;
    if (!e) return 1;
    for (size_t run = 0; run < runs; run++) {
        NAME(load)(parent, type, run * length, length, p);
        NAME(load)(base, base_type, run * length, length, b);
        for (size_t j = length; j < padded; j++) p[j] = p[0], b[j] = b[0];
        out[run] = NAME(divergence)(p, b, length, e, g);
    }
    free(e);
    return 0;
}

/* A tile's importances: sizes of changes times divergences, of runs that may begin and end in it or beyond it. */
static void NAME(weigh_changes)(const float *restrict parent, const float *restrict base, size_t start, size_t count,
                                const double *divergence, size_t length, float *restrict out) {
    size_t run = start / length, stop = (run + 1) * length - start;
    for (size_t j = 0; j < count; run++, stop += length) {
        double own = divergence[run];
        for (size_t end = stop < count ? stop : count; j < end; j++)
            out[j] = (float)((double)fabsf(parent[j] - base[j]) * own);
    }
}

/* Importances of a block that begins with a run. */
static void NAME(importances)(const char *parent, int type, const char *base, int base_type, const double *divergence,
                              size_t length, size_t count, float *out) {
    float p[TILE], b[TILE];
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE;
        NAME(load)(parent, type, start, tile, p);
        NAME(load)(base, base_type, start, tile, b);
        NAME(weigh_changes)(p, b, start, tile, divergence, length, out + start);
    }
}

/* target = parent where its importance is at least a threshold, else base. Bit 0: a source is not finite; bit 1: a
 * stored value is not. */
static int NAME(take_important)(const char *parent, int type, const char *base, int base_type, const double *divergence,
                                size_t length, float threshold, size_t count, char *target, int target_type) {
    float p[TILE], b[TILE], important[TILE];
    uint32_t most[WORDS] = {0}, bad = 0, overflows = 0;
    for (size_t start = 0; start < count; start += TILE) {
        size_t tile = count - start < TILE ? count - start : TILE, j;
        NAME(load)(parent, type, start, tile, p);
        NAME(load)(base, base_type, start, tile, b);
        NAME(note_sizes)(p, tile, most);
        NAME(note_sizes)(b, tile, most);
        NAME(weigh_changes)(p, b, start, tile, divergence, length, important);
        for (j = 0; j < tile; j++) {
            float own = p[j], other = b[j];
            important[j] = important[j] >= threshold ? own : other;
        }
        overflows |= NAME(store_floats)(important, target_type, start, tile, target);
    }
    for (int k = 0; k < WORDS; k++) bad |= most[k] >= 0x7f800000u;
    return (int)(bad | overflows << 1);
}
#undef FLOOR
#undef STEP
