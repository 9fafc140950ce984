// Operators on single pixels and small windows. MindSpore's element-wise operators first write out an input that is
// broadcast, into memory that each of them keeps.
#include <algorithm>

#include "operator.h"

namespace mindseg {
namespace {

constexpr int32_t kLow22 = (1 << 22) - 1;

MINDSEG_VECTOR void Scale(const float* x, float* y, int64_t count, float factor) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * factor;
}

MINDSEG_VECTOR void DropValues(const float* x, float* y, int64_t count, const int32_t* position, int32_t noise,
                               int32_t threshold, float factor) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * (((noise * position[i]) & kLow22) >= threshold ? factor : 0.0f);
}

// Planes of argument `i`.
int64_t PlanesOf(const Arguments& a, int i) { return a.Dim(i, 0) * a.Dim(i, 1); }

bool SamePlanes(const Arguments& a, int i, int k) {
  return a.Is(i, 4, "float32") && a.Is(k, 4, "float32") && a.Dim(i, 0) == a.Dim(k, 0) && a.Dim(i, 1) == a.Dim(k, 1);
}

// Argument `i` has the 2x2 windows of argument `k` as pixels.
bool HasWindows(const Arguments& a, int i, int k) {
  return SamePlanes(a, i, k) && a.Dim(i, 2) == a.Dim(k, 2) / 2 && a.Dim(i, 3) == a.Dim(k, 3) / 2;
}

// Sizes of argument `small`, and the factor by which argument `large` is larger in both directions; 0: it is not.
struct Enlargement {
  int64_t height;
  int64_t width;
  int64_t factor = 0;

  Enlargement(const Arguments& a, int small, int large) : height(a.Dim(small, 2)), width(a.Dim(small, 3)) {
    if (width == 0 || !SamePlanes(a, small, large)) return;
    const int64_t wanted = a.Dim(large, 3) / width;
    if (a.Dim(large, 2) == wanted * height && a.Dim(large, 3) == wanted * width) factor = wanted;
  }
};

// Place of the first maximum of the window at `x`, as an offset.
int64_t Maximum(const float* x, int64_t width) {
  int64_t best = 0;
  for (const int64_t place : {int64_t{1}, width, width + 1}) {
    if (x[place] > x[best]) best = place;
  }
  return best;
}

// Calls use(window, offset) for each 2x2 window of `source`: its number, and the offset of its first maximum.
template <typename Use>
void ForMaxima(const Arguments& a, int source, Use use) {
  const int64_t height = a.Dim(source, 2);
  const int64_t width = a.Dim(source, 3);
#pragma omp parallel for schedule(static) num_threads(Threads())
  for (int64_t row = 0; row < PlanesOf(a, source) * (height / 2); ++row) {
    const int64_t from = (row / (height / 2) * height + row % (height / 2) * 2) * width;
    for (int64_t x = 0; x < width / 2; ++x) {
      const int64_t corner = from + 2 * x;
      use(row * (width / 2) + x, corner + Maximum(a.Floats(source) + corner, width));
    }
  }
}

}  // namespace

// Dropout. Inputs: x (N, C, H, W); noise (N * C) int32 of each plane; positions (H * W) int32, or (1) where planes are
// dropped as a whole; options (2): threshold, factor of what is kept. Output: y. Its gradient is the same operator.
MINDSEG_OPERATOR(mindseg_dropout) {
  const Arguments& a = arguments;
  if (a.count != 5 || !SamePlanes(a, 0, 4) || !a.Is(1, 1, "int32") || !a.Is(2, 1, "int32") || !a.Is(3, 1, "float32") ||
      a.Dim(1, 0) != PlanesOf(a, 0) || a.Dim(3, 0) != 2) {
    return kWrongArguments;
  }
  const int64_t pixels = a.Dim(0, 2) * a.Dim(0, 3);
  const bool whole = a.Dim(2, 0) == 1;
  if (!whole && a.Dim(2, 0) != pixels) return kWrongArguments;
  const auto threshold = static_cast<int32_t>(a.Floats(3)[0]);
#pragma omp parallel for schedule(static) num_threads(Threads())
  for (int64_t plane = 0; plane < PlanesOf(a, 0); ++plane) {
    const float* x = a.Floats(0) + plane * pixels;
    float* y = a.Output(4) + plane * pixels;
    const int32_t noise = a.Ints(1)[plane];
    if (whole) {
      Scale(x, y, pixels, (noise & kLow22) >= threshold ? a.Floats(3)[1] : 0.0f);
    } else {
      // 15 bits, the highest of them set, so that products with positions are spread over all numbers of 22 bits.
      DropValues(x, y, pixels, a.Ints(2), (noise & 0x7fff) | 0x4000, threshold, a.Floats(3)[1]);
    }
  }
  return kOk;
}

