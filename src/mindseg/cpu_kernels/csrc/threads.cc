// Number of threads of all operators.
#include <omp.h>

#include <atomic>

#include "operator.h"

namespace mindseg {
namespace {

std::atomic<int> g_threads{0};

}  // namespace

int Threads() { return g_threads > 0 ? g_threads.load() : omp_get_max_threads(); }

}  // namespace mindseg

// 0: as many as there are cores, or as OMP_NUM_THREADS says.
extern "C" void mindseg_set_threads(int count) { mindseg::g_threads = count; }
