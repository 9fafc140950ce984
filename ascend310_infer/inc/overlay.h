// Photographs with the classes' colours over them.
#ifndef ASCEND310_INFER_INC_OVERLAY_H_
#define ASCEND310_INFER_INC_OVERLAY_H_

#include <opencv2/core.hpp>

#include "inc/manifest.h"

namespace mindseg {

// Blends the colours of class ids (CV_8UC1) over a photograph (BGR) of their size; pixels without a class show the
// photograph alone. As overlay in src/mindseg/drawing.py.
cv::Mat Overlay(const cv::Mat& bgr, const cv::Mat& ids, const Palette& palette);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_OVERLAY_H_
