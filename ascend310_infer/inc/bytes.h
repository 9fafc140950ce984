// Numbers and words in the bytes of a file, which may end anywhere.
#ifndef ASCEND310_INFER_INC_BYTES_H_
#define ASCEND310_INFER_INC_BYTES_H_

#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

namespace mindseg {

enum class Order { kBig, kLittle };

// Bytes of somebody else, who must keep them.
class ByteView {
 public:
  ByteView(const std::vector<uint8_t>& bytes) : data_(bytes.data()), size_(bytes.size()) {}  // NOLINT: as in C++20

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  bool Has(uint64_t at, uint64_t count) const { return at <= size_ && count <= size_ - at; }

  // Empty behind the end.
  ByteView Part(uint64_t begin, uint64_t end) const {
    return begin <= end && end <= size_ ? ByteView(data_ + begin, end - begin) : ByteView(data_, 0);
  }

 private:
  ByteView(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  const uint8_t* data_;
  size_t size_;
};

// Bytes of a file or of memory that are read in pieces.
class ByteSource {
 public:
  // Writes the `count` bytes at `at`, which are there, to `to`.
  using Reader = std::function<void(uint64_t at, size_t count, uint8_t* to)>;

  ByteSource(uint64_t size, Reader reader) : size_(size), reader_(std::move(reader)) {}
  ByteSource(const ByteView& bytes)  // NOLINT: a view is a source
      : ByteSource(bytes.size(),
                   [bytes](uint64_t at, size_t count, uint8_t* to) { std::memcpy(to, bytes.data() + at, count); }) {}

  uint64_t size() const { return size_; }
  bool Has(uint64_t at, uint64_t count) const { return at <= size_ && count <= size_ - at; }

  void Read(uint64_t at, size_t count, uint8_t* to) const { reader_(at, count, to); }

  // Empty where bytes are missing.
  std::vector<uint8_t> Read(uint64_t at, uint64_t count) const {
    std::vector<uint8_t> bytes(Has(at, count) ? count : 0);
    if (!bytes.empty()) reader_(at, bytes.size(), bytes.data());
    return bytes;
  }

 private:
  uint64_t size_;
  Reader reader_;
};

inline bool Holds(const ByteView& bytes, size_t at, const char* word) {
  const size_t size = std::strlen(word);
  return bytes.Has(at, size) && std::memcmp(bytes.data() + at, word, size) == 0;
}

// The number in `count` bytes at `at`; 0 behind the end.
inline uint64_t Unsigned(const ByteView& bytes, uint64_t at, size_t count, Order order) {
  if (!bytes.Has(at, count)) return 0;
  uint64_t number = 0;
  for (size_t i = 0; i < count; ++i) {
    number = number << 8 | bytes.data()[at + (order == Order::kBig ? i : count - 1 - i)];
  }
  return number;
}

inline int64_t Number(const ByteView& bytes, size_t at, size_t count, Order order) {
  return static_cast<int64_t>(Unsigned(bytes, at, count, order));
}

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_BYTES_H_
