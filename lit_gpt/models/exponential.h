/* The exponential function as the kernels of native.c and training.c compute it, in a form that compilers vectorize. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* e^x, to the last bit or two; 0 below -87. */
INLINE float exponential(float x) {
    const float low = x < -87 ? -87 : x, kept = low > 88 ? 88 : low, n = rintf(kept * 1.44269504f);
    float r = kept - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0 : p * power;
}
