/* Kernels for decoding on a CPU: products with weights of 4, 8, 16 and 32 bits, and the small operations between them.

   lit_gpt/models/native.py compiles this file once per machine. It includes no header of torch or Python, so that
   compiling takes seconds.

   A quantized weight (O, I) is stored as unsigned codes u with a scale s and a minimum m per output and group of 32 inputs,
   w = s u + m. Each token's inputs are quantized to 8 bits as well, x = d q per group, so that the inner sum is one of
   integers, which processors have an instruction for (VNNI):

       y = sum over groups of  s d sum(u q) + m d sum(q)

   Sixteen outputs are computed together. Their codes are stored so that one load brings four consecutive inputs of
   each: [panel][group][quad of inputs][output in the panel][input in the quad]. In 4 bits, a byte holds a code of the
   group's first half (low) and one of its second half (high). Scales are bfloat16: [panel][group][s or m][output].

   A bfloat16 weight is stored as [panel][pair of inputs][output in the panel][input in the pair], a float32 weight as
   [panel][input][output in the panel]. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "exponential.h"

#define GROUP 32
#define QUADS 8
#define PANEL 16
#define WHOLE(S) (((S) + 15) / 16 * 16)
#define TOKENS 4 /* computed together, so that a code is loaded and unpacked once for all of them */

typedef int32_t ints __attribute__((vector_size(64)));
typedef uint8_t bytes __attribute__((vector_size(64)));
typedef float floats __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

typedef int32_t four __attribute__((may_alias));

typedef struct {
    const uint8_t *codes;
    const uint16_t *scales;
    int64_t outputs, inputs, bits;
} Weight;

/* Add, for each of 16 outputs, the product of its four codes with the four inputs in `quad`. */
INLINE ints dot(ints sum, bytes codes, int32_t quad) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(quad));
#elif defined(__AVX2__)
    __m256i x = _mm256_set1_epi32(quad), u[2], y[2];
    memcpy(u, &codes, 64);
    memcpy(y, &sum, 64);
    for (int i = 0; i < 2; i++) {
#if defined(__AVXVNNI__)
        y[i] = _mm256_dpbusd_avx_epi32(y[i], u[i], x);
#else
        /* Products of 8-bit codes in pairs would exceed 16 bits: even and odd bytes apart. */
        __m256i low = _mm256_set1_epi16(255);
        __m256i even = _mm256_madd_epi16(_mm256_and_si256(u[i], low), _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
        __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u[i], 8), _mm256_srai_epi16(x, 8));
        y[i] = _mm256_add_epi32(y[i], _mm256_add_epi32(even, odd));
#endif
    }
    memcpy(&sum, y, 64);
    return sum;
#else
    int8_t x[4];
    memcpy(x, &quad, 4);
    for (int i = 0; i < PANEL; i++)
        for (int j = 0; j < 4; j++) sum[i] += codes[4 * i + j] * x[j];
    return sum;
#endif
}

INLINE floats widen(const uint16_t *scales) {
    halves narrow;
    memcpy(&narrow, scales, sizeof narrow);
    return (floats)(__builtin_convertvector(narrow, ints) << 16);
}

