// First directory of a TIFF file: its entries, the kind of its pixels, and checks on it. EXIF data are a TIFF, too.
// src/mindseg/data/tiff.py has the same rules.
#ifndef ASCEND310_INFER_INC_TIFF_H_
#define ASCEND310_INFER_INC_TIFF_H_

#include <array>
#include <cstdint>
#include <map>
#include <opencv2/core.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "inc/bytes.h"

namespace mindseg {

class TiffDirectory {
 public:
  // Nothing if there is no directory or it is damaged. What `source` reads from must outlive the directory.
  static std::optional<TiffDirectory> Read(const ByteSource& source);

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

  uint64_t FileSize() const { return source_.size(); }

  // The following are for a directory that is whole, and a kind that can be read.

  // The smallest part of the image that can be decoded by itself and holds `part`, which lies in the image.
  cv::Rect Cover(const cv::Rect& part) const;

  // A file of only the pixels of `cover`, which Cover gave, and with a directory of only what decoding needs.
  std::vector<uint8_t> Copy(const cv::Rect& cover) const;

 private:
  struct Entry {
    uint64_t type = 0;
    uint64_t count = 0;
    std::array<uint8_t, 8> value{};  // the number or numbers, or their place if they are longer
  };

  struct Range {
    uint64_t begin = 0;  // of bytes in the file
    uint64_t end = 0;
  };

  explicit TiffDirectory(const ByteSource& source) : source_(source) {}

  bool Has(int tag) const { return entries_.count(tag) > 0; }
  size_t Room() const { return big_ ? 8 : 4; }                          // for a value
  std::vector<uint8_t> Value(const Entry& entry, uint64_t most) const;  // the first ones; empty if any are missing
  std::vector<uint64_t> Numbers(int tag, uint64_t most) const;
  uint64_t First(int tag, uint64_t missing) const;
  std::pair<uint64_t, uint64_t> PieceSize() const;  // columns and rows of a tile or strip
  uint64_t RowBytes() const;                        // of a tile or strip without compression
  bool IsPlain() const;                             // not compressed

  // Tiles or strips of a part of the image, plane by plane, or pieces of strips with `rows` rows.
  std::vector<Range> Pieces(const cv::Rect& cover, uint64_t rows) const;

  // Appends bytes of the file; returns their places in `copy`.
  std::vector<uint64_t> CopyRanges(const std::vector<Range>& ranges, std::vector<uint8_t>* copy) const;

  ByteSource source_;
  Order order_ = Order::kLittle;
  bool big_ = false;
  std::map<int, Entry> entries_;
};

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_TIFF_H_
