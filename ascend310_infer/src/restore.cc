#include "inc/restore.h"

#include <opencv2/imgproc.hpp>

#include "inc/preprocess.h"

namespace mindseg {

cv::Mat RestoreNearest(const cv::Mat& plane, const ResizeSpec& resize, const cv::Size& image) {
  const cv::Mat content = plane(cv::Rect(cv::Point(), ContentSize(resize, image)));
  if (content.size() == image) return content.clone();
  cv::Mat result;
  cv::resize(content, result, image, 0, 0, cv::INTER_NEAREST_EXACT);
  return result;
}

std::vector<float> ReadLogits(const uint8_t* tensor, DType dtype, const OutputSpec& output) {
  std::vector<float> logits(output.ElementsPerImage());
  ToFloat32(dtype, tensor, logits.size(), logits.data());
  return logits;
}

cv::Mat RestoreLogits(const std::vector<float>& logits, int label, const OutputSpec& output, const ResizeSpec& resize,
                      const cv::Size& image) {
  const float* first = logits.data() + static_cast<size_t>(label) * output.height * output.width;
  const cv::Mat whole(output.height, output.width, CV_32FC1, const_cast<float*>(first));  // only read
  const cv::Size content = ContentSize(resize, image);
  cv::Mat plane = whole(cv::Rect(cv::Point(), content));
  if (content != image) cv::resize(plane, plane, image, 0, 0, cv::INTER_LINEAR);
  return plane;
}

void TakeLarger(const cv::Mat& logits, int label, cv::Mat* largest, cv::Mat* ids) {
  if (label == 0) {
    *largest = logits.clone();
    *ids = cv::Mat::zeros(logits.size(), CV_8UC1);
    return;
  }
  const cv::Mat is_larger = logits > *largest;
  logits.copyTo(*largest, is_larger);
  ids->setTo(label, is_larger);
}

cv::Mat RestoreIds(const uint8_t* tensor, DType dtype, const OutputSpec& output, const ResizeSpec& resize,
                   const cv::Size& image) {
  if (!output.logits) {
    cv::Mat ids(output.height, output.width, CV_8UC1);
    ToClassIds(dtype, tensor, output.ElementsPerImage(), ids.data);
    return RestoreNearest(ids, resize, image);
  }
  const std::vector<float> logits = ReadLogits(tensor, dtype, output);
  cv::Mat largest;
  cv::Mat ids;
  for (int label = 0; label < output.classes; ++label) {
    TakeLarger(RestoreLogits(logits, label, output, resize, image), label, &largest, &ids);
  }
  return ids;
}

}  // namespace mindseg
