#include "inc/preprocess.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <opencv2/imgproc.hpp>

#include "inc/error.h"

namespace mindseg {
namespace {

std::string SizeName(const cv::Size& size) { return std::to_string(size.height) + "x" + std::to_string(size.width); }

template <typename T>
void ToPlanes(const cv::Mat& bgr, bool keep_bgr, const std::array<std::array<T, 256>, 3>& table, T* tensor) {
  const size_t plane = bgr.total();
  T* planes[3] = {tensor, tensor + plane, tensor + 2 * plane};
  T* of_blue = keep_bgr ? planes[0] : planes[2];
  T* of_green = planes[1];
  T* of_red = keep_bgr ? planes[2] : planes[0];
  const T* blue = table[keep_bgr ? 0 : 2].data();
  const T* green = table[1].data();
  const T* red = table[keep_bgr ? 2 : 0].data();
  for (int y = 0; y < bgr.rows; ++y) {
    const uint8_t* row = bgr.ptr<uint8_t>(y);
    for (int x = 0; x < bgr.cols; ++x) {
      *of_blue++ = blue[row[3 * x]];
      *of_green++ = green[row[3 * x + 1]];
      *of_red++ = red[row[3 * x + 2]];
    }
  }
}

template <typename T>
void ToPixels(const cv::Mat& bgr, bool keep_bgr, const std::array<std::array<T, 256>, 3>& table, T* tensor) {
  const int source[3] = {keep_bgr ? 0 : 2, 1, keep_bgr ? 2 : 0};
  for (int y = 0; y < bgr.rows; ++y) {
    const uint8_t* row = bgr.ptr<uint8_t>(y);
    for (int x = 0; x < bgr.cols; ++x) {
      for (int c = 0; c < 3; ++c) *tensor++ = table[c][row[3 * x + source[c]]];
    }
  }
}

template <typename T>
void FillTensor(const cv::Mat& bgr, const InputSpec& input, const std::array<std::array<T, 256>, 3>& table,
                uint8_t* bytes) {
  T* tensor = reinterpret_cast<T*>(bytes);
  if (input.layout == Layout::kNchw) {
    ToPlanes(bgr, input.bgr, table, tensor);
  } else {
    ToPixels(bgr, input.bgr, table, tensor);
  }
}

}  // namespace

cv::Size ContentSize(const ResizeSpec& resize, const cv::Size& image) {
  if (resize.rule == ResizeSpec::Rule::kNone) return image;
  if (resize.rule == ResizeSpec::Rule::kExact) return {resize.width, resize.height};
  double scale = 0;
  if (resize.height > 0) {
    scale = std::min(double{1} * resize.height / image.height, double{1} * resize.width / image.width);
  } else {
    const bool by_short = resize.rule == ResizeSpec::Rule::kShortSide;
    const int side = by_short ? std::min(image.width, image.height) : std::max(image.width, image.height);
    scale = static_cast<double>(resize.side) / side;
  }
  const auto scaled = [scale](int length) { return std::max(1, static_cast<int>(length * scale + 0.5)); };
  return {scaled(image.width), scaled(image.height)};
}

void CheckBinSize(uintmax_t size, const std::filesystem::path& path, const InputSpec& input) {
  const size_t expected = input.BytesPerImage();
  if (size == expected) return;
  throw ItemError(path.string() + ": has " + std::to_string(size) + " bytes, the manifest's input " +
                  ShapeName(input.Shape(1)) + " " + DTypeName(input.dtype) + " takes " + std::to_string(expected) +
                  "; run preprocess.py with this manifest");
}

void CopyBin(const std::vector<uint8_t>& bytes, const std::filesystem::path& path, const InputSpec& input,
             DType model_dtype, uint8_t* tensor) {
  CheckBinSize(bytes.size(), path, input);
  if (model_dtype == input.dtype) {
    std::memcpy(tensor, bytes.data(), bytes.size());
    return;
  }
  FloatToHalf(reinterpret_cast<const float*>(bytes.data()), input.ElementsPerImage(), tensor);
}

Preprocessor::Preprocessor(const InputSpec& input) : input_(input) {
  for (int c = 0; c < 3; ++c) {
    for (int x = 0; x < 256; ++x) {
      const double scaled = x * input.value_range / 255.0;
      const double value = input.normalize_on_host ? (scaled - input.mean[c]) / input.std[c] : x;
      float_table_[c][x] = static_cast<float>(value);
      raw_table_[c][x] = static_cast<uint8_t>(x);
    }
    FloatToHalf(float_table_[c].data(), float_table_[c].size(), half_table_[c].data());
  }
}

cv::Mat Preprocessor::ResizeAndPad(const cv::Mat& bgr, const std::filesystem::path& path) const {
  const cv::Size target = ContentSize(input_.resize, bgr.size());
  if (target.width > input_.width || target.height > input_.height) {
    throw ItemError(path.string() + ": image of " + SizeName(bgr.size()) + " becomes " + SizeName(target) +
                    ", larger than the model's " + SizeName({input_.width, input_.height}) +
                    "; export the model for that size or with resize rule 'exact'");
  }
  cv::Mat resized = bgr;
  if (target != bgr.size()) cv::resize(bgr, resized, target, 0, 0, cv::INTER_LINEAR);
  if (target.width == input_.width && target.height == input_.height) return resized;
  if (!input_.resize.pad) {
    throw ItemError(path.string() + ": image of " + SizeName(bgr.size()) + " becomes " + SizeName(target) +
                    ", the model takes " + SizeName({input_.width, input_.height}) +
                    "; export the model for that size, with resize.pad or with resize rule 'exact'");
  }
  const auto& pad = input_.pad_value;
  const cv::Scalar bgr_pad = input_.bgr ? cv::Scalar(pad[0], pad[1], pad[2]) : cv::Scalar(pad[2], pad[1], pad[0]);
  cv::Mat padded;
  cv::copyMakeBorder(resized, padded, 0, input_.height - target.height, 0, input_.width - target.width,
                     cv::BORDER_CONSTANT, bgr_pad);
  return padded;
}

void Preprocessor::Run(const cv::Mat& bgr, const std::filesystem::path& path, uint8_t* tensor) const {
  const cv::Mat image = ResizeAndPad(bgr, path);
  switch (input_.dtype) {
    case DType::kFloat32:
      return FillTensor(image, input_, float_table_, tensor);
    case DType::kFloat16:
      return FillTensor(image, input_, half_table_, tensor);
    case DType::kUint8:
      return FillTensor(image, input_, raw_table_, tensor);
    case DType::kInt32:
    case DType::kInt64:
      throw UserError(std::string("the model takes ") + DTypeName(input_.dtype) + " pixels, which no export makes");
  }
}

}  // namespace mindseg
