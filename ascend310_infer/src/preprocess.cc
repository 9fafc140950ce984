#include "inc/preprocess.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iostream>
#include <map>
#include <new>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <optional>

#include "inc/error.h"

namespace mindseg {
namespace {

// Throws ItemError for what src/mindseg/data/decode.py refuses too: OpenCV would decode a dozen other formats, and a
// small file that claims a huge size would take all memory.
void CheckHeader(const ImageHeader& header, const std::filesystem::path& path, int64_t max_pixels) {
  constexpr int64_t kLongestSide = int64_t{1} << 20;  // OpenCV's
  const std::string size = std::to_string(header.height) + "x" + std::to_string(header.width);
  if (header.width < 1 || header.height < 1) throw ItemError(path.string() + ": claims a size of " + size);
  if (header.width > max_pixels / header.height || std::max(header.width, header.height) > kLongestSide) {
    throw ItemError(path.string() + ": image of " + size + " is above the limit of " + std::to_string(max_pixels) +
                    " pixels and sides of " + std::to_string(kLongestSide) + "; make it smaller or raise --max_pixels");
  }
  static const std::set<std::string> kKinds = {
      "", "colour", "palette", "grey", "grey with alpha", "colour with alpha", "CMYK"};
  if (header.whole && (kKinds.count(header.kind) == 0 || header.bits > 16)) {
    throw ItemError(path.string() + ": image is " + header.kind +
                    (header.bits ? ", " + std::to_string(header.bits) + "-bit" : "") +
                    "; it cannot be decoded: convert it to an 8-bit PNG");
  }
}

// Decodes without turning.
cv::Mat Decode(const std::vector<uint8_t>& bytes, const ImageHeader& header) {
  constexpr int kColour = cv::IMREAD_COLOR | cv::IMREAD_IGNORE_ORIENTATION;
  if (!header.directory) return cv::imdecode(bytes, kColour | cv::IMREAD_ANYDEPTH);
  // OpenCV mixes up planes of 16 bits unless it rounds.
  return cv::imdecode(header.directory->PlainCopy(),
                      kColour | (header.directory->InPlanes() ? 0 : cv::IMREAD_ANYDEPTH));
}

// 16-bit values v become (v + 128) / 257.
cv::Mat ToBytes(const cv::Mat& image, const ImageHeader& header) {
  if (image.depth() != CV_16U) return image;
  cv::Mat bytes;
  image.convertTo(bytes, CV_8U, 1.0 / 257);
  if (header.directory && header.directory->WhiteIsZero()) cv::bitwise_not(bytes, bytes);
  return bytes;
}

// EXIF 2.32, tag 274.
cv::Mat Turn(const cv::Mat& image, int orientation) {
  // Flips that follow the transposition of orientations 5 to 8: -1 both, 0 top and bottom, 1 left and right.
  static const std::map<int, int> kFlips = {{2, 1}, {3, -1}, {4, 0}, {6, 1}, {7, -1}, {8, 0}};
  cv::Mat turned = image;
  if (orientation >= 5) cv::transpose(image, turned);
  const auto flip = kFlips.find(orientation);
  if (flip == kFlips.end()) return turned;
  cv::Mat flipped;
  cv::flip(turned, flipped, flip->second);
  return flipped;
}

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

void ConversionNotes::Say(const ImageHeader& header, const std::filesystem::path& path) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto say = [&](bool needed, const char* conversion, const std::string& words) {
    if (!needed || !said_.insert(conversion).second) return;
    std::cerr << "note: " + OneLine(path.string() + ": " + words + "; further ones are not named") + "\n";
  };
  say(header.orientation != 1, "orientation",
      "turned by its EXIF orientation (" + std::to_string(header.orientation) + ")");
  say(header.kind.compare(0, 4, "grey") == 0, "grey", "grey, repeated in three channels");
  say(header.alpha, "alpha", "its transparency is left out");
  say(header.bits == 16, "bits", "16-bit, rounded to 8 bits");
  say(header.kind == "CMYK", "CMYK", "CMYK, converted to RGB without a colour profile");
}

cv::Mat DecodeImage(const std::vector<uint8_t>& bytes, const std::filesystem::path& path, int64_t max_pixels,
                    ConversionNotes* notes) {
  const std::optional<ImageHeader> header = ReadImageHeader(bytes);
  if (header) CheckHeader(*header, path, max_pixels);
  cv::Mat bgr;
  try {
    if (header && header->whole) bgr = Decode(bytes, *header);
  } catch (const cv::Exception& error) {
    throw ItemError(path.string() + ": cannot decode: " + error.err);
  } catch (const std::bad_alloc&) {
    throw ItemError(path.string() + ": cannot decode: it claims a size that does not fit into memory");
  }
  if (bgr.empty() || bgr.rows != header->height || bgr.cols != header->width) {
    throw ItemError(path.string() + ": not a whole image (" + std::to_string(bytes.size()) +
                    " bytes: truncated, damaged or no PNG, JPEG, WebP, BMP or TIFF); replace the file");
  }
  bgr = ToBytes(bgr, *header);
  if (bgr.type() != CV_8UC3) {
    throw ItemError(path.string() + ": image cannot be decoded to 8-bit colour: convert it to an 8-bit PNG");
  }
  if (notes != nullptr) notes->Say(*header, path);
  return Turn(bgr, header->orientation);
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
