// Answer of a model -> class ids at the size of the image, as EvalResize.restore in src/mindseg/resize.py.
#ifndef ASCEND310_INFER_INC_RESTORE_H_
#define ASCEND310_INFER_INC_RESTORE_H_

#include <cstdint>
#include <opencv2/core.hpp>
#include <vector>

#include "inc/manifest.h"
#include "inc/tensor.h"

namespace mindseg {

// Class ids (CV_8UC1) of an image of size `image`: padding is cut off; then ids are sampled nearest, and logits are
// resized bilinearly before the largest is taken. `tensor` is one image's output. Throws ItemError for ids outside
// 0..255.
cv::Mat RestoreIds(const uint8_t* tensor, DType dtype, const OutputSpec& output, const ResizeSpec& resize,
                   const cv::Size& image);

// The same for a plane of bytes (CV_8UC1) of the model's size: ids or their confidence.
cv::Mat RestoreNearest(const cv::Mat& plane, const ResizeSpec& resize, const cv::Size& image);

// One image's logits in float32, in the order of the tensor.
std::vector<float> ReadLogits(const uint8_t* tensor, DType dtype, const OutputSpec& output);

// Logits of a class (CV_32FC1) at the size of the image; may share the memory of `logits`.
cv::Mat RestoreLogits(const std::vector<float>& logits, int label, const OutputSpec& output, const ResizeSpec& resize,
                      const cv::Size& image);

// Notes where the logits of a class are above those of the classes before it, from class 0 on; `largest` and `ids` are
// made with class 0.
void TakeLarger(const cv::Mat& logits, int label, cv::Mat* largest, cv::Mat* ids);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_RESTORE_H_
