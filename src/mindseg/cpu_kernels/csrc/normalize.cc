// BatchNorm with an activation, and activations alone. Each reads its input as seldom as possible: twice forward and
// twice backward while training, where MindSpore's BatchNorm and a PReLU of plain operators read and write it ten
// times.
//
// Every activation here is  f(z) = z > 0 ? min(z, cap) : slope * z.
//   identity: slope 1, no cap; ReLU: slope 0; ReLU6: slope 0, cap 6; PReLU: a slope for all channels, or one for each.
#include <algorithm>
#include <cmath>
#include <vector>

#include "operator.h"

namespace mindseg {
namespace {

constexpr int64_t kBlock = 4096;        // values that are summed up in float32, then added in float64
constexpr int64_t kParallel = 1 << 15;  // fewer values are not worth the start of threads

// What turns the values of one channel into results.
struct Channel {
  float scale;
  float shift;
  float slope;
  float cap;
};

MINDSEG_VECTOR void Activate(const float* x, float* y, int64_t count, Channel c) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float z = c.scale * x[i] + c.shift;
    y[i] = z > 0 ? std::min(z, c.cap) : c.slope * z;
  }
}

MINDSEG_VECTOR float Sum(const float* x, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += x[i];
  return sum;
}

MINDSEG_VECTOR float SquaredDistances(const float* x, int64_t count, float mean) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += (x[i] - mean) * (x[i] - mean);
  return sum;
}

// Sums over values of the gradient dz of f's input, of dz * x', and of the slope's gradient.
struct Sums {
  double dz = 0;
  double dz_x = 0;
  double slope = 0;
};

MINDSEG_VECTOR void AddSums(const float* x, const float* dy, int64_t count, Channel c, float mean, float inverse,
                            Sums* sums) {
  float dz = 0;
  float dz_x = 0;
  float slope = 0;
#pragma omp simd reduction(+ : dz, dz_x, slope)
  for (int64_t i = 0; i < count; ++i) {
    const float z = c.scale * x[i] + c.shift;
    const float d = dy[i] * (z > 0 ? (z < c.cap ? 1.0f : 0.0f) : c.slope);
    dz += d;
    dz_x += d * ((x[i] - mean) * inverse);
    slope += z > 0 ? 0.0f : dy[i] * z;
  }
  sums->dz += dz;
  sums->dz_x += dz_x;
  sums->slope += slope;
}

// dx = scale * dz - factor * (x - mean) - constant
MINDSEG_VECTOR void InputGradient(const float* x, const float* dy, float* dx, int64_t count, Channel c, float mean,
                                  float factor, float constant) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float z = c.scale * x[i] + c.shift;
    const float d = dy[i] * (z > 0 ? (z < c.cap ? 1.0f : 0.0f) : c.slope);
    dx[i] = c.scale * d - factor * (x[i] - mean) - constant;
  }
}

// Mean and sum of squared distances from it, block by block (Chan, Golub and LeVeque, 1979).
void AddMoments(const float* x, int64_t count, double* seen, double* mean, double* squares) {
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t size = std::min(kBlock, count - start);
    const double block_mean = Sum(x + start, size) / static_cast<double>(size);
    const double distance = block_mean - *mean;
    const double total = *seen + static_cast<double>(size);
    *squares += SquaredDistances(x + start, size, static_cast<float>(block_mean)) +
                distance * distance * *seen * static_cast<double>(size) / total;
    *mean += distance * static_cast<double>(size) / total;
    *seen = total;
  }
}

Planes PlanesOf(const Arguments& a, int i) { return {a.Dim(i, 0), a.Dim(i, 1), a.Dim(i, 2) * a.Dim(i, 3)}; }

Sums SumsOfChannel(const float* x, const float* dy, const Planes& p, int64_t channel, Channel c, float mean,
                   float inverse) {
  Sums sums;
  for (int64_t image = 0; image < p.images; ++image) {
    const int64_t first = (image * p.channels + channel) * p.pixels;
    for (int64_t start = 0; start < p.pixels; start += kBlock) {
      AddSums(x + first + start, dy + first + start, std::min(kBlock, p.pixels - start), c, mean, inverse, &sums);
    }
  }
  return sums;
}

