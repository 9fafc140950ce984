#include "inc/predictor.h"

#include "inc/backend.h"
#include "inc/buffer.h"
#include "inc/error.h"
#include "inc/manifest.h"
#include "inc/preprocess.h"
#include "inc/restore.h"

namespace mindseg {
namespace {

BackendOptions OneStream(const PredictorOptions& options) {
  BackendOptions backend;
  backend.device_id = options.device_id;
  backend.streams = 1;
  return backend;
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
    return RestoreIds(output->data(), info.output_dtype, manifest.output, info.input.resize, image.size());
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
