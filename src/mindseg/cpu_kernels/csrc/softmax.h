// Parts of a softmax, for loops that compilers turn into vector instructions.
#ifndef MINDSEG_CPU_KERNELS_CSRC_SOFTMAX_H_
#define MINDSEG_CPU_KERNELS_CSRC_SOFTMAX_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace mindseg {

// exp(x) for x <= 0, to 2e-7 of the value; below -87 the smallest normal number. Cody and Waite's reduction to
// |r| <= log(2) / 2, then a polynomial.
inline float Exp(float x) {
  x = std::max(x, -87.0f);
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the rounded product
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t power = (static_cast<int32_t>(n) + 127) << 23;
  float factor;
  std::memcpy(&factor, &power, sizeof factor);
  return p * factor;
}

// Largest of each of `count` columns of (C, stride).
inline void ColumnMaxima(const float* rows, int64_t classes, int64_t stride, int64_t count, float* highest) {
  std::copy(rows, rows + count, highest);
  for (int64_t c = 1; c < classes; ++c) {
    const float* row = rows + c * stride;
#pragma omp simd
    for (int64_t x = 0; x < count; ++x) highest[x] = std::max(highest[x], row[x]);
  }
}

}  // namespace mindseg

#endif  // MINDSEG_CPU_KERNELS_CSRC_SOFTMAX_H_
