/* Kernels for training on a CPU: causal attention and GELU, forward and backward; inputs and results may be bfloat16.

   lit_gpt/models/training_kernels.py compiles this file once per machine. A query t attends to the keys from
   `starts[t]` to t. Queries are processed in blocks, whose scores stay in the cache; the backward pass computes them
   again from the logarithm of each query's softmax sum (FlashAttention, arXiv:2205.14135). Sums have a fixed order: a
   result depends neither on the number of threads nor on other rows.

   B rows, H query heads, K key/value heads, T tokens, D head size (a multiple of 16). */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "exponential.h"

#define BLOCK 48  /* queries */
#define WIDTH 16 /* floats in a vector */

typedef float floats __attribute__((vector_size(4 * WIDTH)));

/* A tile of a product: c (M, 16 N) = or += a b. a[i][k] is at a + i a_row + k a_step; rows of b and c are contiguous.
   M and N are constants where this is inlined, so that the sums stay in registers. */
INLINE void tile(const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t b_row, float *c, int64_t c_row,
                 int64_t depth, int add, const int M, const int N) {
    floats sum[6][4];
#pragma GCC unroll 6
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            sum[i][j] = (floats){0};
            if (add) memcpy(&sum[i][j], c + i * c_row + j * WIDTH, sizeof(floats));
        }
    for (int64_t k = 0; k < depth; k++) {
        floats w[4];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) memcpy(&w[j], b + k * b_row + j * WIDTH, sizeof(floats));
#pragma GCC unroll 6
        for (int i = 0; i < M; i++)
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) sum[i][j] += w[j] * a[i * a_row + k * a_step];
    }
#pragma GCC unroll 6
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) memcpy(c + i * c_row + j * WIDTH, &sum[i][j], sizeof(floats));
}

/* c (rows, columns) = or += a (rows, depth) b (depth, columns); columns is a multiple of 16. */
static void multiply(const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t b_row, float *c,
                     int64_t c_row, int64_t rows, int64_t columns, int64_t depth, int add) {
    for (int64_t j = 0; j < columns;) {
        const int64_t left = (columns - j) / WIDTH;
        const int n = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        for (int64_t i = 0; i < rows;) {
            const int m = rows - i >= 6 ? 6 : rows - i >= 2 ? 2 : 1;
            const float *from = a + i * a_row;
            float *to = c + i * c_row + j;
#define CASE(M, N) else if (m == M && n == N) tile(from, a_row, a_step, b + j, b_row, to, c_row, depth, add, M, N);
            if (0) {} CASE(6, 4) CASE(2, 4) CASE(1, 4) CASE(6, 2) CASE(2, 2) CASE(1, 2) CASE(6, 1) CASE(2, 1) CASE(1, 1)
            i += m;
        }
        j += n * WIDTH;
    }
}

/* Element i of float32, or of bfloat16, which is rounded to nearest even. */
INLINE float load(const void *x, int64_t i, const int half) {
    if (!half) return ((const float *)x)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE void store(void *y, int64_t i, float value, const int half) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (half)
        ((uint16_t *)y)[i] = value != value ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    else
        ((float *)y)[i] = value;
}

/* (B, heads, T, D), whose last dimension is contiguous, in float32 or bfloat16. */
typedef struct { const void *data; int64_t row, head, step, half; } View;

/* Copy D elements of the tokens from t to t + n to contiguous rows, and transposed to (D, width). */
static void pack(const View *x, int64_t b, int64_t h, int64_t t, int64_t n, int64_t D, float *rows, float *columns,
                 int64_t width) {
    float row[D];
    for (int64_t i = 0; i < n; i++) {
        const int64_t from = b * x->row + h * x->head + (t + i) * x->step;
        float *to = rows ? rows + i * D : row;
        if (x->half)
            for (int64_t d = 0; d < D; d++) to[d] = load(x->data, from + d, 1);
        else
            memcpy(to, (const float *)x->data + from, D * sizeof(float));
        if (columns)
            for (int64_t d = 0; d < D; d++) columns[d * width + i] = to[d];
    }
}

