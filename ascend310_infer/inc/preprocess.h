// Image -> input tensor, with the meaning that preprocess.py gives to the manifest's fields.
#ifndef ASCEND310_INFER_INC_PREPROCESS_H_
#define ASCEND310_INFER_INC_PREPROCESS_H_

#include <array>
#include <cstdint>
#include <filesystem>
#include <opencv2/core.hpp>
#include <vector>

#include "inc/manifest.h"

namespace mindseg {

// Size of an image of size `image` after the resize rule, before padding.
cv::Size ContentSize(const ResizeSpec& resize, const cv::Size& image);

// Throws ItemError unless a preprocessed .bin of `size` bytes is one image's input.
void CheckBinSize(uintmax_t size, const std::filesystem::path& path, const InputSpec& input);

// A preprocessed .bin -> tensor. `input` describes the file; `model_dtype` is float16 where the model takes that
// instead of the file's float32. Throws ItemError for a file of another size.
void CopyBin(const std::vector<uint8_t>& bytes, const std::filesystem::path& path, const InputSpec& input,
             DType model_dtype, uint8_t* tensor);

// Writes one image's tensor. Safe to use from several threads at once.
class Preprocessor {
 public:
  // `input` says how the tensor looks; `dtype` float16 is allowed here besides the manifest's types.
  explicit Preprocessor(const InputSpec& input);

  // Resize and pad in uint8, colour order, then (x * value_range / 255 - mean) / std unless the graph does that.
  // `tensor` has input.BytesPerImage() bytes. Throws ItemError if the image does not fit.
  void Run(const cv::Mat& bgr, const std::filesystem::path& path, uint8_t* tensor) const;

 private:
  cv::Mat ResizeAndPad(const cv::Mat& bgr, const std::filesystem::path& path) const;

  InputSpec input_;
  // A pixel has 256 values only, so normalisation is a table a channel (in the tensor's colour order).
  std::array<std::array<float, 256>, 3> float_table_{};
  std::array<std::array<uint16_t, 256>, 3> half_table_{};
  std::array<std::array<uint8_t, 256>, 3> raw_table_{};
};

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_PREPROCESS_H_
