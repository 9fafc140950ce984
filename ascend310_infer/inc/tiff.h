// First directory of a TIFF file: its entries, the kind of its pixels, and checks on it. EXIF data are a TIFF, too.
// src/mindseg/data/tiff.py has the same rules.
#ifndef ASCEND310_INFER_INC_TIFF_H_
#define ASCEND310_INFER_INC_TIFF_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "inc/bytes.h"

namespace mindseg {

class TiffDirectory {
 public:
  // Nothing if there is no directory or it is damaged. `bytes` must outlive the directory.
  static std::optional<TiffDirectory> Read(const ByteView& bytes);

  // As the file claims them; negative for numbers that are too large.
  int64_t Width() const;
  int64_t Height() const;

  // 1 to 8, as in EXIF; 1: the pixels lie upright.
  int Orientation() const;

  bool WhiteIsZero() const;
  bool InPlanes() const;  // each channel is stored by itself

  // Kind and bits of a channel, as in ImageHeader; what cannot be read has a kind that says why. Nothing if entries are
  // missing.
  std::optional<std::pair<std::string, int64_t>> PixelKind() const;

  // All strips or tiles lie within the file, and those that are not compressed are long enough.
  bool IsWhole() const;

  // A file with the same pixels and a directory of only what decoding needs.
  std::vector<uint8_t> PlainCopy() const;

 private:
  struct Entry {
    uint64_t type = 0;
    uint64_t count = 0;
    uint64_t place = 0;  // of the value
  };

  explicit TiffDirectory(const ByteView& bytes) : bytes_(bytes) {}

  bool Has(int tag) const { return entries_.count(tag) > 0; }
  std::vector<uint64_t> Numbers(int tag, uint64_t most) const;
  uint64_t First(int tag, uint64_t missing) const;

  ByteView bytes_;
  Order order_ = Order::kLittle;
  bool big_ = false;
  std::map<int, Entry> entries_;
};

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_TIFF_H_
