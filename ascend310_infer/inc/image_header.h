// Headers of image files, read before anything is decoded. src/mindseg/data/headers.py has the same rules.
#ifndef ASCEND310_INFER_INC_IMAGE_HEADER_H_
#define ASCEND310_INFER_INC_IMAGE_HEADER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mindseg {

struct ImageHeader {
  int64_t height = 0;  // as the file claims it
  int64_t width = 0;
  std::string kind;    // colour, palette, grey, ...; empty: only decoding tells
  int64_t bits = 0;    // of a channel or a palette index; 0: only decoding tells
  bool whole = false;  // nothing is missing at the end; anything may follow
};

// The header of a PNG, JPEG, WebP or BMP, told by its first bytes; nothing for another file or one that ends in it.
std::optional<ImageHeader> ReadImageHeader(const std::vector<uint8_t>& bytes);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_IMAGE_HEADER_H_
