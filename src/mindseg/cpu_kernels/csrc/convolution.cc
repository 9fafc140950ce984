// Convolutions without groups, and their gradients. oneDNN's convolutions of plain tensors first copy the input once for
// each element of the kernel, into memory that each layer keeps; these copy a few rows at a time.
//
// The rows that a band of result rows needs are copied with their border of zeros, one behind the other, so that each
// element (tap) of the kernel is a fixed offset in that copy:
//   result[o][q] = sum over channels c and taps t of weight[o][c][t] * copy[c][offset[t] + q].
// q runs over rows of the copy's width, of which the last columns are meaningless and dropped.
#include <algorithm>
#include <vector>

#include "operator.h"

namespace mindseg {
namespace {

constexpr int64_t kTile = 4;            // output channels that are computed together
constexpr int64_t kMostPlaces = 64;     // most results of a tile in one row, see Kernels
constexpr int64_t kMostPairs = 6;
constexpr int64_t kMostLanes = 16;
constexpr int64_t kCopied = 128 * 1024;  // values in a copy: half of the L2 cache

constexpr int64_t kTasks = 8;           // tasks wanted at least; no number of threads, so that bits do not depend on it
constexpr int64_t kBlock = 16;          // channels of each side that a task of the weights' gradient works on
constexpr int64_t kFewPixels = 1024;    // of a batch, for which the weights' gradient is summed another way
constexpr int64_t kVeryFewPixels = 256;  // and the input's gradient, too

void Grow(int64_t size, std::vector<float>* values) {
  if (static_cast<int64_t>(values->size()) < size) values->resize(static_cast<size_t>(size));
}

int64_t CeilDiv(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

int64_t FloorDiv(int64_t a, int64_t b) { return -CeilDiv(-a, b); }

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

// Vectors of floats, and of the numbers of their places.
template <int lanes>
struct Vector {
  typedef float Type __attribute__((vector_size(lanes * sizeof(float)), aligned(sizeof(float)), may_alias));
  typedef int32_t Places __attribute__((vector_size(lanes * sizeof(float))));
};

// Results of kTile channels: out[o][q] = sum over c and t of weights[o][c][t] * x[c][offset[t] + q].
struct TileJob {
  const float* x;  // first channel, at the first place
  int64_t plane;   // values from channel to channel
  int64_t channels;
  const int64_t* offsets;
  const int64_t* numbers;  // of the taps, in the weights
  int64_t taps;
  const float* weights;
  int64_t weight_in;  // values from channel to channel
  int64_t weight_out[kTile];
  float* out;
  int64_t out_stride;
  bool add;  // to what `out` holds
};

template <int lanes, int vectors>
inline __attribute__((always_inline)) void Tile(const TileJob& j) {
  using V = typename Vector<lanes>::Type;
  V sums[kTile][vectors];
  for (int o = 0; o < kTile; ++o) {
    for (int v = 0; v < vectors; ++v) {
      sums[o][v] = j.add ? *reinterpret_cast<const V*>(j.out + o * j.out_stride + v * lanes) : V{};
    }
  }
  const float* w[kTile];
  for (int o = 0; o < kTile; ++o) w[o] = j.weights + j.weight_out[o];
  const float* x = j.x;
  for (int64_t c = 0; c < j.channels; ++c, x += j.plane) {
    for (int64_t t = 0; t < j.taps; ++t) {
      const float* from = x + j.offsets[t];
      const int64_t number = c * j.weight_in + j.numbers[t];
      V values[vectors];
      for (int v = 0; v < vectors; ++v) values[v] = *reinterpret_cast<const V*>(from + v * lanes);
      for (int o = 0; o < kTile; ++o) {
        for (int v = 0; v < vectors; ++v) sums[o][v] += values[v] * w[o][number];
      }
    }
  }
  for (int o = 0; o < kTile; ++o) {
    for (int v = 0; v < vectors; ++v) *reinterpret_cast<V*>(j.out + o * j.out_stride + v * lanes) = sums[o][v];
  }
}

// Scalar products of rows of x and of dy: sums[p][o] = sum over q of x[p][q] * dy[o][q].
struct DotsJob {
  const float* const* x;
  const float* dy;  // kTile rows
  int64_t dy_stride;
  int64_t count;  // values, a multiple of the lanes
  float* sums;    // (pairs, kTile)
};

template <int lanes, int pairs>
inline __attribute__((always_inline)) void Dots(const DotsJob& j) {
  using V = typename Vector<lanes>::Type;
  V sums[pairs][kTile];
  for (int p = 0; p < pairs; ++p) {
    for (int o = 0; o < kTile; ++o) sums[p][o] = V{};
  }
  for (int64_t q = 0; q < j.count; q += lanes) {
    V d[kTile];
    for (int o = 0; o < kTile; ++o) d[o] = *reinterpret_cast<const V*>(j.dy + o * j.dy_stride + q);
    for (int p = 0; p < pairs; ++p) {
      const V x = *reinterpret_cast<const V*>(j.x[p] + q);
      for (int o = 0; o < kTile; ++o) sums[p][o] += x * d[o];
    }
  }
  typename Vector<lanes>::Places places;
  for (int k = 0; k < lanes; ++k) places[k] = k;
  for (int p = 0; p < pairs; ++p) {
    for (int o = 0; o < kTile; ++o) {
      V sum = sums[p][o];
      for (int half = lanes / 2; half > 0; half /= 2) sum += __builtin_shuffle(sum, places ^ half);
      j.sums[p * kTile + o] = sum[0];
    }
  }
}

// The kernels of one instruction set. `places`: results of a tile in one row; `pairs`: rows of x in a call of `dots`.
struct Kernels {
  void (*tile)(const TileJob&);
  void (*dots)(const DotsJob&);
  int64_t places;
  int64_t pairs;
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target("avx512f"))) void Tile512(const TileJob& j) { Tile<16, 4>(j); }
__attribute__((target("avx512f"))) void Dots512(const DotsJob& j) { Dots<16, 6>(j); }
__attribute__((target("avx2,fma"))) void Tile256(const TileJob& j) { Tile<8, 2>(j); }
__attribute__((target("avx2,fma"))) void Dots256(const DotsJob& j) { Dots<8, 2>(j); }
#endif
void Tile128(const TileJob& j) { Tile<4, 2>(j); }
void Dots128(const DotsJob& j) { Dots<4, 2>(j); }

Kernels BestKernels() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (__builtin_cpu_supports("avx512f")) return {Tile512, Dots512, 64, 6};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {Tile256, Dots256, 16, 2};
#endif
  return {Tile128, Dots128, 8, 2};
}

// The sizes of one tensor of feature maps.
struct Features {
  int64_t images;
  int64_t channels;
  int64_t height;
  int64_t width;
};

// A correlation of the planes of one tensor, whose results are pixels of another.
struct Correlation {
  Layout layout;
  Features in_size;
  const float* in;
  Features out_size;
  float* out;
  int64_t out_step;  // the results lie so far apart, in rows and columns,
  int64_t out_row;   // and begin here
  int64_t out_column;
  const float* weights;
  int64_t weight_in;   // weights from one input channel to the next
  int64_t weight_out;  // and from one output channel to the next
  int64_t rows;        // of the result