// The gradient of a slope that all channels share is the sum of theirs.
void StoreSlopes(const std::vector<double>& slopes, int64_t count, float* out) {
  if (count > 1) {
    for (size_t i = 0; i < slopes.size(); ++i) out[i] = static_cast<float>(slopes[i]);
    return;
  }
  double sum = 0;
  for (const double slope : slopes) sum += slope;
  out[0] = static_cast<float>(sum);
}

bool IsFeatureMap(const Arguments& a, int i) { return a.Is(i, 4, "float32"); }

bool AreChannels(const Arguments& a, int i, int64_t channels) {
  return a.Is(i, 1, "float32") && a.Dim(i, 0) == channels;
}

// Inputs 1 and 2 have a number for each channel; the slopes, input 3, likewise, or one for all.
bool AreParameters(const Arguments& a, int64_t channels) {
  return AreChannels(a, 1, channels) && AreChannels(a, 2, channels) &&
         (AreChannels(a, 3, channels) || AreChannels(a, 3, 1));
}

}  // namespace

// Inputs: x (N, C, H, W), scale (C), shift (C), slopes (1) or (C), cap (1). Output: y = f(scale * x + shift).
MINDSEG_OPERATOR(mindseg_activate) {
  const Arguments& a = arguments;
  if (a.count != 6 || !IsFeatureMap(a, 0)) return kWrongArguments;
  const Planes p = PlanesOf(a, 0);
  if (!AreParameters(a, p.channels)) return kWrongArguments;
  const int64_t step = a.Dim(3, 0) > 1 ? 1 : 0;
#pragma omp parallel for schedule(static) num_threads(Threads()) if (a.Size(0) > kParallel)
  for (int64_t plane = 0; plane < p.images * p.channels; ++plane) {
    const int64_t c = plane % p.channels;
    Activate(a.Floats(0) + plane * p.pixels, a.Output(5) + plane * p.pixels, p.pixels,
             {a.Floats(1)[c], a.Floats(2)[c], a.Floats(3)[c * step], a.Floats(4)[0]});
  }
  return kOk;
}

// Gradients of mindseg_activate. Inputs: its own, then dy. Outputs: dx, dscale (C), dshift (C), dslopes.
MINDSEG_OPERATOR(mindseg_activate_grad) {
  const Arguments& a = arguments;
  if (a.count != 10 || !IsFeatureMap(a, 0) || !IsFeatureMap(a, 5)) return kWrongArguments;
  const Planes p = PlanesOf(a, 0);
  if (!AreParameters(a, p.channels)) return kWrongArguments;
  const int64_t step = a.Dim(3, 0) > 1 ? 1 : 0;
  std::vector<double> slopes(static_cast<size_t>(p.channels));
#pragma omp parallel for schedule(static) num_threads(Threads()) if (a.Size(0) > kParallel)
  for (int64_t c = 0; c < p.channels; ++c) {
    const Channel channel{a.Floats(1)[c], a.Floats(2)[c], a.Floats(3)[c * step], a.Floats(4)[0]};
    const Sums sums = SumsOfChannel(a.Floats(0), a.Floats(5), p, c, channel, 0, 1);
    a.Output(7)[c] = static_cast<float>(sums.dz_x);
    a.Output(8)[c] = static_cast<float>(sums.dz);
    slopes[static_cast<size_t>(c)] = sums.slope;
    for (int64_t image = 0; image < p.images; ++image) {
      const int64_t first = (image * p.channels + c) * p.pixels;
      InputGradient(a.Floats(0) + first, a.Floats(5) + first, a.Output(6) + first, p.pixels, channel, 0, 0, 0);
    }
  }
  StoreSlopes(slopes, a.Dim(3, 0), a.Output(9));
  return kOk;
}