/* Sixteen outputs of `count` tokens; `count` and `bits` are constants where this is inlined. */
INLINE void panel(const Weight *w, int64_t p, const int8_t *q, const float *d, const float *sums, float *y,
                         const int count, const int bits) {
    const int64_t groups = w->inputs / GROUP, step = GROUP * PANEL * bits / 8;
    const uint8_t *codes = w->codes + p * groups * step;
    const uint16_t *scales = w->scales + p * groups * 2 * PANEL;
    floats total[TOKENS] = {0};
    for (int64_t g = 0; g < groups; g++, codes += step, scales += 2 * PANEL) {
        bytes u[QUADS];
        for (int j = 0; j < QUADS * bits / 8; j++) memcpy(&u[j], codes + 64 * j, 64);
        if (bits == 4)
            for (int j = 0; j < QUADS / 2; j++) {
                u[j + QUADS / 2] = (bytes)((ints)(u[j] & (uint8_t)0xf0) >> 4 & 0x0f0f0f0f);
                u[j] &= (uint8_t)0x0f;
            }
        floats s = widen(scales), m = widen(scales + PANEL);
        for (int t = 0; t < count; t++) {
            const four *quads = (const four *)(q + t * w->inputs + g * GROUP);
            ints even = {0}, odd = {0}; /* two chains of additions: one would wait for itself */
            for (int j = 0; j < QUADS; j += 2) {
                even = dot(even, u[j], quads[j]);
                odd = dot(odd, u[j + 1], quads[j + 1]);
            }
            floats product = __builtin_convertvector(even + odd, floats);
            total[t] += s * d[t * groups + g] * product;
            total[t] += m * sums[t * groups + g];
        }
    }
    for (int t = 0; t < count; t++) memcpy(y + t * w->outputs + p * PANEL, &total[t], sizeof total[t]);
}

INLINE void panels(const Weight *w, int64_t p, const int8_t *q, const float *d, const float *sums, int64_t n,
                          float *y, const int bits) {
    const int64_t I = w->inputs, G = I / GROUP, O = w->outputs;
    int64_t t = 0;
    for (; t + TOKENS <= n; t += TOKENS) panel(w, p, q + t * I, d + t * G, sums + t * G, y + t * O, TOKENS, bits);
    for (; t < n; t++) panel(w, p, q + t * I, d + t * G, sums + t * G, y + t * O, 1, bits);
}

#if defined(__AVX512BF16__)
#define PAIR 4 /* bytes of two inputs, in bfloat16 */
#else
#define PAIR 8 /* in float32 */
#endif

/* Add, for each of 16 outputs, the product of its two bfloat16 weights, or of its float32 weight, with the inputs. */
INLINE floats add_product(floats sum, bytes weights, const char *x, const int bits) {
    float first, second;
    if (bits == 32) {
        memcpy(&first, x, 4);
        return sum + (floats)weights * first;
    }
#if defined(__AVX512BF16__)
    int32_t pair;
    memcpy(&pair, x, 4);
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(pair));
#else
    memcpy(&first, x, 4);
    memcpy(&second, x + 4, 4);
    return sum + (floats)((ints)weights << 16) * first + (floats)((ints)weights & (int32_t)0xffff0000) * second;
#endif
}

/* As `panel`, for weights of 16 and 32 bits and inputs of `row` bytes per token. */
INLINE void float_panel(const Weight *w, int64_t p, const char *x, int64_t row, float *y, const int count,
                        const int bits) {
    const int64_t loads = w->inputs * bits / 32, step = bits == 16 ? PAIR : 4;
    const uint8_t *weights = w->codes + p * loads * 64;
    floats even[8] = {0}, odd[8] = {0};
    for (int64_t i = 0; i < loads; i += 2) {
        bytes u[2];
        memcpy(u, weights + 64 * i, sizeof u);
        for (int t = 0; t < count; t++) {
            even[t] = add_product(even[t], u[0], x + t * row + i * step, bits);
            odd[t] = add_product(odd[t], u[1], x + t * row + (i + 1) * step, bits);
        }
    }
    for (int t = 0; t < count; t++) {
        even[t] += odd[t];
        memcpy(y + t * w->outputs + p * PANEL, &even[t], sizeof even[t]);
    }
}

INLINE void float_panels(const Weight *w, int64_t p, const char *x, int64_t row, int64_t n, float *y, const int bits) {
    int64_t t = 0;
    for (; t + 8 <= n; t += 8) float_panel(w, p, x + t * row, row, y + t * w->outputs, 8, bits);
    for (; t + 4 <= n; t += 4) float_panel(w, p, x + t * row, row, y + t * w->outputs, 4, bits);
    for (; t < n; t++) float_panel(w, p, x + t * row, row, y + t * w->outputs, 1, bits);
}

