// Memory for tensors, aligned for vector units and DMA engines.
#ifndef ASCEND310_INFER_INC_BUFFER_H_
#define ASCEND310_INFER_INC_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <utility>

namespace mindseg {

class Buffer {
 public:
  static constexpr size_t kAlignment = 64;

  explicit Buffer(size_t size) : Buffer(Allocate(size), size, [](uint8_t* data) { std::free(data); }) {}
  // Memory from elsewhere, `size` bytes at an aligned address, that `free` gives back.
  Buffer(uint8_t* data, size_t size, std::function<void(uint8_t*)> free) : data_(data, std::move(free)), size_(size) {
    std::memset(data, 0, size);
  }

  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  static uint8_t* Allocate(size_t size) {
    const size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
    auto* data = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, rounded ? rounded : kAlignment));
    if (data == nullptr) throw std::bad_alloc();
    return data;
  }

  std::unique_ptr<uint8_t, std::function<void(uint8_t*)>> data_;
  size_t size_;
};

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_BUFFER_H_
