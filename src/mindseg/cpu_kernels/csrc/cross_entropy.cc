// Softmax cross entropy of logits that are first resized bilinearly to the size of the label. The resized logits are
// made a piece of a row at a time, so they never take memory; the gradient makes them again.
#include <algorithm>
#include <cmath>
#include <vector>

#include "operator.h"
#include "softmax.h"

namespace mindseg {
namespace {

constexpr int64_t kPiece = 256;  // pixels of a row that are worked on at a time: their logits stay in the L1 cache

enum Rule { kBorders = 0, kCorners = 1, kTopLeft = 2 };  // what coincides when an axis is resized

// For each pixel of an axis after the resize: the two pixels before, and the second one's weight.
struct Axis {
  std::vector<int32_t> first;
  std::vector<int32_t> second;
  std::vector<float> weight;

  Axis(int64_t count, int64_t full, int64_t small, int rule)
      : first(static_cast<size_t>(count)), second(first), weight(static_cast<size_t>(count)) {
    for (int64_t i = 0; i < count; ++i) {
      const double ratio = static_cast<double>(small) / static_cast<double>(full);
      const double inner = static_cast<double>(small - 1) / static_cast<double>(std::max<int64_t>(full - 1, 1));
      double place = static_cast<double>(i) * (rule == kCorners ? inner : ratio);
      if (rule == kBorders) place = std::max((static_cast<double>(i) + 0.5) * ratio - 0.5, 0.0);
      place = std::min(place, static_cast<double>(small - 1));
      const auto k = static_cast<size_t>(i);
      first[k] = static_cast<int32_t>(place);
      second[k] = std::min(first[k] + 1, static_cast<int32_t>(small - 1));
      weight[k] = static_cast<float>(place - first[k]);
    }
  }
};

// One image's logits (C, h, w) and its way to full rows.
struct Logits {
  const float* data;
  int64_t classes;
  int64_t height;
  int64_t width;
};

// Mixes two rows of each class, (C, w).
MINDSEG_VECTOR void MixRows(const Logits& l, int64_t first, int64_t second, float weight, float* mixed) {
  for (int64_t c = 0; c < l.classes; ++c) {
    const float* above = l.data + (c * l.height + first) * l.width;
    const float* below = l.data + (c * l.height + second) * l.width;
    float* out = mixed + c * l.width;
#pragma omp simd
    for (int64_t x = 0; x < l.width; ++x) out[x] = above[x] + weight * (below[x] - above[x]);
  }
}

// Resizes a piece of a row, (C, w) to (C, kPiece).
MINDSEG_VECTOR void Widen(const float* mixed, int64_t classes, int64_t width, const int32_t* first,
                          const int32_t* second, const float* weight, int64_t count, float* piece) {
  for (int64_t c = 0; c < classes; ++c) {
    const float* in = mixed + c * width;
    float* out = piece + c * kPiece;
#pragma omp simd
    for (int64_t x = 0; x < count; ++x) out[x] = in[first[x]] + weight[x] * (in[second[x]] - in[first[x]]);
  }
}

// Turns logits (C, kPiece) into powers exp(z - highest); gives the highest logit, and the sum of all powers but the
// largest, which is 1. So the logarithm of the whole sum keeps its digits where one class is almost certain.
MINDSEG_VECTOR void Powers(float* piece, int64_t classes, int64_t count, float* highest, float* rest) {
  float left_out[kPiece];
  ColumnMaxima(piece, classes, kPiece, count, highest);
  std::fill(rest, rest + count, 0.0f);
  std::fill(left_out, left_out + count, 0.0f);
  for (int64_t c = 0; c < classes; ++c) {
    float* z = piece + c * kPiece;
#pragma omp simd
    for (int64_t x = 0; x < count; ++x) {
      z[x] = Exp(z[x] - highest[x]);
      const bool leave = z[x] == 1.0f && left_out[x] == 0.0f;
      rest[x] += leave ? 0.0f : z[x];
      left_out[x] = leave ? 1.0f : left_out[x];
    }
  }
}

// Gradient of the logits in place of the powers: weight * (power / sum - [class is the label]).
MINDSEG_VECTOR void Gradients(float* piece, int64_t classes, int64_t count, const float* rest, const float* weight,
                              const int32_t* label) {
  float factor[kPiece];
#pragma omp simd
  for (int64_t x = 0; x < count; ++x) factor[x] = weight[x] / (1.0f + rest[x]);
  for (int64_t c = 0; c < classes; ++c) {
    float* z = piece + c * kPiece;
#pragma omp simd
    for (int64_t x = 0; x < count; ++x) z[x] = z[x] * factor[x] - (label[x] == c ? weight[x] : 0.0f);
  }
}

MINDSEG_VECTOR void AddScaled(const float* in, float factor, int64_t count, float* sum) {
#pragma omp simd
  for (int64_t x = 0; x < count; ++x) sum[x] += factor * in[x];
}

// Adds each pixel of a full row (W) to the two pixels of a small one (w) that it was made from.
void Narrow(const float* row, const Axis& axis, int64_t count, float* small) {
  for (int64_t x = 0; x < count; ++x) {
    const auto k = static_cast<size_t>(x);
    small[axis.first[k]] += (1.0f - axis.weight[k]) * row[x];
    small[axis.second[k]] += axis.weight[k] * row[x];
  }
}

// Sizes of one call; label (N, H, W), full size of the resize, corner rule.
struct Job {
  int64_t images;
  int64_t classes;
  int64_t small_height;
  int64_t small_width;
  int64_t height;
  int64_t width;
  bool exact;  // the logits are as large as they shall be
  Axis rows;
  Axis columns;

