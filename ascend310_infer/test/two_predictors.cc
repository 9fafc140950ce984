// Two predictors on one simulated device, side by side and after each other: `two_predictors MANIFEST IMAGE MASK`
// writes the mask if all agree on it.
#include <future>
#include <iostream>
#include <memory>
#include <opencv2/imgcodecs.hpp>

#include "inc/predictor.h"

int main(int argc, char** argv) {
  if (argc != 4) return 1;
  const cv::Mat image = cv::imread(argv[2]);
  mindseg::PredictorOptions options;
  options.backend = "acl";
  try {
    auto first = std::make_unique<mindseg::Predictor>(argv[1], options);
    mindseg::Predictor second(argv[1], options);
    auto other_thread = std::async(std::launch::async, [&] { return first->Predict(image); });
    const cv::Mat mask = second.Predict(image);
    bool same = cv::norm(other_thread.get(), mask, cv::NORM_INF) == 0;
    first.reset();
    same = same && cv::norm(second.Predict(image), mask, cv::NORM_INF) == 0;
    return same && cv::imwrite(argv[3], mask) ? 0 : 2;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 1;
  }
}
