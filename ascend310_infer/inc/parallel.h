// Threads that work on one thing together.
#ifndef ASCEND310_INFER_INC_PARALLEL_H_
#define ASCEND310_INFER_INC_PARALLEL_H_

#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace mindseg {

// Calls `body` with each number below `count`, each on a thread of its own, and waits for all. Throws the first
// exception of any.
inline void OnThreads(int count, const std::function<void(int)>& body) {
  std::mutex mutex;
  std::exception_ptr failure;
  std::vector<std::thread> threads;
  for (int number = 0; number < count; ++number) {
    threads.emplace_back([&, number] {
      try {
        body(number);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_PARALLEL_H_