// BatchNorm of a training batch, with an activation. Inputs: x (N, C, H, W), gamma (C), beta (C), slopes (1) or (C),
// options (2): epsilon, cap. Outputs: y, mean (C), 1 / sqrt(variance + epsilon) (C), unbiased variance (C).
MINDSEG_OPERATOR(mindseg_batch_norm) {
  const Arguments& a = arguments;
  if (a.count != 9 || !IsFeatureMap(a, 0)) return kWrongArguments;
  const Planes p = PlanesOf(a, 0);
  if (!AreParameters(a, p.channels)) return kWrongArguments;
  const int64_t step = a.Dim(3, 0) > 1 ? 1 : 0;
#pragma omp parallel for schedule(static) num_threads(Threads()) if (a.Size(0) > kParallel)
  for (int64_t c = 0; c < p.channels; ++c) {
    double seen = 0;
    double mean = 0;
    double squares = 0;
    for (int64_t image = 0; image < p.images; ++image) {
      AddMoments(a.Floats(0) + (image * p.channels + c) * p.pixels, p.pixels, &seen, &mean, &squares);
    }
    const double inverse = 1 / std::sqrt(squares / seen + a.Floats(4)[0]);
    a.Output(6)[c] = static_cast<float>(mean);
    a.Output(7)[c] = static_cast<float>(inverse);
    a.Output(8)[c] = static_cast<float>(squares / (seen - 1));
    const double scale = a.Floats(1)[c] * inverse;
    const Channel channel{static_cast<float>(scale), static_cast<float>(a.Floats(2)[c] - mean * scale),
                          a.Floats(3)[c * step], a.Floats(4)[1]};
    for (int64_t image = 0; image < p.images; ++image) {
      const int64_t first = (image * p.channels + c) * p.pixels;
      Activate(a.Floats(0) + first, a.Output(5) + first, p.pixels, channel);
    }
  }
  return kOk;
}

// Gradients of mindseg_batch_norm. Inputs: its own, mean (C), 1 / sqrt(variance + epsilon) (C), dy.
// Outputs: dx, dgamma (C), dbeta (C), dslopes.
MINDSEG_OPERATOR(mindseg_batch_norm_grad) {
  const Arguments& a = arguments;
  if (a.count != 12 || !IsFeatureMap(a, 0) || !IsFeatureMap(a, 7)) return kWrongArguments;
  const Planes p = PlanesOf(a, 0);
  if (!AreParameters(a, p.channels) || !AreChannels(a, 5, p.channels) || !AreChannels(a, 6, p.channels)) {
    return kWrongArguments;
  }
  const int64_t step = a.Dim(3, 0) > 1 ? 1 : 0;
  std::vector<double> slopes(static_cast<size_t>(p.channels));
#pragma omp parallel for schedule(static) num_threads(Threads()) if (a.Size(0) > kParallel)
  for (int64_t c = 0; c < p.channels; ++c) {
    const double mean = a.Floats(5)[c];
    const double inverse = a.Floats(6)[c];
    const double scale = a.Floats(1)[c] * inverse;
    const Channel channel{static_cast<float>(scale), static_cast<float>(a.Floats(2)[c] - mean * scale),
                          a.Floats(3)[c * step], a.Floats(4)[1]};
    const Sums sums =
        SumsOfChannel(a.Floats(0), a.Floats(7), p, c, channel, static_cast<float>(mean), static_cast<float>(inverse));
    a.Output(9)[c] = static_cast<float>(sums.dz_x);
    a.Output(10)[c] = static_cast<float>(sums.dz);
    slopes[static_cast<size_t>(c)] = sums.slope;
    // dx = scale * (dz - mean(dz) - x' * mean(dz * x')), x' = (x - mean) * inverse
    const double count = static_cast<double>(p.images * p.pixels);
    const auto factor = static_cast<float>(scale * inverse * sums.dz_x / count);
    const auto constant = static_cast<float>(scale * sums.dz / count);
    for (int64_t image = 0; image < p.images; ++image) {
      const int64_t first = (image * p.channels + c) * p.pixels;
      InputGradient(a.Floats(0) + first, a.Floats(7) + first, a.Output(8) + first, p.pixels, channel,
                    static_cast<float>(mean), factor, constant);
    }
  }
  StoreSlopes(slopes, a.Dim(3, 0), a.Output(11));
  return kOk;
}

}  // namespace mindseg