  void Run() const {
    if (rows <= 0 || layout.columns <= 0) return;
    const int64_t band = layout.RowsThatFit(in_size.channels, rows);
    const int64_t bands = CeilDiv(rows, band);
    const int64_t tiles = CeilDiv(out_size.channels, kTile);
    const int64_t groups = std::min(tiles, CeilDiv(kTasks, out_size.images * bands));
#pragma omp parallel num_threads(Threads())
    {
      std::vector<float> copy;
      std::vector<float> sums;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < out_size.images * bands * groups; ++task) {
        const int64_t group = task % groups;
        const int64_t first = task / groups % bands * band;
        Band(task / groups / bands, first, std::min(band, rows - first), group * tiles / groups,
             (group + 1) * tiles / groups, &copy, &sums);
      }
    }
  }

 private:
  // A 1x1 kernel reads the input where it lies, if whole tiles fill it.
  bool ReadsInPlace(int64_t count, int64_t places) const {
    return layout.step == 1 && layout.taps.size() == 1 && layout.first_row == 0 && layout.first_column == 0 &&
           layout.columns == in_size.width && rows == in_size.height && count * layout.width % places == 0;
  }

  // Computes rows [first, first + count) of the channels of tiles [begin, end).
  void Band(int64_t image, int64_t first, int64_t count, int64_t begin, int64_t end, std::vector<float>* copy,
            std::vector<float>* sums) const {
    const Kernels kernels = BestKernels();
    const std::vector<int64_t> offsets = layout.Offsets(count);
    std::vector<int64_t> numbers;
    for (const Tap& t : layout.taps) numbers.push_back(t.number);
    const int64_t pixels = in_size.height * in_size.width;
    const float* source = in + image * in_size.channels * pixels;
    TileJob job{source + first * in_size.width, pixels, in_size.channels, offsets.data(), numbers.data(),
                static_cast<int64_t>(numbers.size()), weights, weight_in, {}, nullptr, 0, false};
    if (!ReadsInPlace(count, kernels.places)) {
      job.plane = layout.Plane(count);
      layout.Reserve(in_size.channels, count, copy);
      for (int64_t c = 0; c < in_size.channels; ++c) {
        layout.Copy(source + c * pixels, in_size.height, in_size.width, first, count, copy->data() + c * job.plane);
      }
      job.x = copy->data();
    }
    const float* x = job.x;
    job.out_stride = CeilDiv(count * layout.width, kernels.places) * kernels.places;
    Grow(kTile * job.out_stride, sums);
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t o = 0; o < kTile; ++o) {
        job.weight_out[o] = std::min(tile * kTile + o, out_size.channels - 1) * weight_out;
      }
      for (int64_t q = 0; q < job.out_stride; q += kernels.places) {
        job.x = x + q;
        job.out = sums->data() + q;
        kernels.tile(job);
      }
      for (int64_t o = 0; o < std::min(kTile, out_size.channels - tile * kTile); ++o) {
        Store(sums->data() + o * job.out_stride, image * out_size.channels + tile * kTile + o, first, count);
      }
    }
  }

  void Store(const float* from, int64_t plane, int64_t first, int64_t count) const {
    for (int64_t y = first; y < first + count; ++y, from += layout.width) {
      const int64_t row = plane * out_size.height + y * out_step + out_row;
      float* to = out + row * out_size.width + out_column;
      if (out_step == 1) {
        std::copy(from, from + layout.columns, to);
      } else {
        for (int64_t x = 0; x < layout.columns; ++x) to[x * out_step] = from[x];
      }
    }
  }
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

