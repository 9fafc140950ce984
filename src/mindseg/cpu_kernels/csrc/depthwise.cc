// Depthwise convolutions: each channel of the result reads one channel of the input. Those of oneDNN that MindSpore
// calls run at a few percent of the memory's speed.
#include "convolution.h"

namespace mindseg {
namespace {

constexpr int64_t kNine = 9;       // taps of a 3x3 kernel, which are added in one pass
constexpr int64_t kPlaces = 4096;  // products that are added in float32

// y[q] = sum over taps of weights[t] * x[t][q], added to what y holds if `add`.
MINDSEG_VECTOR void AddTaps(const float* const* x, const float* weights, int64_t taps, int64_t places, bool add,
                            float* y) {
  if (!add) std::fill(y, y + places, 0.0f);
  int64_t t = 0;
  for (; t + kNine <= taps; t += kNine) {
    const float *a = x[t], *b = x[t + 1], *c = x[t + 2], *d = x[t + 3], *e = x[t + 4], *f = x[t + 5], *g = x[t + 6],
                *h = x[t + 7], *i = x[t + 8];
    const float* w = weights + t;
#pragma omp simd
    for (int64_t q = 0; q < places; ++q) {
      y[q] += w[0] * a[q] + w[1] * b[q] + w[2] * c[q] + w[3] * d[q] + w[4] * e[q] + w[5] * f[q] + w[6] * g[q] +
              w[7] * h[q] + w[8] * i[q];
    }
  }
  for (; t < taps; ++t) {
    const float* a = x[t];
    const float w = weights[t];
#pragma omp simd
    for (int64_t q = 0; q < places; ++q) y[q] += w * a[q];
  }
}

// sums[t] += sum over q of x[t][q] * dy[q].
MINDSEG_VECTOR void AddDots(const float* const* x, const float* dy, int64_t taps, int64_t places, double* sums) {
  for (int64_t begin = 0; begin < places; begin += kPlaces) {
    const int64_t end = std::min(places, begin + kPlaces);
    int64_t t = 0;
    for (; t + 3 <= taps; t += 3) {
      const float *a = x[t], *b = x[t + 1], *c = x[t + 2];
      float sum0 = 0.0f;
      float sum1 = 0.0f;
      float sum2 = 0.0f;
#pragma omp simd reduction(+ : sum0, sum1, sum2)
      for (int64_t q = begin; q < end; ++q) {
        sum0 += a[q] * dy[q];
        sum1 += b[q] * dy[q];
        sum2 += c[q] * dy[q];
      }
      sums[t] += sum0;
      sums[t + 1] += sum1;
      sums[t + 2] += sum2;
    }
    for (; t < taps; ++t) {
      const float* a = x[t];
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t q = begin; q < end; ++q) sum += a[q] * dy[q];
      sums[t] += sum;
    }
  }
}

// A copy of one plane that a layout's taps read.
class TapsOf {
 public:
  // Copies what rows [first, first + rows) of the result read of a plane.
  void Copy(const Layout& layout, const float* plane, const Features& size, int64_t first, int64_t rows) {
    layout.Reserve(1, rows, &copy_);
    layout.Copy(plane, size.height, size.width, first, rows, copy_.data());
    pointers_.clear();
    for (const int64_t offset : layout.Offsets(rows)) pointers_.push_back(copy_.data() + offset);
  }

  const float* const* Pointers() const { return pointers_.data(); }

 private:
  std::vector<float> copy_;
  std::vector<const float*> pointers_;
};

std::vector<float> WeightsOf(const Layout& layout, const float* weights) {
  std::vector<float> chosen;
  for (const Tap& t : layout.taps) chosen.push_back(weights[t.number]);
  return chosen;
}

int64_t PixelsOf(const Features& size) { return size.height * size.width; }

void Forward(const Convolution& c, const float* x, const float* weights, float* y) {
  const Layout layout = c.Forward();
  const int64_t band = layout.RowsThatFit(1, c.y.height);
  const int64_t outputs = c.y.channels / c.x.channels;  // of each input channel
#pragma omp parallel num_threads(Threads())
  {
    TapsOf taps;
    std::vector<float> sums;
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < c.x.images * c.x.channels; ++plane) {
      for (int64_t first = 0; first < c.y.height; first += band) {
        const int64_t rows = std::min(band, c.y.height - first);
        taps.Copy(layout, x + plane * PixelsOf(c.x), c.x, first, rows);
        Grow(rows * layout.width, &sums);
        for (int64_t out = plane * outputs; out < (plane + 1) * outputs; ++out) {
          const std::vector<float> w = WeightsOf(layout, weights + out % c.y.channels * c.Taps());
          AddTaps(taps.Pointers(), w.data(), c.Taps(), rows * layout.width, false, sums.data());
          float* to = y + out * PixelsOf(c.y) + first * c.y.width;
          for (int64_t r = 0; r < rows; ++r) {
            std::copy_n(sums.data() + r * layout.width, c.y.width, to + r * c.y.width);
          }
        }
      }
    }
  }
}

