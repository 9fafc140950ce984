// Inner loops of the convolutions. All sums stay in registers: kTile times `vectors` or `pairs` vectors.
#include "convolution_loops.h"

#include <cstring>

namespace mindseg {
namespace {

template <int lanes>
struct Vector {
  typedef float Type __attribute__((vector_size(lanes * sizeof(float)), aligned(sizeof(float)), may_alias));
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
  for (int p = 0; p < pairs; ++p) {
    for (int o = 0; o < kTile; ++o) {
      float parts[lanes];
      std::memcpy(parts, &sums[p][o], sizeof parts);
      for (int half = lanes / 2; half > 0; half /= 2) {
        for (int k = 0; k < half; ++k) parts[k] += parts[k + half];
      }
      j.sums[p * kTile + o] = parts[0];
    }
  }
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target("avx512f"))) void Tile512(const TileJob& j) { Tile<16, 4>(j); }
__attribute__((target("avx512f"))) void Dots512(const DotsJob& j) { Dots<16, 6>(j); }
__attribute__((target("avx2,fma"))) void Tile256(const TileJob& j) { Tile<8, 2>(j); }
__attribute__((target("avx2,fma"))) void Dots256(const DotsJob& j) { Dots<8, 2>(j); }
#endif
void Tile128(const TileJob& j) { Tile<4, 2>(j); }
void Dots128(const DotsJob& j) { Dots<4, 2>(j); }

}  // namespace

Kernels BestKernels() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (__builtin_cpu_supports("avx512f")) return {Tile512, Dots512, 64, 6};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {Tile256, Dots256, 16, 2};
#endif
  return {Tile128, Dots128, 8, 2};
}

}  // namespace mindseg
