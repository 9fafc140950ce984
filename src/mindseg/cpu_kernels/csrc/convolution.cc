// Convolutions without groups, and the gradients of their inputs. oneDNN's convolutions of plain tensors first copy the
// input once for each element of the kernel, into memory that each layer keeps; these copy a few rows at a time.
#include "convolution.h"

namespace mindseg {
namespace {

constexpr int64_t kVeryFewPixels = 256;  // of a batch, for which the weights are the larger part

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
    // In the gradient of the input the channels' weights lie so far apart that they share a few places of the cache.
    const int64_t size = in_size.channels * static_cast<int64_t>(layout.taps.size()) * kTile;
    std::vector<float> packed(weight_in > weight_out ? static_cast<size_t>(tiles * size) : 0);
#pragma omp parallel num_threads(Threads())
    {
      Buffers buffers;
#pragma omp for schedule(static)
      for (int64_t tile = 0; tile < (packed.empty() ? 0 : tiles); ++tile) Pack(tile, packed.data() + tile * size);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < out_size.images * bands * groups; ++task) {
        const int64_t group = task % groups;
        const int64_t first = task / groups % bands * band;
        Band(task / groups / bands, first, std::min(band, rows - first), group * tiles / groups,
             (group + 1) * tiles / groups, packed, &buffers);
      }
    }
  }

 private:
  // Memory of a thread.
  struct Buffers {
    std::vector<float> copy;
    std::vector<float> sums;
  };

  // A 1x1 kernel reads the input where it lies, if whole tiles fill it.
  bool ReadsInPlace(int64_t count, int64_t places) const {
    return layout.step == 1 && layout.taps.size() == 1 && layout.first_row == 0 && layout.first_column == 0 &&
           layout.columns == in_size.width && rows == in_size.height && count * layout.width % places == 0;
  }

  // Computes rows [first, first + count) of the channels of tiles [begin, end).
  void Band(int64_t image, int64_t first, int64_t count, int64_t begin, int64_t end, const std::vector<float>& packed,
            Buffers* buffers) const {
    const Kernels kernels = BestKernels();
    const std::vector<int64_t> offsets = layout.Offsets(count);
    std::vector<int64_t> numbers;
    for (size_t t = 0; t < layout.taps.size(); ++t) {
      numbers.push_back(packed.empty() ? layout.taps[t].number : static_cast<int64_t>(t) * kTile);
    }
    const int64_t pixels = in_size.height * in_size.width;
    const float* source = in + image * in_size.channels * pixels;
    TileJob job{source + first * in_size.width,
                pixels,
                in_size.channels,
                offsets.data(),
                numbers.data(),
                static_cast<int64_t>(numbers.size()),
                weights,
                weight_in,
                {},
                nullptr,
                0,
                false};
    if (!ReadsInPlace(count, kernels.places)) {
      job.plane = layout.Plane(count);
      layout.Reserve(in_size.channels, count, &buffers->copy);
      float* copy = buffers->copy.data();
      for (int64_t c = 0; c < in_size.channels; ++c) {
        layout.Copy(source + c * pixels, in_size.height, in_size.width, first, count, copy + c * job.plane);
      }
      job.x = copy;
    }
    const float* x = job.x;
    job.out_stride = CeilDiv(count * layout.width, kernels.places) * kernels.places;
    Grow(kTile * job.out_stride, &buffers->sums);
    if (!packed.empty()) job.weight_in = job.taps * kTile;
    for (int64_t tile = begin; tile < end; ++tile) {
      if (!packed.empty()) job.weights = packed.data() + tile * job.channels * job.weight_in;
      for (int64_t o = 0; o < kTile; ++o) {
        job.weight_out[o] = packed.empty() ? std::min(tile * kTile + o, out_size.channels - 1) * weight_out : o;
      }
      for (int64_t q = 0; q < job.out_stride; q += kernels.places) {
        job.x = x + q;
        job.out = buffers->sums.data() + q;
        kernels.tile(job);
      }
      for (int64_t o = 0; o < std::min(kTile, out_size.channels - tile * kTile); ++o) {
        Store(buffers->sums.data() + o * job.out_stride, image * out_size.channels + tile * kTile + o, first, count);
      }
    }
  }

  // Copies the weights of a tile into the order in which they are read.
  void Pack(int64_t tile, float* to) const {
    for (int64_t c = 0; c < in_size.channels; ++c) {
      for (const Tap& t : layout.taps) {
        for (int64_t o = 0; o < kTile; ++o) {
          *to++ = weights[c * weight_in + t.number + std::min(tile * kTile + o, out_size.channels - 1) * weight_out];
        }
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

// The same as InputGradient for images with few pixels: the weights are read once and in order. First the products of
// each pixel's gradients with the weights of some input channels, then their sums.
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
    std::vector<float> packed(static_cast<size_t>(c.y.channels * kernels.places));
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < c.x.images * (c.x.channels / block); ++task) {
      const int64_t image = task % c.x.images;
      const int64_t c0 = task / c.x.images * block;
      TileJob job{
          packed.data(), kernels.places, c.y.channels, &none, &none, 1, dy + image * c.y.channels * pixels, pixels, {},
          nullptr,       size,           false};
      for (int64_t q = 0; q < size; q += kernels.places) {
        for (int64_t o = 0; o < c.y.channels; ++o) {
          const float* from = weights + (o * c.x.channels + c0) * c.Taps() + q;
          std::copy(from, from + kernels.places, packed.data() + o * kernels.places);
        }
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
      Correlation{c.Backward(row, column),
                  c.y,
                  dy,
                  c.x,
                  dx,
                  c.stride,
                  row,
                  column,
                  weights,
                  c.x.channels * c.Taps(),
                  c.Taps(),
                  CeilDiv(c.x.height - row, c.stride)}
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
  Correlation{c.Forward(), c.x, a.Floats(0), c.y, a.Output(3), 1, 0, 0, a.Floats(1), c.Taps(), c.x.channels * c.Taps(),
              c.y.height}
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

}  // namespace mindseg