// Computes the pixels of one plane of dx whose row and column have these remainders modulo the stride.
void InputGradientOf(const Convolution& c, const Layout& layout, int64_t row, int64_t column, int64_t plane,
                     const float* weights, const float* dy, TapsOf* taps, std::vector<float>* sums, float* dx) {
  const int64_t outputs = c.y.channels / c.x.channels;
  const int64_t all = CeilDiv(c.x.height - row, c.stride);
  const int64_t band = layout.RowsThatFit(1, all);
  for (int64_t first = 0; first < all; first += band) {
    const int64_t rows = std::min(band, all - first);
    Grow(rows * layout.width, sums);
    for (int64_t out = plane * outputs; out < (plane + 1) * outputs; ++out) {
      taps->Copy(layout, dy + out * PixelsOf(c.y), c.y, first, rows);
      const std::vector<float> w = WeightsOf(layout, weights + out % c.y.channels * c.Taps());
      AddTaps(taps->Pointers(), w.data(), static_cast<int64_t>(w.size()), rows * layout.width, out > plane * outputs,
              sums->data());
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* to = dx + plane * PixelsOf(c.x) + ((first + r) * c.stride + row) * c.x.width + column;
      const float* from = sums->data() + r * layout.width;
      for (int64_t q = 0; q < layout.columns; ++q) to[q * c.stride] = from[q];
    }
  }
}

void InputGradient(const Convolution& c, const float* weights, const float* dy, float* dx) {
  std::vector<Layout> layouts;
  for (int64_t phase = 0; phase < c.stride * c.stride; ++phase) {
    layouts.push_back(c.Backward(phase / c.stride, phase % c.stride));
  }
#pragma omp parallel num_threads(Threads())
  {
    TapsOf taps;
    std::vector<float> sums;
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < c.x.images * c.x.channels; ++plane) {
      for (int64_t phase = 0; phase < c.stride * c.stride; ++phase) {
        const Layout& layout = layouts[static_cast<size_t>(phase)];
        if (phase / c.stride >= c.x.height || layout.columns <= 0) continue;
        InputGradientOf(c, layout, phase / c.stride, phase % c.stride, plane, weights, dy, &taps, &sums, dx);
      }
    }
  }
}

void WeightGradient(const Convolution& c, const float* x, const float* dy, float* dweights) {
  const Layout layout = c.Forward();
  const int64_t band = layout.RowsThatFit(1, c.y.height);
  const int64_t outputs = c.y.channels / c.x.channels;
#pragma omp parallel num_threads(Threads())
  {
    TapsOf taps;
    std::vector<float> padded;  // rows of dy, as wide as those of the copy
#pragma omp for schedule(static)
    for (int64_t out = 0; out < c.y.channels; ++out) {
      std::vector<double> sums(static_cast<size_t>(c.Taps()));
      for (int64_t image = 0; image < c.x.images; ++image) {
        for (int64_t first = 0; first < c.y.height; first += band) {
          const int64_t rows = std::min(band, c.y.height - first);
          taps.Copy(layout, x + (image * c.x.channels + out / outputs) * PixelsOf(c.x), c.x, first, rows);
          padded.assign(static_cast<size_t>(rows * layout.width), 0.0f);
          const float* from = dy + (image * c.y.channels + out) * PixelsOf(c.y) + first * c.y.width;
          for (int64_t r = 0; r < rows; ++r) {
            std::copy_n(from + r * c.y.width, c.y.width, padded.data() + r * layout.width);
          }
          AddDots(taps.Pointers(), padded.data(), c.Taps(), rows * layout.width, sums.data());
        }
      }
      std::copy(sums.begin(), sums.end(), dweights + out * c.Taps());
    }
  }
}

bool IsDepthwise(const Arguments& a, int count) {
  return a.count == count && a.Is(0, 4, "float32") && a.Is(1, 4, "float32") && a.Is(2, 1, "int32") &&
         a.Is(3, 4, "float32") && a.Dim(2, 0) == 4 && a.Dim(0, 0) == a.Dim(3, 0) && a.Dim(1, 1) == 1 &&
         a.Dim(1, 0) == a.Dim(3, 1) && a.Dim(0, 1) > 0 && a.Dim(3, 1) % a.Dim(0, 1) == 0 && a.Ints(2)[0] > 0 &&
         a.Ints(2)[1] > 0;
}

}  // namespace

// Inputs: x (N, C, H, W), weights (O, 1, kernel height, kernel width) with O a multiple of C, geometry (4) int32, see
// Convolution. Output: y (N, O, H', W').
MINDSEG_OPERATOR(mindseg_depthwise_convolution) {
  const Arguments& a = arguments;
  if (!IsDepthwise(a, 4)) return kWrongArguments;
  Forward(Convolution(a), a.Floats(0), a.Floats(1), a.Output(3));
  return kOk;
}

// Gradient of the input. Inputs: those of mindseg_depthwise_convolution, and dy (N, O, H', W'). Output: dx (N, C, H,
// W).
MINDSEG_OPERATOR(mindseg_depthwise_convolution_grad_input) {
  const Arguments& a = arguments;
  if (!IsDepthwise(a, 5)) return kWrongArguments;
  InputGradient(Convolution(a), a.Floats(1), a.Floats(3), a.Output(4));
  return kOk;
}

// Gradient of the weights, from the same inputs. Output: as the weights.
MINDSEG_OPERATOR(mindseg_depthwise_convolution_grad_weights) {
  const Arguments& a = arguments;
  if (!IsDepthwise(a, 5)) return kWrongArguments;
  WeightGradient(Convolution(a), a.Floats(0), a.Floats(3), a.Output(4));
  return kOk;
}

}  // namespace mindseg
