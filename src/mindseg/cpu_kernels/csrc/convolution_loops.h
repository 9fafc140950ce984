// Inner loops of the convolutions, for several instruction sets.
#ifndef MINDSEG_CPU_KERNELS_CSRC_CONVOLUTION_LOOPS_H_
#define MINDSEG_CPU_KERNELS_CSRC_CONVOLUTION_LOOPS_H_

#include <cstdint>

namespace mindseg {

constexpr int64_t kTile = 4;         // output channels that are computed together
constexpr int64_t kMostPlaces = 64;  // most results of a tile in one row
constexpr int64_t kMostPairs = 6;    // most rows of x in a call of `dots`
constexpr int64_t kMostLanes = 16;   // a multiple of the values in any vector

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

// Scalar products of rows of x and of dy: sums[p][o] = sum over q of x[p][q] * dy[o][q].
struct DotsJob {
  const float* const* x;
  const float* dy;  // kTile rows
  int64_t dy_stride;
  int64_t count;  // values, a multiple of the lanes
  float* sums;    // (pairs, kTile)
};

// The kernels of one instruction set. `places`: results of a tile in one row; `pairs`: rows of x in a call of `dots`.
struct Kernels {
  void (*tile)(const TileJob&);
  void (*dots)(const DotsJob&);
  int64_t places;
  int64_t pairs;
};

// Those of the best instruction set of this processor.
Kernels BestKernels();

}  // namespace mindseg

#endif  // MINDSEG_CPU_KERNELS_CSRC_CONVOLUTION_LOOPS_H_
