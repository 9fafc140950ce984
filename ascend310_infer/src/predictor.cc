#include "inc/predictor.h"

#include <opencv2/imgproc.hpp>

#include "inc/backend.h"
#include "inc/buffer.h"
#include "inc/error.h"
#include "inc/manifest.h"
#include "inc/preprocess.h"
#include "inc/tensor.h"

namespace mindseg {
namespace {

BackendOptions OneStream(const PredictorOptions& options) {
  BackendOptions backend;
  backend.device_id = options.device_id;
  backend.streams = 1;
  return backend;
}

// Cuts the padding off and samples the nearest id for each pixel of the image.
cv::Mat FitIds(const cv::Mat& ids, const cv::Rect& content, const cv::Size& size) {
  if (content.size() == size) return ids(content).clone();
  cv::Mat result;
  cv::resize(ids(content), result, size, 0, 0, cv::INTER_NEAREST_EXACT);
  return result;
}

// The class with the largest logit of each pixel, after the logits are interpolated to the image's size.
cv::Mat LargestLogit(const std::vector<float>& logits, const OutputSpec& output, const cv::Rect& content,
                     const cv::Size& size) {
  cv::Mat ids(size, CV_8UC1, cv::Scalar(0));
  cv::Mat largest;
  for (int c = 0; c < output.classes; ++c) {
    const float* first = logits.data() + static_cast<size_t>(c) * output.height * output.width;
    cv::Mat plane = cv::Mat(output.height, output.width, CV_32FC1, const_cast<float*>(first))(content);
    if (content.size() != size) cv::resize(plane, plane, size, 0, 0, cv::INTER_LINEAR);
    if (c == 0) {
      largest = plane.clone();
      continue;
    }
    const cv::Mat is_larger = plane > largest;
    plane.copyTo(largest, is_larger);
    ids.setTo(c, is_larger);
  }
  return ids;
}

}  // namespace

struct Predictor::Model {
  Model(const std::filesystem::path& path, const PredictorOptions& options)
      : manifest(LoadManifest(path)),
        backend(CreateBackend(options.backend, manifest, OneStream(options))),
        info(backend->Info()),
        preprocessor(info.input),
        input(backend->MakeBuffer(info.input.BytesPerImage() * static_cast<size_t>(info.batch))),
        output(backend->MakeBuffer(manifest.output.ElementsPerImage() * ElementSize(info.output_dtype) *
                                   static_cast<size_t>(info.batch))) {}

  cv::Mat Predict(const cv::Mat& image) {
    if (image.empty() || image.type() != CV_8UC3) {
      throw UserError("Predict: the image must be BGR of 8 bits (CV_8UC3) and not empty; convert it with cv::cvtColor");
    }
    preprocessor.Run(image, "Predict", input->data());
    backend->Infer(0, 1, input->data(), output->data(), nullptr);
    const OutputSpec& spec = manifest.output;
    const cv::Rect content(cv::Point(0, 0), ContentSize(info.input.resize, image.size()));
    if (spec.logits) {
      std::vector<float> logits(spec.ElementsPerImage());
      ToFloat32(info.output_dtype, output->data(), logits.size(), logits.data());
      return LargestLogit(logits, spec, content, image.size());
    }
    cv::Mat ids(spec.height, spec.width, CV_8UC1);
    ToClassIds(info.output_dtype, output->data(), spec.ElementsPerImage(), ids.data);
    return FitIds(ids, content, image.size());
  }

  Manifest manifest;
  std::unique_ptr<Backend> backend;
  const BackendInfo& info;
  Preprocessor preprocessor;
  std::unique_ptr<Buffer> input;
  std::unique_ptr<Buffer> output;
};

Predictor::Predictor(const std::filesystem::path& manifest, const PredictorOptions& options)
    : model_(std::make_unique<Model>(manifest, options)) {}
Predictor::Predictor(Predictor&&) noexcept = default;
Predictor& Predictor::operator=(Predictor&&) noexcept = default;
Predictor::~Predictor() = default;

cv::Mat Predictor::Predict(const cv::Mat& image) { return model_->Predict(image); }

const std::vector<std::string>& Predictor::classes() const { return model_->manifest.classes; }

}  // namespace mindseg
