// Sizes of convolutions, and the copies that they read.
//
// The rows that a band of result rows needs are copied with their border of zeros, one behind the other, so that each
// element (tap) of the kernel is a fixed offset in that copy:
//   result[o][q] = sum over channels c and taps t of weight[o][c][t] * copy[c][offset[t] + q].
// q runs over rows of the copy's width, of which the last columns are meaningless and dropped.
#ifndef MINDSEG_CPU_KERNELS_CSRC_CONVOLUTION_H_
#define MINDSEG_CPU_KERNELS_CSRC_CONVOLUTION_H_

#include <algorithm>
#include <utility>
#include <vector>

#include "convolution_loops.h"
#include "operator.h"

namespace mindseg {

constexpr int64_t kCopied = 128 * 1024;  // values in a copy: half of the L2 cache
constexpr int64_t kTasks = 8;  // tasks wanted at least; no number of threads, so that bits do not depend on it

inline void Grow(int64_t size, std::vector<float>* values) {
  if (static_cast<int64_t>(values->size()) < size) values->resize(static_cast<size_t>(size));
}

inline int64_t CeilDiv(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

inline int64_t FloorDiv(int64_t a, int64_t b) { return -CeilDiv(-a, b); }

// A place of the kernel: its number, and what it reads. Row y of the result reads row (y + row) * step + row_phase.
struct Tap {
  int64_t number;
  int64_t row;
  int64_t column;
  int64_t row_phase;
  int64_t column_phase;
};

// How rows are copied, and what becomes of the taps' places.
struct Layout {
  std::vector<Tap> taps;
  int64_t step;     // pixels that lie this far apart are neighbours in the copy
  int64_t columns;  // of the result
  int64_t first_row = 0;
  int64_t first_column = 0;
  int64_t halo = 0;  // rows of the copy beyond those of the result
  int64_t width;     // of a row in the copy

  Layout(std::vector<Tap> found, int64_t distance, int64_t result_columns)
      : taps(std::move(found)), step(distance), columns(result_columns), width(result_columns) {
    if (taps.empty()) return;
    const auto [top, bottom] =
        std::minmax_element(taps.begin(), taps.end(), [](const Tap& a, const Tap& b) { return a.row < b.row; });
    const auto [left, right] =
        std::minmax_element(taps.begin(), taps.end(), [](const Tap& a, const Tap& b) { return a.column < b.column; });
    first_row = top->row;
    first_column = left->column;
    halo = bottom->row - first_row;
    width = columns + right->column - first_column;
  }

  int64_t Plane(int64_t rows) const { return step * step * (rows + halo) * width; }

  // Rows of a result whose copy of some channels fits.
  int64_t RowsThatFit(int64_t channels, int64_t rows) const {
    return std::clamp<int64_t>(kCopied / (channels * step * step * width) - halo, 1, rows);
  }

  // Makes room for a copy of some channels. What is read behind it does not count, but must be numbers.
  void Reserve(int64_t channels, int64_t rows, std::vector<float>* copy) const {
    const int64_t size = channels * Plane(rows);
    const int64_t slack = width - columns + kMostPlaces;
    Grow(size + slack, copy);
    std::fill(copy->begin() + size, copy->begin() + size + slack, 0.0f);
  }

  std::vector<int64_t> Offsets(int64_t rows) const {
    std::vector<int64_t> offsets;
    for (const Tap& t : taps) {
      const int64_t phase = (t.row_phase * step + t.column_phase) * (rows + halo);
      offsets.push_back((phase + t.row - first_row) * width + t.column - first_column);
    }
    return offsets;
  }

  // Copies what rows [first, first + rows) of the result read of one channel.
  void Copy(const float* plane, int64_t height, int64_t source_width, int64_t first, int64_t rows, float* out) const {
    for (int64_t phase = 0; phase < step * step; ++phase) {
      for (int64_t k = 0; k < rows + halo; ++k, out += width) {
        const int64_t y = (first + first_row + k) * step + phase / step;
        if (y < 0 || y >= height) {
          std::fill(out, out + width, 0.0f);
        } else {
          CopyRow(plane + y * source_width, source_width, first_column * step + phase % step, out);
        }
      }
    }
  }

  void CopyRow(const float* row, int64_t source_width, int64_t start, float* out) const {
    const int64_t before = std::clamp<int64_t>(CeilDiv(-start, step), 0, width);
    const int64_t inside = std::clamp(CeilDiv(source_width - start, step), before, width);
    std::fill(out, out + before, 0.0f);
    if (step == 1) {
      std::copy(row + start + before, row + start + inside, out + before);
    } else {
      for (int64_t m = before; m < inside; ++m) out[m] = row[start + m * step];
    }
    std::fill(out + inside, out + width, 0.0f);
  }
};

// The sizes of one tensor of feature maps.
struct Features {
  int64_t images;
  int64_t channels;
  int64_t height;
  int64_t width;
};

// Sizes of a convolution; geometry holds stride, dilation, and the rows and columns of zeros above and to the left.
struct Convolution {
  Features x;
  Features y;
  int64_t kernel_height;
  int64_t kernel_width;
  int64_t stride;
  int64_t dilation;
  int64_t top;
  int64_t left;

  // Argument 1 holds the weights, 2 the geometry; i and k have the shapes of x and y.
  explicit Convolution(const Arguments& a, int i = 0, int k = 3)
      : x{a.Dim(i, 0), a.Dim(i, 1), a.Dim(i, 2), a.Dim(i, 3)},
        y{a.Dim(k, 0), a.Dim(k, 1), a.Dim(k, 2), a.Dim(k, 3)},
        kernel_height(a.Dim(1, 2)),
        kernel_width(a.Dim(1, 3)),
        stride(a.Ints(2)[0]),
        dilation(a.Ints(2)[1]),
        top(a.Ints(2)[2]),
        left(a.Ints(2)[3]) {}

  int64_t Taps() const { return kernel_height * kernel_width; }

  Layout Forward() const {
    std::vector<Tap> taps;
    for (int64_t t = 0; t < Taps(); ++t) {
      const int64_t row = t / kernel_width * dilation - top;
      const int64_t column = t % kernel_width * dilation - left;
      taps.push_back({t, FloorDiv(row, stride), FloorDiv(column, stride), row - FloorDiv(row, stride) * stride,
                      column - FloorDiv(column, stride) * stride});
    }
    return {taps, stride, y.width};
  }

  // For the gradient of the input's pixels whose row and column have these remainders modulo the stride.
  Layout Backward(int64_t row_phase, int64_t column_phase) const {
    std::vector<Tap> taps;
    for (int64_t t = 0; t < Taps(); ++t) {
      const int64_t row = row_phase + top - t / kernel_width * dilation;
      const int64_t column = column_phase + left - t % kernel_width * dilation;
      if (row % stride == 0 && column % stride == 0) taps.push_back({t, row / stride, column / stride, 0, 0});
    }
    return {taps, 1, CeilDiv(x.width - column_phase, stride)};
  }
};

// Tests arguments; `x` and `y` are the numbers of those with the shapes of x and y.
inline bool IsConvolution(const Arguments& a, int count, int x = 0, int y = 3) {
  return a.count == count && a.Is(x, 4, "float32") && a.Is(1, 4, "float32") && a.Is(2, 1, "int32") &&
         a.Is(y, 4, "float32") && a.Dim(2, 0) == 4 && a.Dim(x, 0) == a.Dim(y, 0) && a.Dim(x, 1) == a.Dim(1, 1) &&
         a.Dim(y, 1) == a.Dim(1, 0) && a.Ints(2)[0] > 0 && a.Ints(2)[1] > 0;
}

}  // namespace mindseg

#endif  // MINDSEG_CPU_KERNELS_CSRC_CONVOLUTION_H_
