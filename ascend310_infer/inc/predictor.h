// The library's interface: from an image in memory to the class of every pixel.
//
//   mindseg::Predictor predictor("export/deploy.yaml");
//   cv::Mat ids = predictor.Predict(cv::imread("photo.jpg"));
#ifndef ASCEND310_INFER_INC_PREDICTOR_H_
#define ASCEND310_INFER_INC_PREDICTOR_H_

#include <filesystem>
#include <memory>
#include <opencv2/core.hpp>
#include <string>
#include <vector>

namespace mindseg {

struct PredictorOptions {
  std::string backend = "auto";  // acl, mslite or openvino; auto: the first that has a model file and a device
  int device_id = 0;             // Ascend device
};

// A loaded model. One thread at a time may use a predictor; several predictors may work side by side.
// Errors are exceptions derived from std::runtime_error, whose message is one line with the remedy.
class Predictor {
 public:
  // `manifest` is the deploy.yaml of an exported model, or its folder.
  explicit Predictor(const std::filesystem::path& manifest, const PredictorOptions& options = {});
  Predictor(Predictor&&) noexcept;
  Predictor& operator=(Predictor&&) noexcept;
  ~Predictor();

  // `image` is BGR, 8-bit (CV_8UC3), as cv::imread gives it. The result has its size and holds class ids (CV_8UC1).
  cv::Mat Predict(const cv::Mat& image);

  // Class names in the order of the ids.
  const std::vector<std::string>& classes() const;

 private:
  struct Model;
  std::unique_ptr<Model> model_;
};

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_PREDICTOR_H_
