// Image file -> 8-bit BGR pixels, whole or row by row. src/mindseg/data/decode.py has the same rules.
#ifndef ASCEND310_INFER_INC_DECODE_H_
#define ASCEND310_INFER_INC_DECODE_H_

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <opencv2/core.hpp>
#include <set>
#include <string>
#include <vector>

#include "inc/image_header.h"

namespace mindseg {

constexpr int64_t kMaxPixels = int64_t{1} << 28;  // of an image; runtime.max_pixels in Python

// Says once for each kind of conversion that an image needs it. Safe to use from several threads at once.
class ConversionNotes {
 public:
  void Say(const ImageHeader& header, const std::filesystem::path& path);

 private:
  std::mutex mutex_;
  std::set<std::string> said_;
};

// Decodes an image to 8-bit BGR, turned by its EXIF orientation. Throws ItemError for a file that is no PNG, JPEG,
// WebP, BMP or TIFF, is truncated, damaged or of pixels that cannot be decoded, or claims more than `max_pixels`,
// before it is decoded. `notes` may be null.
cv::Mat DecodeImage(const std::vector<uint8_t>& bytes, const std::filesystem::path& path,
                    int64_t max_pixels = kMaxPixels, ConversionNotes* notes = nullptr);

// An image that is read by rows from the top to the bottom, with the pixels of DecodeImage. Of a TIFF only the tiles or
// strips that hold the rows are decoded, and the file is never in memory as a whole; other formats are decoded whole.
// One thread at a time.
class ImageRows {
 public:
  // `max_pixels` is for what one call of Read gives; 2^30 pixels, OpenCV's limit, are decoded at once. `notes` may be
  // null. Throws ItemError as DecodeImage does.
  ImageRows(const std::filesystem::path& path, int64_t max_pixels, ConversionNotes* notes);

  cv::Size size() const;  // of the image as it is shown

  // Rows from `begin` to before `end`. Throws ItemError.
  cv::Mat Read(int begin, int end);

 private:
  const std::filesystem::path path_;
  const int64_t max_pixels_;
  ImageHeader header_;
  cv::Mat pixels_;  // decoded, as they are stored
  cv::Rect cover_;  // their place in the image
};

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_DECODE_H_
