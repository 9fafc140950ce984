#include "inc/overlay.h"

#include <array>

namespace mindseg {

cv::Mat Overlay(const cv::Mat& bgr, const cv::Mat& ids, const Palette& palette) {
  constexpr double kAlpha = 0.55;
  std::array<cv::Vec3b, 256> colours{};
  for (size_t id = 0; id < palette.size(); ++id) colours[id] = {palette[id][2], palette[id][1], palette[id][0]};
  cv::Mat colour(ids.size(), CV_8UC3);
  for (int y = 0; y < ids.rows; ++y) {
    const uint8_t* from = ids.ptr<uint8_t>(y);
    auto* to = colour.ptr<cv::Vec3b>(y);
    for (int x = 0; x < ids.cols; ++x) to[x] = colours[from[x]];
  }
  cv::Mat mixed;
  cv::addWeighted(bgr, 1.0 - kAlpha, colour, kAlpha, 0.0, mixed);
  bgr.copyTo(mixed, ids >= static_cast<int>(palette.size()));
  return mixed;
}

}  // namespace mindseg