bool IsConvolution(const Arguments& a, int count, int x = 0, int y = 3) {
  return a.count == count && a.Is(x, 4, "float32") && a.Is(1, 4, "float32") && a.Is(2, 1, "int32") &&
         a.Is(y, 4, "float32") && a.Dim(2, 0) == 4 && a.Dim(x, 0) == a.Dim(y, 0) && a.Dim(x, 1) == a.Dim(1, 1) &&
         a.Dim(y, 1) == a.Dim(1, 0) && a.Ints(2)[0] > 0 && a.Ints(2)[1] > 0;
}

// The same as InputGradient for images with few pixels: the weights, which then are the larger part, are read once and in
// order. First the products of each pixel's gradients with the weights of some input channels, then their sums.
void FewPixelsInputGradient(const Convolution& c, const float* weights, const float* dy, float* dx) {
  const Kernels kernels = BestKernels();
  const Layout layout = c.Forward();
  const int64_t block = kMostPlaces;
  const int64_t size = block * c.Taps();
  const int64_t pixels = c.y.height * c.y.width;
  const int64_t none = 0;
#pragma omp parallel num_threads(Threads())
  {
    std::vector<float> columns(static_cast<size_t>(CeilDiv(pixels, kTile) * kTile * size));
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < c.x.images * (c.x.channels / block); ++task) {
      const int64_t image = task % c.x.images;
      const int64_t c0 = task / c.x.images * block;
      TileJob job{nullptr, c.x.channels * c.Taps(), c.y.channels, &none, &none, 1,
                  dy + image * c.y.channels * pixels, pixels, {}, nullptr, size, false};
      for (int64_t q = 0; q < size; q += kernels.places) {
        job.x = weights + c0 * c.Taps() + q;
        for (int64_t p = 0; p < pixels; p += kTile) {
          for (int64_t i = 0; i < kTile; ++i) job.weight_out[i] = std::min(p + i, pixels - 1);
          job.out = columns.data() + p * size + q;
          kernels.tile(job);
        }
      }
      float* to = dx + (image * c.x.channels + c0) * c.x.height * c.x.width;
      std::fill(to, to + block * c.x.height * c.x.width, 0.0f);
      for (int64_t p = 0; p < pixels; ++p) {
        for (const Tap& t : layout.taps) {
          const int64_t row = (p / c.y.width + t.row) * c.stride + t.row_phase;
          const int64_t column = (p % c.y.width + t.column) * c.stride + t.column_phase;
          if (row < 0 || row >= c.x.height || column < 0 || column >= c.x.width) continue;
          const float* from = columns.data() + p * size + t.number;
          for (int64_t i = 0; i < block; ++i) {
            to[(i * c.x.height + row) * c.x.width + column] += from[i * c.Taps()];
          }
        }
      }
    }
  }
}

