// Element types and layouts of model tensors, and conversions between what a model gives and what the manifest
// promises.
#ifndef ASCEND310_INFER_INC_TENSOR_H_
#define ASCEND310_INFER_INC_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mindseg {

enum class DType { kUint8, kFloat16, kFloat32, kInt32, kInt64 };
enum class Layout { kNchw, kNhwc };

size_t ElementSize(DType dtype);
const char* DTypeName(DType dtype);
const char* LayoutName(Layout layout);
std::string ShapeName(const std::vector<int64_t>& shape);  // "[1, 3, 1024, 2048]"

// Between float32 and float16 (2 bytes a value), rounded to the nearest, ties to even.
void FloatToHalf(const float* values, size_t count, void* halves);
void HalfToFloat(const void* halves, size_t count, float* values);

// Class ids of any integer or floating type -> uint8. Throws ItemError for an id outside 0..255.
void ToClassIds(DType dtype, const uint8_t* data, size_t count, uint8_t* ids);

// float16 or float32 -> float32. Throws UserError for another type.
void ToFloat32(DType dtype, const uint8_t* data, size_t count, float* values);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_TENSOR_H_