// Repeats each pixel. Input: x (N, C, h, w). Output: y (N, C, factor * h, factor * w).
MINDSEG_OPERATOR(mindseg_resize_nearest) {
  const Arguments& a = arguments;
  if (a.count != 2) return kWrongArguments;
  const Enlargement e(a, 0, 1);
  if (e.factor == 0) return kWrongArguments;
#pragma omp parallel for schedule(static) num_threads(Threads())
  for (int64_t row = 0; row < PlanesOf(a, 0) * e.height; ++row) {
    const float* x = a.Floats(0) + row * e.width;
    const int64_t length = e.factor * e.width;
    float* y = a.Output(1) + row * e.factor * length;
    for (int64_t i = 0; i < e.width; ++i) std::fill(y + i * e.factor, y + (i + 1) * e.factor, x[i]);
    for (int64_t i = 1; i < e.factor; ++i) std::copy(y, y + length, y + i * length);
  }
  return kOk;
}

// Gradient of mindseg_resize_nearest. Input: dy. Output: dx, the sums over the windows.
MINDSEG_OPERATOR(mindseg_resize_nearest_grad) {
  const Arguments& a = arguments;
  if (a.count != 2) return kWrongArguments;
  const Enlargement e(a, 1, 0);
  if (e.factor == 0) return kWrongArguments;
#pragma omp parallel for schedule(static) num_threads(Threads())
  for (int64_t row = 0; row < PlanesOf(a, 0) * e.height; ++row) {
    const int64_t length = e.factor * e.width;
    const float* dy = a.Floats(0) + row * e.factor * length;
    for (int64_t x = 0; x < e.width; ++x) {
      float sum = 0;
      for (int64_t i = 0; i < e.factor * e.factor; ++i) {
        sum += dy[i / e.factor * length + x * e.factor + i % e.factor];
      }
      a.Output(1)[row * e.width + x] = sum;
    }
  }
  return kOk;
}

// Largest value of each 2x2 window. Input: x (N, C, H, W). Output: y (N, C, H / 2, W / 2).
MINDSEG_OPERATOR(mindseg_max_pool) {
  const Arguments& a = arguments;
  if (a.count != 2 || !HasWindows(a, 1, 0)) return kWrongArguments;
  ForMaxima(a, 0, [&a](int64_t window, int64_t place) { a.Output(1)[window] = a.Floats(0)[place]; });
  return kOk;
}

// Puts values where each 2x2 window of another tensor has its first maximum, and 0 elsewhere. That is the gradient of
// max-pooling, too. Inputs: values (N, C, H / 2, W / 2), source (N, C, H, W). Output: (N, C, H, W).
MINDSEG_OPERATOR(mindseg_unpool) {
  const Arguments& a = arguments;
  if (a.count != 3 || !HasWindows(a, 0, 1) || a.Size(1) != a.Size(2)) return kWrongArguments;
  std::fill(a.Output(2), a.Output(2) + a.Size(2), 0.0f);
  ForMaxima(a, 1, [&a](int64_t window, int64_t place) { a.Output(2)[place] = a.Floats(0)[window]; });
  return kOk;
}

// Gradient of mindseg_unpool. Inputs: dy (N, C, H, W), source (N, C, H, W). Output: dvalues (N, C, H / 2, W / 2).
MINDSEG_OPERATOR(mindseg_unpool_grad) {
  const Arguments& a = arguments;
  if (a.count != 3 || !HasWindows(a, 2, 1) || a.Size(0) != a.Size(1)) return kWrongArguments;
  ForMaxima(a, 1, [&a](int64_t window, int64_t place) { a.Output(2)[window] = a.Floats(0)[place]; });
  return kOk;
}

}  // namespace mindseg