// From the gradient of a convolution's result to that of its input.
void InputGradient(const Convolution& c, const float* weights, const float* dy, float* dx) {
  if (c.y.images * c.y.height * c.y.width <= kVeryFewPixels && c.x.channels % kMostPlaces == 0) {
    FewPixelsInputGradient(c, weights, dy, dx);
    return;
  }
  for (int64_t row = 0; row < c.stride; ++row) {
    for (int64_t column = 0; column < c.stride; ++column) {
      Correlation{c.Backward(row, column), c.y, dy, c.x, dx, c.stride, row, column, weights, c.x.channels * c.Taps(),
                  c.Taps(), CeilDiv(c.x.height - row, c.stride)}
          .Run();
    }
  }
}

}  // namespace

// Inputs: x (N, C, H, W), weights (O, C, kernel height, kernel width), geometry (4) int32, see Convolution.
// Output: y (N, O, H', W').
MINDSEG_OPERATOR(mindseg_convolution) {
  const Arguments& a = arguments;
  if (!IsConvolution(a, 4)) return kWrongArguments;
  const Convolution c(a);
  Correlation{c.Forward(), c.x, a.Floats(0), c.y, a.Output(3), 1, 0, 0, a.Floats(1), c.Taps(),
              c.x.channels * c.Taps(), c.y.height}
      .Run();
  return kOk;
}

// Gradient of the input. Inputs: those of mindseg_convolution, and dy (N, O, H', W'). Output: dx (N, C, H, W).
MINDSEG_OPERATOR(mindseg_convolution_grad_input) {
  const Arguments& a = arguments;
  if (!IsConvolution(a, 5)) return kWrongArguments;
  InputGradient(Convolution(a), a.Floats(1), a.Floats(3), a.Output(4));
  return kOk;
}

// Transposed convolution: the gradient of the input of the convolution with these weights and this geometry.
// Inputs: x (N, O, H', W'), weights (O, C, kernel height, kernel width), geometry. Output: y (N, C, H, W).
MINDSEG_OPERATOR(mindseg_transposed_convolution) {
  const Arguments& a = arguments;
  if (!IsConvolution(a, 4, 3, 0)) return kWrongArguments;
  InputGradient(Convolution(a, 3, 0), a.Floats(1), a.Floats(0), a.Output(3));
  return kOk;
}

namespace {

// The gradient of the weights as scalar products of rows, for images with many pixels.
class RowProducts {
 public:
  explicit RowProducts(const Arguments& a)
      : c_(a), x_(a.Floats(0)), dy_(a.Floats(3)), layout_(c_.Forward()), kernels_(BestKernels()) {
    band_ = layout_.RowsThatFit(2 * std::min(c_.x.channels, kBlock), c_.y.height);
    bands_ = CeilDiv(c_.y.height, band_);
    in_blocks_ = CeilDiv(c_.x.channels, kBlock);
    out_blocks_ = CeilDiv(c_.y.channels, kBlock);
    chunks_ = std::min(c_.x.images * bands_, CeilDiv(kTasks, in_blocks_ * out_blocks_));
  }