/* Write n values times `factor` to y, from element `at` on. */
static void put(void *y, int64_t at, const float *x, float factor, int64_t n, int64_t half) {
    if (half)
        for (int64_t i = 0; i < n; i++) store(y, at + i, x[i] * factor, 1);
    else
        for (int64_t i = 0; i < n; i++) ((float *)y)[at + i] = x[i] * factor;
}

/* The keys that a block of queries reads: from *first, a multiple of 16, to `end`; returns their number, rounded up. */
INLINE int64_t reach(const int64_t *starts, int64_t begin, int64_t end, int64_t *first) {
    int64_t least = starts ? starts[begin] : 0;
    for (int64_t t = begin; starts && t < end; t++) least = starts[t] < least ? starts[t] : least;
    *first = least / WIDTH * WIDTH;
    return (end - *first + WIDTH - 1) / WIDTH * WIDTH;
}

/* y (B, T, H, D), of the dtype of q, and logs (B, H, T), each query's log of the sum of exponentials. Returns 0, or 1 without memory. */
int attention(const View *q, const View *k, const View *v, const int64_t *starts, void *y, float *logs, int64_t B,
              int64_t H, int64_t K, int64_t T, int64_t D, float scale, int threads) {
    const int64_t padded = (T + WIDTH - 1) / WIDTH * WIDTH, size = padded * (2 * D + BLOCK) + 2 * BLOCK * D;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t one = 0; one < B * K; one++) {
        const int64_t b = one / K, shared = one % K;
        float *buffer = aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64);
        if (!buffer) {
            failed = 1;
            continue;
        }
        float *keys = buffer, *values = keys + padded * D, *scores = values + padded * D;
        float *query = scores + padded * BLOCK, *out = query + BLOCK * D;
        memset(keys, 0, padded * D * sizeof(float));
        pack(k, b, shared, 0, T, D, 0, keys, padded);
        pack(v, b, shared, 0, T, D, values, 0, 0);
        for (int64_t h = shared * (H / K); h < (shared + 1) * (H / K); h++)
            for (int64_t begin = 0; begin < T; begin += BLOCK) {
                const int64_t end = begin + BLOCK < T ? begin + BLOCK : T, n = end - begin;
                const int64_t *own = starts ? starts + b * T : 0;
                int64_t first, width = reach(own, begin, end, &first);
                float inverse[BLOCK];
                pack(q, b, h, begin, n, D, query, 0, 0);
                multiply(query, D, 1, keys + first, padded, scores, width, n, width, D, 0);
                for (int64_t i = 0; i < n; i++) {
                    float *row = scores + i * width, largest = -INFINITY, sum = 0;
                    const int64_t low = own ? own[begin + i] - first : 0, high = begin + i + 1 - first;
#pragma omp simd reduction(max : largest)
                    for (int64_t s = low; s < high; s++) largest = row[s] > largest ? row[s] : largest;
#pragma omp simd reduction(+ : sum)
                    for (int64_t s = low; s < high; s++) sum += row[s] = exponential((row[s] - largest) * scale);
                    memset(row, 0, low * sizeof(float));
                    memset(row + high, 0, (width - high) * sizeof(float));
                    inverse[i] = 1 / sum;
                    logs[(b * H + h) * T + begin + i] = largest * scale + logf(sum);
                }
                multiply(scores, width, 1, values + first * D, D, out, D, n, D, end - first, 0);
                for (int64_t i = 0; i < n; i++)
                    put(y, ((b * T + begin + i) * H + h) * D, out + i * D, inverse[i], D, q->half);
            }
        free(buffer);
    }
    return failed;
}

