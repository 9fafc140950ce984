// A SIMULATION of MindSpore Lite for tests: a ".mindir" here is a text file "SIMULATED MINDIR" that names its ONNX
// twin, which runs on OpenVINO. Never installed, never part of the product. FAKE_MSLITE_DEVICES=n Ascend devices
// (default 1).
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <openvino/openvino.hpp>

#include "include/api/model.h"

namespace mindspore {
namespace {

DataType TypeOf(const ov::element::Type& type) {
  if (type == ov::element::u8) return DataType::kNumberTypeUInt8;
  if (type == ov::element::f16) return DataType::kNumberTypeFloat16;
  if (type == ov::element::i32) return DataType::kNumberTypeInt32;
  if (type == ov::element::i64) return DataType::kNumberTypeInt64;
  return DataType::kNumberTypeFloat32;
}

MSTensor MakeTensor(const ov::Output<const ov::Node>& port) {
  auto content = std::make_shared<MSTensor::Content>();
  content->type = TypeOf(port.get_element_type());
  size_t bytes = port.get_element_type().size();
  for (const ov::Dimension& side : port.get_partial_shape()) {
    content->shape.push_back(side.is_static() ? side.get_length() : -1);
    bytes *= side.is_static() ? static_cast<size_t>(side.get_length()) : 0;
  }
  content->data.resize(bytes);
  return MSTensor(content);
}

Status CheckDevice(Context* context) {
  if (context->MutableDeviceInfo().size() != 1) return Status("no device in the context");
  const auto ascend = std::dynamic_pointer_cast<AscendDeviceInfo>(context->MutableDeviceInfo()[0]);
  const char* text = std::getenv("FAKE_MSLITE_DEVICES");
  const int devices = text == nullptr ? 1 : std::atoi(text);
  if (ascend != nullptr && static_cast<int>(ascend->GetDeviceID()) >= devices) return Status("no such Ascend device");
  if (ascend != nullptr && !ascend->GetFusionSwitchConfigPath().empty() &&
      !std::filesystem::exists(ascend->GetFusionSwitchConfigPath())) {
    return Status("no fusion switch file " + ascend->GetFusionSwitchConfigPath());
  }
  return Status();
}

}  // namespace

std::string Version() { return "SIMULATED MindSpore Lite"; }

struct Model::State {
  ov::Core core;
  std::shared_ptr<ov::Model> twin;
  ov::CompiledModel compiled;
  std::vector<MSTensor> inputs;
  std::vector<MSTensor> outputs;
  std::atomic<bool> running{false};

  void Compile() {
    if (twin->is_dynamic()) {  // until Resize
      inputs = {MakeTensor(std::const_pointer_cast<const ov::Model>(twin)->input())};
      return;
    }
    compiled = core.compile_model(twin, "CPU", ov::hint::inference_precision(ov::element::f32));
    inputs = {MakeTensor(compiled.input())};
    outputs.clear();
    for (const ov::Output<const ov::Node>& port : compiled.outputs()) outputs.push_back(MakeTensor(port));
  }
};

Model::Model() : state_(std::make_unique<State>()) {}
Model::~Model() = default;

Status Model::Build(const std::string& model_path, ModelType model_type, const std::shared_ptr<Context>& context) {
  if (model_type != kMindIR) return Status("model type");
  const Status device = CheckDevice(context.get());
  if (!device.IsOk()) return device;
  std::ifstream file(model_path);
  std::string line;
  std::string onnx;
  if (!std::getline(file, line) || line != "SIMULATED MINDIR" || !std::getline(file, onnx)) {
    return Status("this is the simulation, and that is not a simulated .mindir");
  }
  try {
    state_->twin = state_->core.read_model((std::filesystem::path(model_path).parent_path() / onnx).string());
    state_->Compile();
  } catch (const std::exception& error) {
    return Status(error.what());
  }
  return Status();
}

Status Model::Resize(const std::vector<MSTensor>& inputs, const std::vector<std::vector<int64_t>>& dims) {
  if (inputs.size() != 1 || dims.size() != 1) return Status("one input");
  try {
    state_->twin->reshape(ov::PartialShape(dims[0]));
    state_->Compile();
  } catch (const std::exception& error) {
    return Status(error.what());
  }
  return Status();
}

std::vector<MSTensor> Model::GetInputs() { return state_->inputs; }
std::vector<MSTensor> Model::GetOutputs() { return state_->outputs; }

Status Model::Predict(const std::vector<MSTensor>& inputs, std::vector<MSTensor>* outputs) {
  if (inputs.size() != 1 || state_->outputs.empty()) return Status("inputs");
  if (state_->running.exchange(true)) return Status("Predict in two threads at once");
  MSTensor input = inputs[0];
  ov::InferRequest request = state_->compiled.create_infer_request();
  request.set_input_tensor(ov::Tensor(state_->compiled.input().get_element_type(), state_->compiled.input().get_shape(),
                                      input.MutableData()));
  request.infer();
  for (size_t i = 0; i < state_->outputs.size(); ++i) {
    MSTensor output = state_->outputs[i];
    std::memcpy(output.MutableData(), request.get_output_tensor(i).data(), output.DataSize());
  }
  *outputs = state_->outputs;
  state_->running = false;
  return Status();
}

}  // namespace mindspore