  explicit Job(const Arguments& a)
      : images(a.Dim(0, 0)),
        classes(a.Dim(0, 1)),
        small_height(a.Dim(0, 2)),
        small_width(a.Dim(0, 3)),
        height(a.Dim(1, 1)),
        width(a.Dim(1, 2)),
        exact(a.Ints(2)[0] == small_height && a.Ints(2)[1] == small_width),
        rows(height, a.Ints(2)[0], small_height, a.Ints(2)[2]),
        columns(width, a.Ints(2)[1], small_width, a.Ints(2)[2]) {}

  bool IsClass(int32_t label) const { return label >= 0 && label < classes; }

  Logits Image(const Arguments& a, int64_t image) const {
    return {a.Floats(0) + image * classes * small_height * small_width, classes, small_height, small_width};
  }
};

bool Fits(const Arguments& a, int count) {
  return a.count == count && a.Is(0, 4, "float32") && a.Is(1, 3, "int32") && a.Is(2, 1, "int32") && a.Dim(2, 0) == 3 &&
         a.Dim(0, 0) == a.Dim(1, 0) && a.Dim(1, 1) <= a.Ints(2)[0] && a.Dim(1, 2) <= a.Ints(2)[1];
}

// Buffers of one thread.
struct Scratch {
  std::vector<float> mixed;
  std::vector<float> piece;
  float highest[kPiece];
  float rest[kPiece];

  explicit Scratch(const Job& job)
      : mixed(static_cast<size_t>(job.classes * job.small_width)), piece(static_cast<size_t>(job.classes * kPiece)) {}
};

// Logits of the pixels of row `y` from `start` on; gives their number.
int64_t FillPiece(const Job& job, const Logits& logits, int64_t y, int64_t start, Scratch* scratch) {
  const int64_t count = std::min(kPiece, job.width - start);
  if (job.exact) {
    for (int64_t c = 0; c < job.classes; ++c) {
      const float* row = logits.data + (c * logits.height + y) * logits.width + start;
      std::copy(row, row + count, &scratch->piece[static_cast<size_t>(c * kPiece)]);
    }
    return count;
  }
  Widen(scratch->mixed.data(), job.classes, job.small_width, &job.columns.first[static_cast<size_t>(start)],
        &job.columns.second[static_cast<size_t>(start)], &job.columns.weight[static_cast<size_t>(start)], count,
        scratch->piece.data());
  return count;
}

void MixRow(const Job& job, const Logits& logits, int64_t y, Scratch* scratch) {
  if (job.exact) return;
  const auto k = static_cast<size_t>(y);
  MixRows(logits, job.rows.first[k], job.rows.second[k], job.rows.weight[k], scratch->mixed.data());
}

}  // namespace

// Inputs: logits (N, C, h, w); label (N, H, W) int32, a pixel whose label is no class has the loss 0; size (3) int32:
// height and width of the resized logits, of which the label covers the top left part, and the rule of their corners.
// Output: loss of each pixel (N, H, W).
MINDSEG_OPERATOR(mindseg_cross_entropy) {
  const Arguments& a = arguments;
  if (!Fits(a, 4)) return kWrongArguments;
  const Job job(a);
#pragma omp parallel num_threads(Threads())
  {
    Scratch scratch(job);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < job.images * job.height; ++row) {
      const Logits logits = job.Image(a, row / job.height);
      MixRow(job, logits, row % job.height, &scratch);
      for (int64_t start = 0; start < job.width; start += kPiece) {
        const int64_t count = FillPiece(job, logits, row % job.height, start, &scratch);
        const int32_t* label = a.Ints(1) + row * job.width + start;
        float* loss = a.Output(3) + row * job.width + start;
        float own[kPiece];
        for (int64_t x = 0; x < count; ++x) {
          own[x] = job.IsClass(label[x]) ? scratch.piece[static_cast<size_t>(label[x] * kPiece + x)] : 0.0f;
        }
        Powers(scratch.piece.data(), job.classes, count, scratch.highest, scratch.rest);
        for (int64_t x = 0; x < count; ++x) {
          loss[x] = job.IsClass(label[x]) ? std::log1p(scratch.rest[x]) + (scratch.highest[x] - own[x]) : 0.0f;
        }
      }
    }
  }
  return kOk;
}

