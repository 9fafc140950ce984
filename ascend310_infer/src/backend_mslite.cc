// MindSpore Lite: a .mindir on Ascend (default), on the CPU, or on a GPU (untested). One model a slot, since a Lite
// model must not predict in two threads at once.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "inc/backend.h"
#include "inc/error.h"
#include "include/api/context.h"
#include "include/api/model.h"
#include "include/api/status.h"
#include "include/api/types.h"

namespace mindseg {
namespace {

using mindspore::MSTensor;

void Check(const mindspore::Status& status, const std::string& what) {
  if (status.IsOk()) return;
  throw UserError("MindSpore Lite: " + what + " failed: " + status.ToString());
}

DType FromLite(enum mindspore::DataType type, const std::string& path) {
  switch (type) {
    case mindspore::DataType::kNumberTypeUInt8:
      return DType::kUint8;
    case mindspore::DataType::kNumberTypeFloat16:
      return DType::kFloat16;
    case mindspore::DataType::kNumberTypeFloat32:
      return DType::kFloat32;
    case mindspore::DataType::kNumberTypeInt32:
      return DType::kInt32;
    case mindspore::DataType::kNumberTypeInt64:
      return DType::kInt64;
    default:
      throw UserError(path + ": has a tensor of MindSpore type " + std::to_string(static_cast<int>(type)) +
                      ", which the runner does not know; export it with export.py");
  }
}

std::shared_ptr<mindspore::DeviceInfoContext> MakeDevice(const Manifest& manifest, const BackendOptions& options) {
  if (options.device == "cpu") return std::make_shared<mindspore::CPUDeviceInfo>();
  if (options.device == "gpu") {
    auto gpu = std::make_shared<mindspore::GPUDeviceInfo>();
    gpu->SetDeviceID(static_cast<uint32_t>(options.device_id));
    return gpu;
  }
  auto ascend = std::make_shared<mindspore::AscendDeviceInfo>();
  ascend->SetDeviceID(static_cast<uint32_t>(options.device_id));
  if (!manifest.fusion_switch.empty()) ascend->SetFusionSwitchConfigPath(manifest.fusion_switch.string());
  return ascend;
}

class MsliteBackend : public Backend {
 public:
  MsliteBackend(const Manifest& manifest, const BackendOptions& options) {
    if (options.bf16)
      throw UserError("--precision bf16: for OpenVINO; a .mindir has the precision it was exported with");
    const ModelFile& file = manifest.FindModel("mindir", options.batch);
    CheckModelFile(manifest, file);
    info_.backend = "mslite";
    info_.version = mindspore::Version();
    info_.simulated = info_.version.find("SIMULATED") != std::string::npos;
    info_.device = (options.device.empty() ? "ascend" : options.device) + " " + std::to_string(options.device_id);
    info_.precision = "as exported";
    info_.model_file = file.path.filename().string();
    info_.model_sha256 = file.sha256;
    info_.slots = std::max(1, options.streams);
    info_.batch = PickBatch(file, options.batch);
    for (int i = 0; i < info_.slots; ++i) models_.push_back(Build(manifest, options, file));
    CheckAgainst(manifest, file);
  }

  const BackendInfo& Info() const override { return info_; }

  void Infer(int call, int64_t /*count*/, const uint8_t* input, uint8_t* output, uint8_t* confidence) override {
    mindspore::Model& model = *models_[static_cast<size_t>(call)];
    std::vector<MSTensor> inputs = model.GetInputs();
    void* room = inputs.at(0).MutableData();
    if (room == nullptr) throw UserError("MindSpore Lite: no memory for the input of " + info_.model_file);
    std::memcpy(room, input, input_bytes_);
    std::vector<MSTensor> outputs;
    Check(model.Predict(inputs, &outputs), "Predict of " + info_.model_file);
    std::vector<int64_t> sizes;
    for (const MSTensor& tensor : outputs) sizes.push_back(static_cast<int64_t>(tensor.DataSize()));
    if (sizes != output_bytes_) {
      throw UserError("MindSpore Lite: " + info_.model_file + " gave outputs of " + ShapeName(sizes) +
                      " bytes, must give " + ShapeName(output_bytes_) + "; is this the manifest of another model?");
    }
    std::memcpy(output, outputs[0].MutableData(), outputs[0].DataSize());
    if (confidence != nullptr) std::memcpy(confidence, outputs[1].MutableData(), outputs[1].DataSize());
  }

