#include "inc/manifest.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <sstream>

#include "inc/error.h"
#include "inc/files.h"

namespace segment {
namespace fs = std::filesystem;
namespace {

constexpr int kLargestSide = 32768;
constexpr int kLargestBatch = 1024;
constexpr size_t kLargestTensor = size_t{1} << 34;  // 16 GiB: beyond that a number is a typing error
constexpr char kAgain[] = "export the model again with this version's export.py, or correct the file";

// A YAML node that knows its file and key, so that every complaint names them.
class Field {
 public:
  Field(std::string file, std::string key, YAML::Node node)
      : file_(std::move(file)), key_(std::move(key)), node_(std::move(node)) {}

  [[noreturn]] void Fail(const std::string& what, const std::string& remedy = kAgain) const {
    throw UserError(file_ + ": " + (key_.empty() ? "" : key_ + ": ") + what + "; " + remedy);
  }

  bool Has(const std::string& name) const { return node_.IsMap() && node_[name].IsDefined() && !node_[name].IsNull(); }

  Field At(const std::string& name) const {
    if (!node_.IsMap()) Fail("must be a mapping, is " + Text());
    const Field child(file_, key_.empty() ? name : key_ + "." + name, node_[name]);
    if (!Has(name)) child.Fail("is missing");
    return child;
  }

  std::vector<Field> List() const {
    if (!node_.IsSequence()) Fail("must be a list, is " + Text());
    std::vector<Field> items;
    for (size_t i = 0; i < node_.size(); ++i) {
      items.emplace_back(file_, key_ + "[" + std::to_string(i) + "]", node_[i]);
    }
    return items;
  }

  bool IsList() const { return node_.IsSequence(); }

  std::string String() const {
    if (!node_.IsScalar() || node_.Scalar().empty()) Fail("must be a text, is " + Text());
    return node_.Scalar();
  }

  std::string OneOf(const std::vector<std::string>& choices) const {
    const std::string value = String();
    std::string list;
    for (const std::string& choice : choices) {
      if (choice == value) return value;
      list += (list.empty() ? "" : ", ") + choice;
    }
    Fail("is '" + value + "', must be one of " + list);
  }

  bool Bool() const { return Convert<bool>("true or false"); }

  double Number() const {
    const double value = Convert<double>("a number");
    if (!std::isfinite(value)) Fail("must be a finite number, is " + Text());
    return value;
  }

  int64_t Integer(int64_t low, int64_t high) const {
    const auto value = Convert<int64_t>("a whole number");
    if (value < low || value > high) {
      Fail("is " + Text() + ", must be in " + std::to_string(low) + ".." + std::to_string(high));
    }
    return value;
  }

 private:
  template <typename T>
  T Convert(const char* what) const {
    T value{};
    if (!node_.IsScalar() || !YAML::convert<T>::decode(node_, value)) {
      Fail(std::string("must be ") + what + ", is " + Text());
    }
    return value;
  }

  std::string Text() const {
    if (node_.IsScalar()) return "'" + node_.Scalar() + "'";
    if (node_.IsSequence()) return "a list of " + std::to_string(node_.size());
    return node_.IsMap() ? "a mapping" : "empty";
  }

