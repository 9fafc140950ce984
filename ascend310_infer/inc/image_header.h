// Headers of image files, read before anything is decoded. src/mindseg/data/headers.py has the same rules.
#ifndef ASCEND310_INFER_INC_IMAGE_HEADER_H_
#define ASCEND310_INFER_INC_IMAGE_HEADER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "inc/tiff.h"

namespace mindseg {

struct ImageHeader {
  int64_t height = 0;  // as the file claims it, before the image is turned
  int64_t width = 0;
  std::string kind;                        // colour, palette, grey, ...; empty: only decoding tells
  int64_t bits = 0;                        // of a channel or a palette index; 0: only decoding tells
  bool whole = false;                      // nothing is missing at the end; anything may follow
  bool alpha = false;                      // there is an alpha channel, or colours that are transparent
  int orientation = 1;                     // of EXIF: 1 (upright) to 8
  std::optional<TiffDirectory> directory;  // of a TIFF
};

// The header of a PNG, JPEG, WebP, BMP or TIFF, told by its first bytes; nothing for another file or one that ends in
// it. `bytes` must outlive it.
std::optional<ImageHeader> ReadImageHeader(const std::vector<uint8_t>& bytes);

// The same of a TIFF only, of which just the directory is read.
std::optional<ImageHeader> ReadTiffHeader(const ByteSource& source);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_IMAGE_HEADER_H_