  void Run(float* gradient) const {
    const int64_t size = c_.y.channels * c_.x.channels * c_.Taps();
    const int64_t all = c_.x.images * bands_;
    std::vector<float> others(static_cast<size_t>((chunks_ - 1) * size));
    std::fill(gradient, gradient + size, 0.0f);
#pragma omp parallel num_threads(Threads())
    {
      std::vector<float> copy;
      std::vector<float> rows;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < chunks_ * in_blocks_ * out_blocks_; ++task) {
        const int64_t chunk = task / in_blocks_ / out_blocks_;
        float* to = chunk == 0 ? gradient : others.data() + (chunk - 1) * size;
        for (int64_t band = chunk * all / chunks_; band < (chunk + 1) * all / chunks_; ++band) {
          Band(band, task % in_blocks_ * kBlock, task / in_blocks_ % out_blocks_ * kBlock, to, &copy, &rows);
        }
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < size; ++i) {
        for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
          gradient[i] += others[static_cast<size_t>((chunk - 1) * size + i)];
        }
      }
    }
  }

 private:
  // Adds the products of the input's channels from c0 and the output's from o0.
  void Band(int64_t band, int64_t c0, int64_t o0, float* gradient, std::vector<float>* copy,
            std::vector<float>* rows) const {
    const int64_t image = band / bands_;
    const int64_t first = band % bands_ * band_;
    const int64_t count = std::min(band_, c_.y.height - first);
    const int64_t channels = std::min(kBlock, c_.x.channels - c0);
    const int64_t results = std::min(kBlock, c_.y.channels - o0);
    const int64_t plane = layout_.Plane(count);
    const int64_t places = CeilDiv(count * layout_.width, kMostLanes) * kMostLanes;
    layout_.Reserve(channels, count, copy);
    for (int64_t c = 0; c < channels; ++c) {
      layout_.Copy(x_ + (image * c_.x.channels + c0 + c) * c_.x.height * c_.x.width, c_.x.height, c_.x.width, first,
                   count, copy->data() + c * plane);
    }
    CopyGradients(image * c_.y.channels + o0, results, first, count, places, rows);
    const std::vector<int64_t> offsets = layout_.Offsets(count);
    const auto taps = static_cast<int64_t>(offsets.size());
    for (int64_t pair = 0; pair < channels * taps; pair += kernels_.pairs) {
      const float* from[kMostPairs];
      for (int64_t p = 0; p < kernels_.pairs; ++p) {
        const int64_t i = std::min(pair + p, channels * taps - 1);
        from[p] = copy->data() + i / taps * plane + offsets[static_cast<size_t>(i % taps)];
      }
      for (int64_t o = 0; o < results; o += kTile) {
        float sums[kMostPairs * kTile];
        kernels_.dots({from, rows->data() + o * places, places, places, sums});
        for (int64_t i = 0; i < std::min(kTile, results - o); ++i) {
          float* to = gradient + ((o0 + o + i) * c_.x.channels + c0) * taps + pair;
          for (int64_t p = 0; p < std::min(kernels_.pairs, channels * taps - pair); ++p) to[p] += sums[p * kTile + i];
        }
      }
    }
  }

  // Copies rows of dy, with zeros where the copy of x has columns that do not count, and in channels that fill a tile.
  void CopyGradients(int64_t plane, int64_t results, int64_t first, int64_t count, int64_t places,
                     std::vector<float>* rows) const {
    Grow(kBlock * places, rows);
    std::fill(rows->begin(), rows->begin() + kBlock * places, 0.0f);
    for (int64_t o = 0; o < results; ++o) {
      const float* from = dy_ + ((plane + o) * c_.y.height + first) * c_.y.width;
      for (int64_t y = 0; y < count; ++y, from += c_.y.width) {
        std::copy(from, from + c_.y.width, rows->data() + o * places + y * layout_.width);
      }
    }
  }

  Convolution c_;
  const float* x_;
  const float* dy_;
  Layout layout_;
  Kernels kernels_;
  int64_t band_, bands_, in_blocks_, out_blocks_, chunks_;
};

