#include "test/fake_ascendcl/om.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace fake {
namespace {

aclDataType TypeOf(const std::string& name) {
  static const std::map<std::string, aclDataType> kTypes = {
      {"float32", ACL_FLOAT}, {"f32", ACL_FLOAT}, {"float16", ACL_FLOAT16}, {"f16", ACL_FLOAT16},
      {"int32", ACL_INT32},   {"i32", ACL_INT32}, {"uint8", ACL_UINT8},     {"u8", ACL_UINT8},
      {"int64", ACL_INT64},   {"i64", ACL_INT64}};
  const auto type = kTypes.find(name);
  if (type == kTypes.end()) throw std::runtime_error("type " + name);
  return type->second;
}

ov::element::Type OpenvinoType(aclDataType type) {
  switch (type) {
    case ACL_FLOAT16:
      return ov::element::f16;
    case ACL_INT32:
      return ov::element::i32;
    case ACL_UINT8:
      return ov::element::u8;
    case ACL_INT64:
      return ov::element::i64;
    default:
      return ov::element::f32;
  }
}

std::vector<int64_t> Sides(const ov::PartialShape& shape) {
  std::vector<int64_t> sides;
  for (const ov::Dimension& side : shape) sides.push_back(side.is_static() ? side.get_length() : -1);
  return sides;
}

size_t Product(const std::vector<int64_t>& sides) {
  size_t product = 1;
  for (size_t i = 1; i < sides.size(); ++i) product *= static_cast<size_t>(sides[i]);
  return product;
}

template <typename To, typename From>
void Convert(const void* from, void* to, size_t count) {
  const auto* source = static_cast<const From*>(from);
  auto* target = static_cast<To*>(to);
  for (size_t i = 0; i < count; ++i) target[i] = static_cast<To>(source[i]);
}

template <typename From>
void ConvertFrom(const void* from, const ov::element::Type& type, void* to, size_t count) {
  if (type == ov::element::f32) return Convert<float, From>(from, to, count);
  if (type == ov::element::f16) return Convert<ov::float16, From>(from, to, count);
  if (type == ov::element::u8) return Convert<uint8_t, From>(from, to, count);
  if (type == ov::element::i32) return Convert<int32_t, From>(from, to, count);
  if (type == ov::element::i64) return Convert<int64_t, From>(from, to, count);
  throw std::runtime_error("type " + type.get_type_name());
}

void ConvertAny(const void* from, const ov::element::Type& from_type, void* to, const ov::element::Type& to_type,
                size_t count) {
  if (from_type == ov::element::f32) return ConvertFrom<float>(from, to_type, to, count);
  if (from_type == ov::element::f16) return ConvertFrom<ov::float16>(from, to_type, to, count);
  if (from_type == ov::element::u8) return ConvertFrom<uint8_t>(from, to_type, to, count);
  if (from_type == ov::element::i32) return ConvertFrom<int32_t>(from, to_type, to, count);
  if (from_type == ov::element::i64) return ConvertFrom<int64_t>(from, to_type, to, count);
  throw std::runtime_error("type " + from_type.get_type_name());
}

}  // namespace

size_t TypeBytes(aclDataType type) { return OpenvinoType(type).size(); }

OmModel::OmModel(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || line != "SIMULATED OM") throw std::runtime_error("not a simulated .om");
  const std::string folder = std::filesystem::path(path).parent_path().string();
  std::map<std::string, std::string> lines;
  while (std::getline(file, line)) {
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) lines[line.substr(0, colon)] = line.substr(colon + 2);
  }
  ParseLine("onnx", lines.at("onnx"), folder);
  lines.erase("onnx");
  for (const auto& [key, value] : lines) ParseLine(key, value, folder);
}

