#include "inc/tensor.h"

#include <cstring>

#include "inc/error.h"

namespace segment {

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

uint16_t FloatToHalf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (bits < 0x38800000u) {                                               // subnormal half: let the float adder round
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;  // one unit in the last place of 0.5 is 2^-24, the smallest half
    uint32_t shifted;
    std::memcpy(&shifted, &magnitude, sizeof(shifted));
    return static_cast<uint16_t>(sign | (shifted - 0x3f000000u));
  }
  const uint32_t odd = (bits >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -value : value;
  }
  const uint32_t bits =
      sign | (exponent == 31 ? 0x7f800000u | (mantissa << 13) : ((exponent + 112) << 23) | (mantissa << 13));
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

namespace {

template <typename T>
T Load(const uint8_t* data, size_t index) {
  T value;
  std::memcpy(&value, data + index * sizeof(T), sizeof(T));
  return value;
}

template <typename Get>
void FillIds(size_t count, uint8_t* ids, Get get) {
  for (size_t i = 0; i < count; ++i) {
    const double id = static_cast<double>(get(i));
    if (!(id >= 0 && id <= 255)) {
      throw ItemError("the model gave class id " + std::to_string(id) + ", which is not in 0..255");
    }
    ids[i] = static_cast<uint8_t>(id);
  }
}

}  // namespace

void ToClassIds(DType dtype, const uint8_t* data, size_t count, uint8_t* ids) {
  switch (dtype) {
    case DType::kUint8:
      std::memcpy(ids, data, count);
      return;
    case DType::kInt32:
      return FillIds(count, ids, [data](size_t i) { return Load<int32_t>(data, i); });
    case DType::kInt64:
      return FillIds(count, ids, [data](size_t i) { return Load<int64_t>(data, i); });
    case DType::kFloat16:
      return FillIds(count, ids, [data](size_t i) { return HalfToFloat(Load<uint16_t>(data, i)); });
    case DType::kFloat32:
      return FillIds(count, ids, [data](size_t i) { return Load<float>(data, i); });
  }
}

void ToFloat32(DType dtype, const uint8_t* data, size_t count, float* values) {
  if (dtype == DType::kFloat32) {
    std::memcpy(values, data, count * sizeof(float));
  } else if (dtype == DType::kFloat16) {
    for (size_t i = 0; i < count; ++i) values[i] = HalfToFloat(Load<uint16_t>(data, i));
  } else {
    throw UserError(std::string("the model gives ") + DTypeName(dtype) + " where logits in float16 or float32 belong");
  }
}

}  // namespace segment
