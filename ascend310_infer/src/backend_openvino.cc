// OpenVINO on a CPU: the model's ONNX file, one infer request a slot, tensors shared with the caller without copies.
#include <stdlib.h>

#include <openvino/frontend/manager.hpp>
#include <openvino/openvino.hpp>

#include "inc/backend.h"
#include "inc/error.h"

namespace mindseg {
namespace {

constexpr char kDevice[] = "CPU";

DType FromOpenvino(const ov::element::Type& type) {
  if (type == ov::element::u8) return DType::kUint8;
  if (type == ov::element::f16) return DType::kFloat16;
  if (type == ov::element::f32) return DType::kFloat32;
  if (type == ov::element::i32) return DType::kInt32;
  if (type == ov::element::i64) return DType::kInt64;
  throw UserError("the model has a tensor of type " + type.get_type_name() + "; export it with export.py");
}

std::string ShapeOf(const ov::PartialShape& shape) {
  std::vector<int64_t> sides;
  for (const ov::Dimension& side : shape) sides.push_back(side.is_static() ? side.get_length() : kDynamicBatch);
  return ShapeName(sides);
}

class OpenvinoBackend : public Backend {
 public:
  OpenvinoBackend(const Manifest& manifest, const BackendOptions& options) : core_(MakeCore()) {
    if (options.device_id != 0) {
      throw UserError("--device_id " + std::to_string(options.device_id) +
                      ": the OpenVINO backend has the CPU only, device 0");
    }
    const ModelFile& file = manifest.FindModel(manifest.HasFormat("onnx") ? "onnx" : "openvino", options.batch);
    CheckModelFile(manifest, file);
    info_.batch = file.batch != kDynamicBatch ? file.batch : (options.batch ? options.batch : 1);
    const std::shared_ptr<ov::Model> model = Read(manifest, file);
    Compile(model, options);
    info_.backend = "openvino";
    info_.version = ov::get_openvino_version().buildNumber;
    info_.model_file = file.path.filename().string();
    info_.model_sha256 = file.sha256;
    info_.input = manifest.input;
    info_.input.dtype = FromOpenvino(model->input().get_element_type());
    info_.output_dtype = FromOpenvino(model->output(0).get_element_type());
    const auto sizes = [](const std::vector<int64_t>& shape) { return ov::Shape(shape.begin(), shape.end()); };
    input_type_ = model->input().get_element_type();
    input_shape_ = sizes(manifest.input.Shape(info_.batch));
    output_type_ = model->output(0).get_element_type();
    output_shape_ = sizes(manifest.output.Shape(info_.batch));
  }

  const BackendInfo& Info() const override { return info_; }

  void Infer(int call, int64_t /*count*/, const uint8_t* input, uint8_t* output, uint8_t* confidence) override {
    try {
      ov::InferRequest& request = requests_[static_cast<size_t>(call)];
      // The plugin only reads the input tensor; its constructor just has no const form.
      request.set_input_tensor(ov::Tensor(input_type_, input_shape_, const_cast<uint8_t*>(input)));
      request.set_output_tensor(0, ov::Tensor(output_type_, output_shape_, output));
      if (confidence != nullptr) {
        request.set_output_tensor(1, ov::Tensor(ov::element::u8, output_shape_, confidence));
      }
      request.start_async();  // infer() would run in this thread and not on the stream made for the request
      request.wait();
    } catch (const std::exception& error) {
      throw UserError("OpenVINO could not run " + info_.model_file + ": " + error.what());
    }
  }

 private:
  static ov::Core MakeCore() {
    // The project's Python sets this against a fault of MindSpore's oneDNN, and children inherit it. OpenVINO's own
    // copy of oneDNN has no such fault and would only be slower.
    ::unsetenv("ONEDNN_MAX_CPU_ISA");
    return ov::Core();
  }

