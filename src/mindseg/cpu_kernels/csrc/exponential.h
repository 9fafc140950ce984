// The exponential function, for loops that compilers turn into vector instructions.
#ifndef MINDSEG_CPU_KERNELS_CSRC_EXPONENTIAL_H_
#define MINDSEG_CPU_KERNELS_CSRC_EXPONENTIAL_H_

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

}  // namespace mindseg

#endif  // MINDSEG_CPU_KERNELS_CSRC_EXPONENTIAL_H_
