// Sums of the probabilities of several passes over an image, at the size of the answer. The resized logits and the
// probabilities of a pass are made a tile at a time, so they never take memory.
#include <algorithm>
#include <vector>

#include "operator.h"
#include "softmax.h"

namespace mindseg {
namespace {

constexpr int64_t kRows = 32;    // of a tile
constexpr int64_t kPiece = 256;  // pixels of a tile's row: their logits stay in the L1 cache

// Resize of an axis: each value of the result is a sum of `taps` weighted values. Both arrays are (taps, length).
struct Axis {
  const int32_t* index;
  const float* weight;
  int64_t taps;
  int64_t length;
};

// One image's logits (C, h, w).
struct Logits {
  const float* data;
  int64_t classes;
  int64_t height;
  int64_t width;
};

// Makes `count` columns of the result, from `start` on, of row `y` of the logits, (C, kPiece).
MINDSEG_VECTOR void MixColumns(const Logits& l, int64_t y, const Axis& columns, int64_t start, int64_t count,
                               float* piece) {
  for (int64_t c = 0; c < l.classes; ++c) {
    const float* in = l.data + (c * l.height + y) * l.width;
    float* out = piece + c * kPiece;
    for (int64_t tap = 0; tap < columns.taps; ++tap) {
      const int32_t* index = columns.index + tap * columns.length + start;
      const float* weight = columns.weight + tap * columns.length + start;
      if (tap == 0) {
#pragma omp simd
        for (int64_t x = 0; x < count; ++x) out[x] = weight[x] * in[index[x]];
      } else {
#pragma omp simd
        for (int64_t x = 0; x < count; ++x) out[x] += weight[x] * in[index[x]];
      }
    }
  }
}

MINDSEG_VECTOR void Scale(const float* in, float factor, int64_t count, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = factor * in[i];
}

MINDSEG_VECTOR void AddScaled(const float* in, float factor, int64_t count, float* sum) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sum[i] += factor * in[i];
}

// Pieces of the rows of the logits that a tile needs, each made once.
class Pieces {
 public:
  Pieces(const Logits& logits, const Axis& columns, int64_t start, int64_t count)
      : logits_(logits), columns_(columns), start_(start), count_(count), pieces_(static_cast<size_t>(logits.height)) {}

  const float* Get(int64_t y) {
    std::vector<float>& piece = pieces_[static_cast<size_t>(y)];
    if (piece.empty()) {
      piece.resize(static_cast<size_t>(logits_.classes * kPiece));
      MixColumns(logits_, y, columns_, start_, count_, piece.data());
    }
    return piece.data();
  }

 private:
  const Logits logits_;
  const Axis& columns_;
  const int64_t start_;
  const int64_t count_;
  std::vector<std::vector<float>> pieces_;
};

// Makes row `y` of a tile, (C, kPiece).
void MixRows(Pieces* pieces, const Axis& rows, int64_t y, std::vector<float>* out) {
  const auto size = static_cast<int64_t>(out->size());
  for (int64_t tap = 0; tap < rows.taps; ++tap) {
    const float weight = rows.weight[tap * rows.length + y];
    const int32_t row = rows.index[tap * rows.length + y];
    if (tap == 0) {
      Scale(pieces->Get(row), weight, size, out->data());
    } else if (weight != 0.0f) {
      AddScaled(pieces->Get(row), weight, size, out->data());
    }
  }
}

// Adds the softmax of logits (C, kPiece), times `factor`, to `count` pixels of each class; those lie `plane` apart.
MINDSEG_VECTOR void AddSoftmax(float* piece, int64_t classes, int64_t count, float factor, int64_t plane, float* sums) {
  float highest[kPiece];
  float total[kPiece];
  ColumnMaxima(piece, classes, kPiece, count, highest);
  std::fill(total, total + count, 0.0f);
  for (int64_t c = 0; c < classes; ++c) {
    float* z = piece + c * kPiece;
#pragma omp simd
    for (int64_t x = 0; x < count; ++x) {
      z[x] = Exp((z[x] - highest[x]) * factor);
      total[x] += z[x];
    }
  }
#pragma omp simd
  for (int64_t x = 0; x < count; ++x) total[x] = 1.0f / total[x];
  for (int64_t c = 0; c < classes; ++c) {
    const float* z = piece + c * kPiece;
    float* sum = sums + c * plane;
#pragma omp simd
    for (int64_t x = 0; x < count; ++x) sum[x] += z[x] * total[x];
  }
}

bool IsAxis(const Arguments& a, int i, int64_t length) {
  return a.Is(i, 2, "int32") && a.Is(i + 1, 2, "float32") && a.Dim(i, 0) == a.Dim(i + 1, 0) && a.Dim(i, 0) > 0 &&
         a.Dim(i, 1) == length && a.Dim(i + 1, 1) == length;
}

bool Fits(const Arguments& a) {
  return a.count == 7 && a.Is(0, 4, "float32") && a.Is(6, 4, "float32") && a.Dim(0, 0) == a.Dim(6, 0) &&
         a.Dim(0, 1) == a.Dim(6, 1) && IsAxis(a, 1, a.Dim(6, 2)) && IsAxis(a, 3, a.Dim(6, 3)) && a.Is(5, 1, "float32");
}

}  // namespace

// Inputs: logits (N, C, h, w); numbers (K, H) int32 and weights (K, H) of the K rows that make each row of the result;
// likewise for its columns, (L, W); factor (1) on the logits before the softmax.
// Output: sums (N, C, H, W), to which the probabilities are added.
MINDSEG_OPERATOR(mindseg_add_probabilities) {
  const Arguments& a = arguments;
  if (!Fits(a)) return kWrongArguments;
  const int64_t classes = a.Dim(0, 1);
  const int64_t height = a.Dim(6, 2);
  const int64_t width = a.Dim(6, 3);
  const Axis rows{a.Ints(1), a.Floats(2), a.Dim(1, 0), height};
  const Axis columns{a.Ints(3), a.Floats(4), a.Dim(3, 0), width};
#pragma omp parallel num_threads(Threads())
  {
    std::vector<float> piece(static_cast<size_t>(classes * kPiece));
#pragma omp for collapse(3) schedule(static)
    for (int64_t image = 0; image < a.Dim(0, 0); ++image) {
      for (int64_t top = 0; top < height; top += kRows) {
        for (int64_t start = 0; start < width; start += kPiece) {
          const Logits logits{a.Floats(0) + image * classes * a.Dim(0, 2) * a.Dim(0, 3), classes, a.Dim(0, 2),
                              a.Dim(0, 3)};
          const int64_t count = std::min(kPiece, width - start);
          Pieces pieces(logits, columns, start, count);
          for (int64_t y = top; y < std::min(top + kRows, height); ++y) {
            MixRows(&pieces, rows, y, &piece);
            AddSoftmax(piece.data(), classes, count, a.Floats(5)[0], height * width,
                       a.Output(6) + (image * classes * height + y) * width + start);
          }
        }
      }
    }
  }
  return kOk;
}

}  // namespace mindseg