  std::shared_ptr<ov::Model> Read(const Manifest& manifest, const ModelFile& file) {
    std::shared_ptr<ov::Model> model;
    try {
      // By name: read_model() of a damaged ONNX file tries every other front end too, which print messages of their
      // own.
      if (file.format == "onnx") {
        const ov::frontend::FrontEnd::Ptr front_end = ov::frontend::FrontEndManager().load_by_framework("onnx");
        model = front_end->convert(front_end->load(file.path.string()));
      } else {
        model = core_.read_model(file.path.string());
      }
    } catch (const std::exception& error) {
      throw UserError(file.path.string() + ": not a model that OpenVINO can read; export it again: " + error.what());
    }
    if (model->inputs().size() != 1 || model->outputs().size() != OutputCount(manifest)) {
      throw UserError(file.path.string() + ": has " + std::to_string(model->inputs().size()) + " inputs and " +
                      std::to_string(model->outputs().size()) + " outputs, must have 1 and " +
                      std::to_string(OutputCount(manifest)) + "; use export.py");
    }
    try {
      const std::vector<int64_t> shape = manifest.input.Shape(info_.batch);
      if (model->input().get_partial_shape().is_dynamic()) model->reshape(ov::PartialShape(shape));
    } catch (const std::exception& error) {
      throw UserError(file.path.string() + ": cannot take batch " + std::to_string(info_.batch) + ": " + error.what());
    }
    CheckTensor(manifest, file, "input", model->input(), manifest.input.name, manifest.input.Shape(info_.batch));
    CheckTensor(manifest, file, "output", model->output(0), manifest.output.name, manifest.output.Shape(info_.batch));
    if (OutputCount(manifest) == 2) {
      const ov::Output<ov::Node> second = model->output(1);
      CheckTensor(manifest, file, "output.confidence", second, manifest.output.confidence,
                  manifest.output.Shape(info_.batch));
      CheckConfidence(manifest, file, info_.batch, FromOpenvino(second.get_element_type()),
                      manifest.output.Shape(info_.batch));
    }
    const DType dtype = FromOpenvino(model->input().get_element_type());
    if (dtype != manifest.input.dtype && dtype != DType::kFloat16) {
      throw UserError(manifest.path.string() + ": input.dtype: is " + DTypeName(manifest.input.dtype) + " but " +
                      file.path.string() + " takes " + DTypeName(dtype) + "; is this the manifest of another model?");
    }
    return model;
  }

  static void CheckTensor(const Manifest& manifest, const ModelFile& file, const std::string& what,
                          const ov::Output<ov::Node>& tensor, const std::string& name,
                          const std::vector<int64_t>& shape) {
    const bool same_name = tensor.get_names().count(name) > 0;
    if (same_name && tensor.get_partial_shape().compatible(ov::PartialShape(shape))) return;
    const std::string actual = tensor.get_names().empty() ? "?" : *tensor.get_names().begin();
    throw UserError(manifest.path.string() + ": " + what + ": says '" + name + "' " + ShapeName(shape) + " but " +
                    file.path.string() + " has '" + actual + "' " + ShapeOf(tensor.get_partial_shape()) +
                    "; is this the manifest of another model?");
  }

  void CheckBf16() {
    const auto capabilities = core_.get_property(kDevice, ov::device::capabilities);
    for (const std::string& capability : capabilities) {
      if (capability == ov::device::capability::BF16) return;
    }
    throw UserError("--precision bf16: this CPU has no bfloat16; use --precision f32");
  }

  void Compile(const std::shared_ptr<ov::Model>& model, const BackendOptions& options) {
    if (options.bf16) CheckBf16();
    // Without the hint OpenVINO computes in bfloat16 on CPUs that have it, 1.7 % off in the logits.
    ov::AnyMap config = {ov::hint::inference_precision(options.bf16 ? ov::element::bf16 : ov::element::f32),
                         ov::hint::performance_mode(ov::hint::PerformanceMode::THROUGHPUT)};
    if (options.streams > 0) config.insert(ov::num_streams(options.streams));
    try {
      compiled_ = core_.compile_model(model, kDevice, config);
      info_.device = core_.get_property(kDevice, ov::device::full_name);
      info_.precision = compiled_.get_property(ov::hint::inference_precision).get_type_name();
      info_.slots = options.streams > 0
                        ? options.streams
                        : static_cast<int>(compiled_.get_property(ov::optimal_number_of_infer_requests));
      for (int slot = 0; slot < info_.slots; ++slot) requests_.push_back(compiled_.create_infer_request());
    } catch (const std::exception& error) {
      throw UserError("OpenVINO cannot compile the model for the CPU: " + std::string(error.what()));
    }
  }

  BackendInfo info_;
  ov::Core core_;
  ov::CompiledModel compiled_;
  std::vector<ov::InferRequest> requests_;
  ov::element::Type input_type_;
  ov::element::Type output_type_;
  ov::Shape input_shape_;
  ov::Shape output_shape_;
};

}  // namespace

std::unique_ptr<Backend> CreateOpenvinoBackend(const Manifest& manifest, const BackendOptions& options) {
  return std::make_unique<OpenvinoBackend>(manifest, options);
}

}  // namespace mindseg