/* As `product`, for weights of 16 and 32 bits. */
int float_product(const Weight *w, const float *x, int64_t n, float *y, int threads) {
    const char *in = (const char *)x;
    int64_t row = w->inputs * 4;
    uint16_t *rounded = 0;
#if defined(__AVX512BF16__)
    if (w->bits == 16) {
        rounded = malloc(n * w->inputs * 2);
        if (!rounded) return 1;
        for (int64_t i = 0; i < n * w->inputs; i += 16) {
            __m256bh narrow = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
            memcpy(rounded + i, &narrow, sizeof narrow);
        }
        in = (const char *)rounded;
        row = w->inputs * 2;
    }
#endif
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < w->outputs / PANEL; p++)
        if (w->bits == 16)
            float_panels(w, p, in, row, n, y, 16);
        else
            float_panels(w, p, in, row, n, y, 32);
    free(rounded);
    return 0;
}

/* y (n, O) = x (n, I) W^T. A token's result does not depend on n. Returns 0, or 1 without memory. */
int product(const Weight *w, const float *x, int64_t n, float *y, int threads) {
    const int64_t I = w->inputs, G = I / GROUP;
    float *d = malloc(n * (2 * G * sizeof(float) + I));
    if (!d) return 1;
    float *sums = d + n * G;
    int8_t *q = (int8_t *)(sums + n * G);
    for (int64_t g = 0; g < n * G; g++) {
        const float *in = x + g * GROUP;
        float largest = 0;
        int32_t sum = 0;
#pragma omp simd reduction(max : largest)
        for (int i = 0; i < GROUP; i++) largest = fabsf(in[i]) > largest ? fabsf(in[i]) : largest;
        const float back = largest > 0 ? 127 / largest : 0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < GROUP; i++) {
            int32_t value = (int32_t)rintf(in[i] * back);
            q[g * GROUP + i] = (int8_t)value;
            sum += value;
        }
        d[g] = largest / 127;
        sums[g] = d[g] * sum;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < w->outputs / PANEL; p++)
        if (w->bits == 4)
            panels(w, p, q, d, sums, n, y, 4);
        else
            panels(w, p, q, d, sums, n, y, 8);
    free(d);
    return 0;
}

/* y (n, C) = x w / sqrt(mean x^2 + eps), of each row */
void rms_norm(const float *x, const float *w, int64_t n, int64_t C, float eps, float *y) {
    for (int64_t t = 0; t < n; t++, x += C, y += C) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < C; i++) sum += x[i] * x[i];
        float scale = 1 / sqrtf(sum / C + eps);
        for (int64_t i = 0; i < C; i++) y[i] = x[i] * scale * w[i];
    }
}

/* y (n, F) = silu(gate) up, of rows that are `step` apart */
void swiglu(const float *gate, const float *up, int64_t n, int64_t F, int64_t step, float *y) {
    for (int64_t t = 0; t < n; t++, gate += step, up += step, y += F)
        for (int64_t i = 0; i < F; i++) y[i] = gate[i] / (1 + exponential(-gate[i])) * up[i];
}

/* Rotate heads in place: (n, `heads` of D coordinates, the rows `stride` apart), all D with cos and sin (n, D), whose
   first half has the minus sign. */
void rope(float *x, const float *cosine, const float *sine, int64_t n, int64_t stride, int64_t heads, int64_t D) {
    for (int64_t t = 0; t < n; t++, cosine += D, sine += D)
        for (int64_t h = 0; h < heads; h++) {
            float *a = x + t * stride + h * D, *b = a + D / 2;
            for (int64_t i = 0; i < D / 2; i++) {
                float first = a[i], second = b[i];
                a[i] = first * cosine[i] + second * sine[i];
                b[i] = second * cosine[i + D / 2] + first * sine[i + D / 2];
            }
        }
}