// The gradient of the weights, pixel by pixel, for images with few: a pixel's input values, one for each channel and
// tap, lie in one row, which is multiplied by the gradients of all output channels.
class PixelProducts {
 public:
  explicit PixelProducts(const Arguments& a) : c_(a), x_(a.Floats(0)), dy_(a.Floats(3)), layout_(c_.Forward()) {}

  void Run(float* gradient) const {
    const int64_t pixels = c_.y.images * c_.y.height * c_.y.width;
    const int64_t block = std::clamp<int64_t>(kCopied / (pixels * c_.Taps()), 1, c_.x.channels);
#pragma omp parallel num_threads(Threads())
    {
      std::vector<float> columns;
      std::vector<float> sums;
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < CeilDiv(c_.x.channels, block); ++task) {
        const int64_t c0 = task * block;
        Block(c0, std::min(block, c_.x.channels - c0), gradient, &columns, &sums);
      }
    }
  }

 private:
  void Block(int64_t c0, int64_t channels, float* gradient, std::vector<float>* columns,
             std::vector<float>* sums) const {
    const Kernels kernels = BestKernels();
    const int64_t size = channels * c_.Taps();
    const int64_t places = CeilDiv(size, kernels.places) * kernels.places;
    const int64_t pixels = c_.y.height * c_.y.width;
    Grow(c_.y.images * pixels * places, columns);
    std::fill(columns->begin(), columns->begin() + c_.y.images * pixels * places, 0.0f);
    Gather(c0, channels, places, columns->data());
    Grow(kTile * places, sums);
    const int64_t none = 0;
    for (int64_t o = 0; o < c_.y.channels; o += kTile) {
      TileJob job{nullptr, places, pixels, &none, &none, 1, nullptr, 1, {}, nullptr, places, false};
      for (int64_t i = 0; i < kTile; ++i) job.weight_out[i] = std::min(o + i, c_.y.channels - 1) * pixels;
      for (int64_t image = 0; image < c_.y.images; ++image, job.add = true) {
        job.weights = dy_ + image * c_.y.channels * pixels;
        for (int64_t q = 0; q < places; q += kernels.places) {
          job.x = columns->data() + image * pixels * places + q;
          job.out = sums->data() + q;
          kernels.tile(job);
        }
      }
      for (int64_t i = 0; i < std::min(kTile, c_.y.channels - o); ++i) {
        const float* from = sums->data() + i * places;
        std::copy(from, from + size, gradient + ((o + i) * c_.x.channels + c0) * c_.Taps());
      }
    }
  }

  // Fills (pixels of all images, channels, taps).
  void Gather(int64_t c0, int64_t channels, int64_t places, float* columns) const {
    for (int64_t image = 0; image < c_.y.images; ++image) {
      for (int64_t y = 0; y < c_.y.height; ++y) {
        for (int64_t x = 0; x < c_.y.width; ++x, columns += places) {
          for (const Tap& t : layout_.taps) {
            const int64_t row = (y + t.row) * layout_.step + t.row_phase;
            const int64_t column = (x + t.column) * layout_.step + t.column_phase;
            if (row < 0 || row >= c_.x.height || column < 0 || column >= c_.x.width) continue;
            const int64_t pixels = c_.x.height * c_.x.width;
            const float* from =
                x_ + (image * c_.x.channels + c0) * pixels + row * c_.x.width + column;
            for (int64_t c = 0; c < channels; ++c) columns[c * c_.Taps() + t.number] = from[c * pixels];
          }
        }
      }
    }
  }

  Convolution c_;
  const float* x_;
  const float* dy_;
  Layout layout_;
};

}  // namespace

// Gradient of the weights. Inputs as mindseg_convolution_grad_input. Output: dweights.
MINDSEG_OPERATOR(mindseg_convolution_grad_weights) {
  const Arguments& a = arguments;
  if (!IsConvolution(a, 5)) return kWrongArguments;
  if (a.Dim(3, 0) * a.Dim(3, 2) * a.Dim(3, 3) <= kFewPixels) {
    PixelProducts(a).Run(a.Output(4));
  } else {
    RowProducts(a).Run(a.Output(4));
  }
  return kOk;
}

}  // namespace mindseg
