#include "inc/tensor.h"

#include <algorithm>
#include <cstring>
#include <opencv2/core.hpp>

#include "inc/error.h"

namespace mindseg {

size_t ElementSize(DType dtype) {
  switch (dtype) {
    case DType::kUint8:
      return 1;
    case DType::kFloat16:
      return 2;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kInt64:
      return 8;
  }
  return 0;
}

const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kUint8:
      return "uint8";
    case DType::kFloat16:
      return "float16";
    case DType::kFloat32:
      return "float32";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
  }
  return "?";
}

const char* LayoutName(Layout layout) { return layout == Layout::kNchw ? "NCHW" : "NHWC"; }

std::string ShapeName(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

namespace {

// In pieces, because OpenCV counts columns in an int.
void ConvertWithOpenCv(const void* source, int source_type, void* target, int target_type, size_t count) {
  constexpr size_t kPiece = size_t{1} << 20;
  auto* from = static_cast<uint8_t*>(const_cast<void*>(source));  // only read; cv::Mat has no const form
  auto* to = static_cast<uint8_t*>(target);
  for (size_t done = 0; done < count; done += kPiece) {
    const int columns = static_cast<int>(std::min(kPiece, count - done));
    cv::Mat result(1, columns, target_type, to + done * CV_ELEM_SIZE(target_type));
    cv::Mat(1, columns, source_type, from + done * CV_ELEM_SIZE(source_type)).convertTo(result, target_type);
  }
}

template <typename T>
void FillIds(const uint8_t* data, size_t count, uint8_t* ids) {
  for (size_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, data + i * sizeof(T), sizeof(T));
    const auto id = static_cast<double>(value);
    if (!(id >= 0 && id <= 255)) {
      throw ItemError("the model gave class id " + std::to_string(id) + ", which is not in 0..255");
    }
    ids[i] = static_cast<uint8_t>(id);
  }
}

}  // namespace

void FloatToHalf(const float* values, size_t count, void* halves) {
  ConvertWithOpenCv(values, CV_32F, halves, CV_16F, count);
}

void HalfToFloat(const void* halves, size_t count, float* values) {
  ConvertWithOpenCv(halves, CV_16F, values, CV_32F, count);
}

void ToClassIds(DType dtype, const uint8_t* data, size_t count, uint8_t* ids) {
  switch (dtype) {
    case DType::kUint8:
      std::memcpy(ids, data, count);
      return;
    case DType::kInt32:
      return FillIds<int32_t>(data, count, ids);
    case DType::kInt64:
      return FillIds<int64_t>(data, count, ids);
    case DType::kFloat32:
      return FillIds<float>(data, count, ids);
    case DType::kFloat16: {
      std::vector<float> values(count);
      HalfToFloat(data, count, values.data());
      return FillIds<float>(reinterpret_cast<const uint8_t*>(values.data()), count, ids);
    }
  }
}

void ToFloat32(DType dtype, const uint8_t* data, size_t count, float* values) {
  if (dtype == DType::kFloat32) {
    std::memcpy(values, data, count * sizeof(float));
  } else if (dtype == DType::kFloat16) {
    HalfToFloat(data, count, values);
  } else {
    throw UserError(std::string("the model gives ") + DTypeName(dtype) + " where logits in float16 or float32 belong");
  }
}

}  // namespace mindseg