namespace {

// Gradients of the logits of a piece, in the scratch; gives the number of pixels.
int64_t PieceGradients(const Arguments& a, const Job& job, int64_t row, int64_t start, Scratch* scratch) {
  const int64_t count = FillPiece(job, job.Image(a, row / job.height), row % job.height, start, scratch);
  const int32_t* label = a.Ints(1) + row * job.width + start;
  const float* dloss = a.Floats(3) + row * job.width + start;
  float weights[kPiece];
  for (int64_t x = 0; x < count; ++x) weights[x] = job.IsClass(label[x]) ? dloss[x] : 0.0f;
  Powers(scratch->piece.data(), job.classes, count, scratch->highest, scratch->rest);
  Gradients(scratch->piece.data(), job.classes, count, scratch->rest, weights, label);
  return count;
}

// The gradient where nothing is resized; rows and columns beyond the label get 0.
void ExactGradient(const Arguments& a, const Job& job) {
#pragma omp parallel num_threads(Threads())
  {
    Scratch scratch(job);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < job.images * job.height; ++row) {
      for (int64_t start = 0; start < job.width; start += kPiece) {
        const int64_t count = PieceGradients(a, job, row, start, &scratch);
        for (int64_t c = 0; c < job.classes; ++c) {
          const int64_t line = (row / job.height * job.classes + c) * job.small_height + row % job.height;
          const float* piece = &scratch.piece[static_cast<size_t>(c * kPiece)];
          std::copy(piece, piece + count, a.Output(4) + line * job.small_width + start);
        }
      }
    }
  }
}

// The gradient of the small logits. The rows of the label between the same two rows of logits make one task. It adds to
// both; two sets of sums keep tasks apart, and are added at the end.
void ResizedGradient(const Arguments& a, const Job& job) {
  std::vector<float> others(static_cast<size_t>(a.Size(0)));
#pragma omp parallel num_threads(Threads())
  {
    Scratch scratch(job);
    std::vector<float> upper(static_cast<size_t>(job.classes * job.width));
    std::vector<float> lower(upper);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < job.images * job.small_height; ++task) {
      const int64_t image = task / job.small_height;
      const auto source = static_cast<int32_t>(task % job.small_height);
      const auto range = std::equal_range(job.rows.first.begin(), job.rows.first.end(), source);
      std::fill(upper.begin(), upper.end(), 0.0f);
      std::fill(lower.begin(), lower.end(), 0.0f);
      for (auto place = range.first; place != range.second; ++place) {
        const int64_t y = place - job.rows.first.begin();
        const float weight = job.rows.weight[static_cast<size_t>(y)];
        MixRow(job, job.Image(a, image), y, &scratch);
        for (int64_t start = 0; start < job.width; start += kPiece) {
          const int64_t count = PieceGradients(a, job, image * job.height + y, start, &scratch);
          for (int64_t c = 0; c < job.classes; ++c) {
            const float* piece = &scratch.piece[static_cast<size_t>(c * kPiece)];
            const auto to = static_cast<size_t>(c * job.width + start);
            AddScaled(piece, 1.0f - weight, count, &upper[to]);
            AddScaled(piece, weight, count, &lower[to]);
          }
        }
      }
      for (int64_t c = 0; c < job.classes; ++c) {
        const int64_t line = (image * job.classes + c) * job.small_height + source;
        const auto from = static_cast<size_t>(c * job.width);
        Narrow(&upper[from], job.columns, job.width, a.Output(4) + line * job.small_width);
        // The last row has no successor; its weight is 0 then.
        if (source + 1 < job.small_height) {
          Narrow(&lower[from], job.columns, job.width, &others[static_cast<size_t>((line + 1) * job.small_width)]);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.Size(0); ++i) a.Output(4)[i] += others[static_cast<size_t>(i)];
  }
}

}  // namespace

// Gradient of mindseg_cross_entropy. Inputs: its own, then the gradient of each pixel's loss (N, H, W).
// Output: gradient of the logits (N, C, h, w).
MINDSEG_OPERATOR(mindseg_cross_entropy_grad) {
  const Arguments& a = arguments;
  if (!Fits(a, 5)) return kWrongArguments;
  const Job job(a);
  std::fill(a.Output(4), a.Output(4) + a.Size(0), 0.0f);
  job.exact ? ExactGradient(a, job) : ResizedGradient(a, job);
  return kOk;
}

}  // namespace mindseg