void OmModel::ParseLine(const std::string& key, const std::string& value, const std::string& folder) {
  std::istringstream words(value);
  if (key == "onnx") {
    const std::filesystem::path path = std::filesystem::path(folder) / value;
    file_bytes_ = std::filesystem::file_size(path);
    twin_ = core_.read_model(path.string());
    input_name_ = *twin_->input().get_names().begin();
    input_shape_ = Sides(twin_->input().get_partial_shape());
    input_type_ = TypeOf(twin_->input().get_element_type().get_type_name());
    for (size_t port = 0; port < twin_->outputs().size(); ++port) {
      const ov::Output<ov::Node> output = twin_->output(port);
      outputs_.push_back({port, *output.get_names().begin(), Sides(output.get_partial_shape()),
                          TypeOf(output.get_element_type().get_type_name())});
    }
  } else if (key == "gears") {
    for (int64_t gear; words >> gear;) gears_.push_back(gear);
    if (input_shape_[0] != -1) throw std::runtime_error("gears need a twin of dynamic batch");
  } else if (key == "input_dtype") {
    input_type_ = TypeOf(value);
  } else if (key == "output_dtype") {
    outputs_.at(0).type = TypeOf(value);
  } else if (key == "outputs") {
    if (value != "1 0" || outputs_.size() != 2) throw std::runtime_error("outputs: only 1 0, for two of them");
    std::swap(outputs_[0], outputs_[1]);
  } else if (key == "aipp") {
    for (float number; words >> number;) aipp_.push_back(number);
    if (aipp_.size() != 9) throw std::runtime_error("aipp needs 9 numbers");
    input_type_ = ACL_UINT8;
  } else {
    throw std::runtime_error("key " + key);
  }
}

std::vector<int64_t> OmModel::InputShape() const {
  if (aipp_.empty()) return input_shape_;
  return {input_shape_[0], input_shape_[2], input_shape_[3], 3};
}

std::vector<int64_t> OmModel::OutputShape(size_t index) const {
  std::vector<int64_t> shape = outputs_[index].shape;
  if (!gears_.empty()) shape[0] = gears_.back();
  return shape;
}

size_t OmModel::InputBytes() const {
  const int64_t batch = gears_.empty() ? input_shape_[0] : gears_.back();
  return static_cast<size_t>(batch) * Product(input_shape_) * TypeBytes(input_type_);
}

size_t OmModel::OutputBytes(size_t index) const {
  const std::vector<int64_t> shape = OutputShape(index);
  return static_cast<size_t>(shape[0]) * Product(shape) * TypeBytes(outputs_[index].type);
}

ov::CompiledModel& OmModel::Compiled(int64_t batch) {
  const auto known = compiled_.find(batch);
  if (known != compiled_.end()) return known->second;
  const std::shared_ptr<ov::Model> model = twin_->clone();
  std::vector<int64_t> shape = input_shape_;
  shape[0] = batch;
  model->reshape(ov::PartialShape(shape));
  return compiled_[batch] = core_.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
}

// What AIPP and the casts at the head of an .om do, in their half precision.
ov::Tensor OmModel::MakeInput(int64_t batch, const uint8_t* bytes) const {
  std::vector<int64_t> sides = input_shape_;
  sides[0] = batch;
  ov::Tensor tensor(twin_->input().get_element_type(), ov::Shape(sides.begin(), sides.end()));
  if (aipp_.empty()) {
    ConvertAny(bytes, OpenvinoType(input_type_), tensor.data(), tensor.get_element_type(), tensor.get_size());
    return tensor;
  }
  const auto plane = static_cast<size_t>(sides[2] * sides[3]);
  for (size_t i = 0; i < static_cast<size_t>(batch) * plane; ++i) {
    for (size_t c = 0; c < 3; ++c) {
      const float centred = static_cast<float>(bytes[3 * i + c]) - aipp_[c] - ov::float16(aipp_[3 + c]);
      const ov::float16 value(centred * static_cast<float>(ov::float16(aipp_[6 + c])));
      tensor.data<float>()[(i / plane * 3 + c) * plane + i % plane] = value;
    }
  }
  return tensor;
}

void OmModel::Run(int64_t batch, const uint8_t* input, const std::vector<uint8_t*>& outputs) {
  ov::InferRequest request;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    request = Compiled(batch).create_infer_request();
  }
  request.set_input_tensor(MakeInput(batch, input));
  request.infer();
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const ov::Tensor result = request.get_output_tensor(outputs_[i].port);
    ConvertAny(result.data(), result.get_element_type(), outputs[i], OpenvinoType(outputs_[i].type), result.get_size());
  }
}

}  // namespace fake