  std::string file_;
  std::string key_;
  YAML::Node node_;
};

template <typename T, size_t N, typename Get>
std::array<T, N> ReadArray(const Field& field, Get get) {
  const std::vector<Field> items = field.List();
  if (items.size() != N) field.Fail("has " + std::to_string(items.size()) + " values, must have " + std::to_string(N));
  std::array<T, N> values{};
  for (size_t i = 0; i < N; ++i) values[i] = static_cast<T>(get(items[i]));
  return values;
}

int64_t ReadBatch(const Field& field) {
  const int64_t batch = field.Integer(kDynamicBatch, kLargestBatch);
  if (batch == 0) field.Fail("is 0, must be -1 (dynamic) or positive");
  return batch;
}

int ReadSide(const Field& field) { return static_cast<int>(field.Integer(1, kLargestSide)); }

// A size that no image could have and still fit into the input is a mistake of the file, not of the images.
void CheckResize(const Field& size, const ResizeSpec& resize, const InputSpec& input) {
  const std::string takes = " where the input takes " + ShapeName({input.height, input.width});
  if (resize.side == 0) {
    const bool equal = resize.height == input.height && resize.width == input.width;
    const bool larger = resize.height > input.height || resize.width > input.width;
    const bool exact = resize.rule == ResizeSpec::Rule::kExact;
    if (larger || (exact && !equal && !resize.pad)) {
      size.Fail("is " + ShapeName({resize.height, resize.width}) + takes);
    }
    return;
  }
  const bool by_short = resize.rule == ResizeSpec::Rule::kShortSide;
  const int largest = by_short ? std::min(input.height, input.width) : std::max(input.height, input.width);
  if (resize.side > largest) size.Fail("is " + std::to_string(resize.side) + takes);
}

ResizeSpec ReadResize(const Field& field, const InputSpec& input) {
  ResizeSpec resize;
  const std::string rule = field.At("rule").OneOf({"none", "exact", "short_side", "long_side"});
  resize.pad = field.Has("pad") && field.At("pad").Bool();
  if (rule == "none") return resize;
  const Field size = field.At("size");
  if (rule == "exact") resize.rule = ResizeSpec::Rule::kExact;
  if (rule == "short_side") resize.rule = ResizeSpec::Rule::kShortSide;
  if (rule == "long_side") resize.rule = ResizeSpec::Rule::kLongSide;
  if (rule == "exact" || (rule == "long_side" && size.IsList() && size.List().size() == 2)) {
    const auto sides = ReadArray<int, 2>(size, ReadSide);
    resize.height = sides[0];
    resize.width = sides[1];
  } else {
    resize.side = size.IsList() ? ReadArray<int, 1>(size, ReadSide)[0] : ReadSide(size);
  }
  CheckResize(size, resize, input);
  return resize;
}

void ReadInputShape(const Field& field, InputSpec* input) {
  const Field shape = field.At("shape");
  const std::vector<Field> items = shape.List();
  if (items.size() != 4) shape.Fail("has " + std::to_string(items.size()) + " values, must have 4");
  const bool nchw = input->layout == Layout::kNchw;
  input->batch = ReadBatch(items[0]);
  input->channels = static_cast<int>(items[nchw ? 1 : 3].Integer(3, 3));
  input->height = ReadSide(items[nchw ? 2 : 1]);
  input->width = ReadSide(items[nchw ? 3 : 2]);
}

InputSpec ReadInput(const Field& field) {
  InputSpec input;
  input.name = field.At("name").String();
  input.layout = field.At("layout").OneOf({"NCHW", "NHWC"}) == "NCHW" ? Layout::kNchw : Layout::kNhwc;
  input.dtype = field.At("dtype").OneOf({"float32", "uint8"}) == "uint8" ? DType::kUint8 : DType::kFloat32;
  input.bgr = field.At("color_order").OneOf({"RGB", "BGR"}) == "BGR";
  input.normalize_on_host = field.At("normalize").OneOf({"host", "graph"}) == "host";
  if (input.normalize_on_host && input.dtype == DType::kUint8) {
    field.At("normalize").Fail("is 'host' but the input takes uint8, which cannot hold normalised values");
  }
  ReadInputShape(field, &input);
  input.value_range = field.At("value_range").Number();
  if (input.value_range <= 0) field.At("value_range").Fail("must be positive");
  const auto number = [](const Field& item) { return item.Number(); };
  input.mean = ReadArray<double, 3>(field.At("mean"), number);
  input.std = ReadArray<double, 3>(field.At("std"), number);
  for (double value : input.std) {
    if (value == 0) field.At("std").Fail("must not hold 0");
  }
  input.resize = ReadResize(field.At("resize"), input);
  if (field.Has("pad_value")) {
    input.pad_value =
        ReadArray<uint8_t, 3>(field.At("pad_value"), [](const Field& item) { return item.Integer(0, 255); });
  } else if (input.resize.pad) {
    field.At("pad_value");  // reports that it is missing
  }
  return input;
}

OutputSpec ReadOutput(const Field& field, const InputSpec& input) {
  OutputSpec output;
  output.name = field.At("name").String();
  output.logits = field.At("type").OneOf({"argmax", "logits"}) == "logits";
  // What the model gives is asked of the model; results are uint8 ids or float32 logits whatever it is.
  field.At("dtype").OneOf(output.logits ? std::vector<std::string>{"float32", "float16"}
                                        : std::vector<std::string>{"uint8", "int32"});
  const Field shape = field.At("shape");
  const std::vector<Field> items = shape.List();
  const size_t rank = output.logits ? 4 : 3;
  if (items.size() != rank) {
    shape.Fail("has " + std::to_string(items.size()) + " values, must have " + std::to_string(rank));
  }
  output.batch = ReadBatch(items[0]);
  if (output.logits) output.classes = static_cast<int>(items[1].Integer(1, 65536));
  output.height = ReadSide(items[rank - 2]);
  output.width = ReadSide(items[rank - 1]);
  if (output.height != input.height || output.width != input.width) {
    shape.Fail("has another height or width than input.shape");
  }
  return output;
}

std::vector<ModelFile> ReadModels(const Field& field, const fs::path& folder, int64_t default_batch) {
  std::vector<ModelFile> models;
  for (const Field& item : field.List()) {
    ModelFile model;
    model.format = item.At("format").OneOf({"onnx", "openvino", "mindir", "om", "air"});
    model.path = folder / item.At("file").String();  // an absolute file name replaces the folder
    model.batch = item.Has("batch") ? ReadBatch(item.At("batch")) : default_batch;
    if (item.Has("batches")) {
      for (const Field& gear : item.At("batches").List()) model.gears.push_back(gear.Integer(1, kLargestBatch));
    }
    if (item.Has("sha256")) {
      const Field sum = item.At("sha256");
      model.sha256 = sum.String();
      if (model.sha256.size() != 64 || model.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
        sum.Fail("must be 64 lower-case hexadecimal digits");
      }
    }
    models.push_back(std::move(model));
  }
  if (models.empty()) field.Fail("lists no model file");
  return models;
}

void CheckSizes(const Field& root, const Manifest& manifest) {
  const auto check = [](const Field& shape, size_t bytes, int64_t batch) {
    if (bytes > kLargestTensor / static_cast<size_t>(batch > 0 ? batch : 1)) shape.Fail("is a tensor of over 16 GiB");
  };
  check(root.At("input").At("shape"), manifest.input.BytesPerImage(), manifest.input.batch);
  check(root.At("output").At("shape"), manifest.output.ElementsPerImage() * sizeof(float), manifest.output.batch);
  if (manifest.input.batch != manifest.output.batch) {
    root.At("output").At("shape").Fail("has another batch than input.shape");
  }
  if (!manifest.output.logits && manifest.num_classes > 256) {
    root.At("model").At("num_classes").Fail("is over 256, which uint8 class ids cannot hold", "export logits");
  }
}

Manifest Interpret(const YAML::Node& node, const fs::path& path) {
  const Field root(path.string(), "", node);
  if (!node.IsMap()) root.Fail("is not a manifest (a YAML mapping)", "give the deploy.yaml that export.py wrote");
  const int64_t version = root.At("format_version").Integer(0, 1000000);
  if (version != 1) {
    root.At("format_version")
        .Fail("is " + std::to_string(version) + ", this runner reads 1", "build the matching runner");
  }
  Manifest manifest;
  manifest.path = path;
  manifest.model_name = root.At("model").At("name").String();
  manifest.num_classes = static_cast<int>(root.At("model").At("num_classes").Integer(1, 65536));
  manifest.input = ReadInput(root.At("input"));
  manifest.output = ReadOutput(root.At("output"), manifest.input);
  manifest.models = ReadModels(root.At("models"), path.parent_path(), manifest.input.batch);
  CheckSizes(root, manifest);
  if (root.Has("ascend") && root.At("ascend").Has("fusion_switch")) {
    manifest.fusion_switch = path.parent_path() / root.At("ascend").At("fusion_switch").String();
  }
  return manifest;
}

}  // namespace

std::vector<int64_t> InputSpec::Shape(int64_t with_batch) const {
  if (layout == Layout::kNchw) return {with_batch, channels, height, width};
  return {with_batch, height, width, channels};
}

std::vector<int64_t> OutputSpec::Shape(int64_t with_batch) const {
  if (logits) return {with_batch, classes, height, width};
  return {with_batch, height, width};
}

bool Manifest::HasFormat(const std::string& format) const {
  for (const ModelFile& model : models) {
    if (model.format == format) return true;
  }
  return false;
}

const ModelFile& Manifest::FindModel(const std::string& format, int64_t batch) const {
  std::string found;
  for (const ModelFile& model : models) {
    if (model.format == format && (batch == 0 || model.batch == batch)) return model;
    found += (found.empty() ? "" : ", ") + model.format + " batch " + std::to_string(model.batch);
  }
  for (const ModelFile& model : models) {
    if (model.format == format && model.batch == kDynamicBatch) return model;
  }
  const std::string wanted = format + (batch ? " model of batch " + std::to_string(batch) : " model");
  throw UserError(path.string() + ": models: no " + wanted + " (there is: " + found +
                  "); export it, or choose another --backend or --batch");
}

Manifest ParseManifest(const std::string& text, const fs::path& path) {
  YAML::Node node;
  try {
    node = YAML::Load(text);
    return Interpret(node, path);
  } catch (const YAML::Exception& error) {
    throw UserError(path.string() + ":" + std::to_string(error.mark.line + 1) + ": not valid YAML: " + error.msg +
                    "; " + kAgain);
  }
}

Manifest LoadManifest(const fs::path& path) {
  constexpr size_t kLargestManifest = 1 << 20;
  const fs::path file = fs::is_directory(path) ? path / "deploy.yaml" : path;
  if (!fs::exists(file)) {
    throw UserError("--manifest " + file.string() + ": no such file; give the deploy.yaml that export.py wrote");
  }
  const std::vector<uint8_t> bytes = ReadFile(file, kLargestManifest);
  return ParseManifest(std::string(bytes.begin(), bytes.end()), file);
}

void KeepOnly(const fs::path& file, Manifest* manifest) {
  const auto same = [](const fs::path& a, const fs::path& b) {
    std::error_code error;  // of a path that cannot be resolved: it then stays empty and is like no other
    const fs::path resolved = fs::weakly_canonical(a, error);
    return !resolved.empty() && resolved == fs::weakly_canonical(b, error);
  };
  std::vector<ModelFile> kept;
  std::string listed;
  for (const ModelFile& model : manifest->models) {
    if (same(model.path, file) || same(model.path, manifest->path.parent_path() / file)) kept.push_back(model);
    listed += (listed.empty() ? "" : ", ") + model.path.filename().string();
  }
  if (kept.empty()) {
    throw UserError("--model " + file.string() + ": not listed in " + manifest->path.string() +
                    " (there is: " + listed + "); name one of these, or convert it with scripts/convert_om.sh");
  }
  manifest->models = std::move(kept);
}

void CheckModelFile(const Manifest& manifest, const ModelFile& model) {
  if (!fs::is_regular_file(model.path)) {
    throw UserError(model.path.string() + ": no such model file, though " + manifest.path.string() +
                    " lists it; copy it there or export again");
  }
  if (model.sha256.empty()) return;
  const std::string sum = Sha256OfFile(model.path);
  if (sum != model.sha256) {
    throw UserError(model.path.string() + ": SHA-256 " + sum.substr(0, 12) + "... is not " +
                    model.sha256.substr(0, 12) + "... of " + manifest.path.string() +
                    ": the file is damaged or of another model; copy it again or export again");
  }
}

}  // namespace segment
