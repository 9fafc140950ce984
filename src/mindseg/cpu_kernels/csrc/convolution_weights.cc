// The gradients of the weights of convolutions.
#include "convolution.h"

namespace mindseg {
namespace {

constexpr int64_t kBlock = 16;        // channels of each side that a task works on
constexpr int64_t kFewPixels = 1024;  // of a batch, for which it is summed pixel by pixel

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
            const float* from = x_ + (image * c_.x.channels + c0) * pixels + row * c_.x.width + column;
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