/* Gradients dq (B, T, H, D), dk and dv (B, T, K, D) from that of y, `g`, all of the dtype of q. Returns 0, or 1 without memory. */
int attention_backward(const View *q, const View *k, const View *v, const int64_t *starts, const View *y,
                       const float *logs, const View *g, void *dq, void *dk, void *dv, int64_t B, int64_t H, int64_t K,
                       int64_t T, int64_t D, float scale, int threads) {
    const int64_t padded = (T + WIDTH - 1) / WIDTH * WIDTH, size = padded * (5 * D + 2 * BLOCK) + 4 * BLOCK * D;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t one = 0; one < B * K; one++) {
        const int64_t b = one / K, shared = one % K;
        float *buffer = aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64);
        if (!buffer) {
            failed = 1;
            continue;
        }
        float *key_rows = buffer, *keys = key_rows + padded * D, *values = keys + padded * D;
        float *key_grad = values + padded * D, *value_grad = key_grad + padded * D, *p = value_grad + padded * D;
        float *ds = p + padded * BLOCK, *query = ds + padded * BLOCK, *grad = query + BLOCK * D;
        float *query_grad = grad + BLOCK * D, *outs = query_grad + BLOCK * D;
        memset(buffer, 0, 5 * padded * D * sizeof(float));
        pack(k, b, shared, 0, T, D, key_rows, keys, padded);
        pack(v, b, shared, 0, T, D, 0, values, padded);
        for (int64_t h = shared * (H / K); h < (shared + 1) * (H / K); h++)
            for (int64_t begin = 0; begin < T; begin += BLOCK) {
                const int64_t end = begin + BLOCK < T ? begin + BLOCK : T, n = end - begin;
                const int64_t *own = starts ? starts + b * T : 0;
                int64_t first, width = reach(own, begin, end, &first);
                pack(q, b, h, begin, n, D, query, 0, 0);
                pack(g, b, h, begin, n, D, grad, 0, 0);
                pack(y, b, h, begin, n, D, outs, 0, 0);
                multiply(query, D, 1, keys + first, padded, p, width, n, width, D, 0);
                multiply(grad, D, 1, values + first, padded, ds, width, n, width, D, 0);
                for (int64_t i = 0; i < n; i++) {
                    const int64_t low = own ? own[begin + i] - first : 0, high = begin + i + 1 - first;
                    const float *out = outs + i * D, log = logs[(b * H + h) * T + begin + i];
                    float *weight = p + i * width, *slope = ds + i * width, mean = 0;
#pragma omp simd reduction(+ : mean)
                    for (int64_t d = 0; d < D; d++) mean += out[d] * grad[i * D + d];
                    for (int64_t s = low; s < high; s++) {
                        weight[s] = exponential(weight[s] * scale - log);
                        slope[s] = weight[s] * (slope[s] - mean) * scale;
                    }
                    memset(weight, 0, low * sizeof(float));
                    memset(slope, 0, low * sizeof(float));
                    memset(weight + high, 0, (width - high) * sizeof(float));
                    memset(slope + high, 0, (width - high) * sizeof(float));
                }
                const int64_t reached = end - first;
                multiply(ds, width, 1, key_rows + first * D, D, query_grad, D, n, D, reached, 0);
                multiply(p, 1, width, grad, D, value_grad + first * D, D, reached, D, n, 1);
                multiply(ds, 1, width, query, D, key_grad + first * D, D, reached, D, n, 1);
                for (int64_t i = 0; i < n; i++)
                    put(dq, ((b * T + begin + i) * H + h) * D, query_grad + i * D, 1, D, q->half);
            }
        for (int64_t t = 0; t < T; t++) {
            put(dk, ((b * T + t) * K + shared) * D, key_grad + t * D, 1, D, q->half);
            put(dv, ((b * T + t) * K + shared) * D, value_grad + t * D, 1, D, q->half);
        }
        free(buffer);
    }
    return failed;
}

/* GELU's tanh approximation, y = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3), and with g its gradient. */
INLINE void gelu(const void *x, const void *g, void *y, int64_t begin, int64_t end, const int half, const int backward) {
    const float c = 1.59576912f, cubic = 0.044715f;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
        const float z = load(x, i, half), square = z * z, s = 1 / (1 + exponential(-c * z * (1 + cubic * square)));
        const float slope = s * (1 + z * (1 - s) * c * (1 + 3 * cubic * square));
        store(y, i, backward ? load(g, i, half) * slope : z * s, half);
    }
}

void gelu_tanh(const void *x, const void *g, void *y, int64_t n, int half, int threads) {
    const int64_t part = 4096; /* constants must reach the inlined loop, and do not through OpenMP's */
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t begin = 0; begin < n; begin += part) {
        const int64_t end = begin + part < n ? begin + part : n;
        if (half && g) gelu(x, g, y, begin, end, 1, 1);
        else if (half) gelu(x, g, y, begin, end, 1, 0);
        else if (g) gelu(x, g, y, begin, end, 0, 1);
        else gelu(x, g, y, begin, end, 0, 0);
    }
}
