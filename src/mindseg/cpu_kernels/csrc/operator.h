// What the operators of MindSpore's `ops.Custom(func_type="aot")` share: their arguments, and loops over threads.
//
// An operator gets its inputs and then its outputs, all contiguous. Results do not depend on the number of threads:
// each task writes its own values, and sums over tasks are added in a fixed order.
#ifndef MINDSEG_CPU_KERNELS_CSRC_OPERATOR_H_
#define MINDSEG_CPU_KERNELS_CSRC_OPERATOR_H_

#include <cstdint>
#include <cstring>

// Compiles a function for several instruction sets; the processor's best one is chosen when the library is loaded.
// Loops over threads stay outside: GCC would compile their bodies for the oldest set only.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MINDSEG_VECTOR __attribute__((noinline, target_clones("avx512f", "avx2", "default")))
#else
#define MINDSEG_VECTOR __attribute__((noinline))
#endif

namespace mindseg {

// Threads of each operator, see threads.cc.
int Threads();

enum Status { kOk = 0, kWrongArguments = 1 };

struct Arguments {
  int count;
  void** data;
  const int* ranks;
  int64_t* const* shapes;
  const char* const* types;

  const float* Floats(int i) const { return static_cast<const float*>(data[i]); }
  const int32_t* Ints(int i) const { return static_cast<const int32_t*>(data[i]); }
  float* Output(int i) const { return static_cast<float*>(data[i]); }
  int64_t Dim(int i, int axis) const { return shapes[i][axis]; }
  int64_t Size(int i) const {
    int64_t size = 1;
    for (int axis = 0; axis < ranks[i]; ++axis) size *= shapes[i][axis];
    return size;
  }
  bool Is(int i, int rank, const char* type) const { return ranks[i] == rank && std::strcmp(types[i], type) == 0; }
};

// Planes of (N, C, H, W): sizes of the batch, the channels and one plane.
struct Planes {
  int64_t images;
  int64_t channels;
  int64_t pixels;
};

}  // namespace mindseg

#define MINDSEG_OPERATOR(name)                                                                                  \
  static int name##Run(const mindseg::Arguments& arguments);                                                    \
  extern "C" int name(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) { \
    return name##Run(mindseg::Arguments{count, data, ranks, shapes, types});                                    \
  }                                                                                                             \
  static int name##Run(const mindseg::Arguments& arguments)

#endif  // MINDSEG_CPU_KERNELS_CSRC_OPERATOR_H_