/* Copy one key and one value of each row, k and v (B, K, D), to its entry in keys and values (B, K, S, D). */
void store(const float *k, int64_t k_from, const float *v, int64_t v_from, const int64_t *entries, float *keys,
           int64_t k_row, int64_t k_head, int64_t k_step, float *values, int64_t v_row, int64_t v_head, int64_t v_step,
           int64_t B, int64_t K, int64_t D) {
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < K; h++) {
            memcpy(keys + b * k_row + h * k_head + entries[b] * k_step, k + b * k_from + h * D, D * sizeof(float));
            memcpy(values + b * v_row + h * v_head + entries[b] * v_step, v + b * v_from + h * D, D * sizeof(float));
        }
}

/* One query head over S keys; D is a constant where this is inlined, so that `out` stays in registers. `scores` has room
   for a multiple of 16 of them: their sum is taken in an order that keys which the mask hides do not change. */
INLINE void head(const float *query, const float *keys, int64_t key_step, const float *values, int64_t value_step,
                 const float *mask, float *scores, float *out, int64_t S, const int D, float scale) {
    float largest = -INFINITY, sum = 0;
    for (int64_t s = 0; s < S; s++) {
        const float *key = keys + s * key_step;
        float score = 0;
#pragma omp simd reduction(+ : score)
        for (int i = 0; i < D; i++) score += query[i] * key[i];
        scores[s] = score * scale + (mask ? mask[s] : 0);
        largest = scores[s] > largest ? scores[s] : largest;
    }
    for (int64_t s = S; s < WHOLE(S); s++) scores[s] = -INFINITY;
#pragma omp simd reduction(+ : sum)
    for (int64_t s = 0; s < WHOLE(S); s++) {
        scores[s] = exponential(scores[s] - largest);
        sum += scores[s];
    }
    const int W = sizeof(floats) / sizeof(float);
    for (int first = 0; first < D; first += 4 * W) {
        floats total[4] = {0};
        for (int64_t s = 0; s < S; s++)
            for (int i = 0; i < 4 && first + i * W < D; i++) {
                floats value;
                memcpy(&value, values + s * value_step + first + i * W, sizeof value);
                total[i] += value * scores[s];
            }
        for (int i = 0; i < 4 && first + i * W < D; i++) {
            total[i] /= sum;
            memcpy(out + first + i * W, &total[i], sizeof total[i]);
        }
    }
}

/* Attention of one query per row: y and q (B, H, D), keys and values (B, K, S, D) with strides of a row, head and key, mask
   (B, S) or NULL; D is a multiple of 16. Returns 0, or 1 without memory. */
int attend(const float *q, int64_t q_row, const float *keys, int64_t k_row, int64_t k_head, int64_t k_step,
           const float *values, int64_t v_row, int64_t v_head, int64_t v_step, const float *mask, int64_t mask_row,
           float *y, int64_t B, int64_t H, int64_t K, int64_t S, int D, float scale, int threads) {
    float *scores = malloc(B * H * WHOLE(S) * sizeof(float));
    if (!scores) return 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && B > 1)
    for (int64_t one = 0; one < B * H; one++) {
        const int64_t b = one / H, h = one % H, shared = h / (H / K);
        const float *query = q + b * q_row + h * D, *own = mask ? mask + b * mask_row : 0;
        const float *key = keys + b * k_row + shared * k_head, *value = values + b * v_row + shared * v_head;
        if (D == 64)
            head(query, key, k_step, value, v_step, own, scores + one * WHOLE(S), y + one * D, S, 64, scale);
        else if (D == 128)
            head(query, key, k_step, value, v_step, own, scores + one * WHOLE(S), y + one * D, S, 128, scale);
        else
            head(query, key, k_step, value, v_step, own, scores + one * WHOLE(S), y + one * D, S, D, scale);
    }
    free(scores);
    return 0;
}