 private:
  static int64_t PickBatch(const ModelFile& file, int64_t requested) {
    if (file.batch != kDynamicBatch) return file.batch;
    if (file.gears.empty()) return std::max<int64_t>(1, requested);
    if (requested == 0) return file.gears.front();
    if (std::count(file.gears.begin(), file.gears.end(), requested) > 0) return requested;
    throw UserError("--batch " + std::to_string(requested) + ": " + file.path.string() + " was converted for " +
                    ShapeName(file.gears) + "; choose one of these or convert again");
  }

  std::unique_ptr<mindspore::Model> Build(const Manifest& manifest, const BackendOptions& options,
                                          const ModelFile& file) {
    auto context = std::make_shared<mindspore::Context>();
    context->MutableDeviceInfo().push_back(MakeDevice(manifest, options));
    auto model = std::make_unique<mindspore::Model>();
    Check(model->Build(file.path.string(), mindspore::kMindIR, context), "Build of " + file.path.string());
    const std::vector<MSTensor> inputs = model->GetInputs();
    if (inputs.size() != 1) {
      throw UserError(file.path.string() + ": has " + std::to_string(inputs.size()) +
                      " inputs, must have one; export it with export.py");
    }
    if (file.batch == kDynamicBatch) {
      Check(model->Resize(inputs, {manifest.input.Shape(info_.batch)}), "Resize of " + file.path.string());
    }
    return model;
  }

  // The tensors may differ from the manifest's in type and by AIPP, not in size.
  void CheckAgainst(const Manifest& manifest, const ModelFile& file) {
    std::vector<MSTensor> inputs = models_[0]->GetInputs();
    const std::vector<MSTensor> outputs = models_[0]->GetOutputs();
    if (outputs.size() != OutputCount(manifest)) {
      throw UserError(file.path.string() + ": has " + std::to_string(outputs.size()) + " outputs, must have " +
                      std::to_string(OutputCount(manifest)) + "; is this the manifest of another model?");
    }
    info_.input = manifest.input;
    info_.input.dtype = FromLite(inputs[0].DataType(), file.path.string());
    info_.output_dtype = FromLite(outputs[0].DataType(), file.path.string());
    if (info_.input.dtype == DType::kUint8 && manifest.input.dtype != DType::kUint8) {
      info_.input.layout = Layout::kNhwc;
      info_.input.normalize_on_host = false;
    }
    const auto batch = static_cast<size_t>(info_.batch);
    input_bytes_ = info_.input.BytesPerImage() * batch;
    const size_t elements = manifest.output.ElementsPerImage() * batch;
    output_bytes_ = {static_cast<int64_t>(elements * ElementSize(info_.output_dtype))};
    if (outputs.size() == 2) {
      CheckConfidence(manifest, file, info_.batch, FromLite(outputs[1].DataType(), file.path.string()),
                      outputs[1].Shape());
      output_bytes_.push_back(static_cast<int64_t>(elements));
    }
    const std::vector<int64_t> input = info_.input.Shape(info_.batch);
    if (inputs[0].Shape() == input && inputs[0].DataSize() == input_bytes_) return;
    throw UserError(manifest.path.string() + ": says input " + ShapeName(input) + " but " + file.path.string() +
                    " has " + ShapeName(inputs[0].Shape()) + "; is this the manifest of another model?");
  }

  BackendInfo info_;
  std::vector<std::unique_ptr<mindspore::Model>> models_;
  size_t input_bytes_ = 0;
  std::vector<int64_t> output_bytes_;  // of each output
};

}  // namespace

std::unique_ptr<Backend> CreateMsliteBackend(const Manifest& manifest, const BackendOptions& options) {
  return std::make_unique<MsliteBackend>(manifest, options);
}

}  // namespace mindseg
