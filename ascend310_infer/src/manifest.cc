#include "inc/manifest.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "inc/error.h"
#include "inc/files.h"

namespace mindseg {
namespace fs = std::filesystem;
namespace {

// The rules of src/mindseg/manifest.py too; both readers are tested with tests/manifests.
constexpr int kLargestSide = 32768;
constexpr size_t kLargestTensor = size_t{1} << 34;  // 16 GiB: beyond that a number is a typing error
constexpr char kRemedy[] = "export the model again with this version's export.py, or correct the file";

// A YAML node with its file and key, which every message names.
class Field {
 public:
  Field(std::string file, std::string key, YAML::Node node)
      : file_(std::move(file)), key_(std::move(key)), node_(std::move(node)) {
    if (!node_.IsMap()) return;
    std::set<std::string> keys;
    for (const auto& pair : node_) {
      if (!pair.first.IsScalar()) Fail("is not valid YAML for a manifest: a key is no plain text or number");
      if (!keys.insert(pair.first.Scalar()).second) {
        Fail("is not valid YAML: the key '" + pair.first.Scalar() + "' stands twice");
      }
    }
  }

  [[noreturn]] void Fail(const std::string& what, const std::string& remedy = kRemedy) const {
    throw UserError(file_ + ": " + (key_.empty() ? "" : key_ + ": ") + what + "; " + remedy);
  }

  bool Contains(const std::string& name) const { return node_.IsMap() && node_[name].IsDefined(); }

  bool ContainsValue(const std::string& name) const { return Contains(name) && !node_[name].IsNull(); }

  Field At(const std::string& name) const {
    const std::string key = key_.empty() ? name : key_ + "." + name;
    if (!node_.IsMap()) Fail("must be a mapping, is " + Text());
    if (!ContainsValue(name)) throw UserError(file_ + ": " + key + ": is missing; " + kRemedy);
    return Field(file_, key, node_[name]);
  }

  Field Mapping(const std::string& name) const {
    const Field field = At(name);
    if (!field.node_.IsMap()) field.Fail("must be a mapping, is " + field.Text());
    return field;
  }

  std::vector<Field> List() const {
    if (!node_.IsSequence()) Fail("must be a list, is " + Text());
    std::vector<Field> items;
    for (size_t i = 0; i < node_.size(); ++i) {
      items.emplace_back(file_, key_ + "[" + std::to_string(i) + "]", node_[i]);
    }
    return items;
  }

  std::vector<Field> KeysAndValues() const {
    if (!node_.IsMap()) Fail("must be a mapping, is " + Text());
    std::vector<Field> fields;
    for (const auto& pair : node_) {
      fields.emplace_back(file_, key_, pair.first);
      fields.emplace_back(file_, key_, pair.second);
    }
    return fields;
  }

  bool IsList() const { return node_.IsSequence(); }

  std::string String() const {
    const nlohmann::json value = Value();
    if (!value.is_string() || node_.Scalar().empty()) Fail("must be a text, is " + Text());
    for (char c : node_.Scalar()) {
      if (static_cast<unsigned char>(c) < 0x20) Fail("must not hold control characters, is " + Text());
    }
    return node_.Scalar();
  }

  // A file beside the manifest or below its folder.
  std::string FileName() const {
    const std::string name = String();
    if (!IsPlainName(name)) {
      Fail("is '" + name + "', must be a relative path without '..', drive, backslash or control character");
    }
    return name;
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

  bool Bool() const {
    const nlohmann::json value = Value();
    if (!value.is_boolean()) Fail("must be true or false, is " + Text());
    return value.get<bool>();
  }

  double Number() const {
    const nlohmann::json value = Value();
    if (!value.is_number()) Fail("must be a finite number, is " + Text());
    return value.get<double>();
  }

  int64_t Integer(int64_t low, int64_t high) const {
    const nlohmann::json value = Value();
    if (!value.is_number_integer()) Fail("must be a whole number, is " + Text());
    const bool beyond = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(high);
    if (beyond || value.get<int64_t>() < low || value.get<int64_t>() > high) {
      Fail("is " + Text() + ", must be in " + std::to_string(low) + ".." + std::to_string(high));
    }
    return value.get<int64_t>();
  }

 private:
  // A plain value means what it means in JSON; all others, such as yes and 1_000, and all quoted ones are texts.
  nlohmann::json Value() const {
    if (!node_.IsScalar()) return nullptr;
    if (node_.Tag() == "?") {
      nlohmann::json value = nlohmann::json::parse(node_.Scalar(), nullptr, false);
      if (!value.is_discarded()) return value;
    }
    return node_.Scalar();
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

int64_t ReadByte(const Field& field) { return field.Integer(0, 255); }

int64_t ReadBatch(const Field& field) {
  const int64_t batch = field.Integer(kDynamicBatch, kLargestBatch);
  if (batch == 0) field.Fail("is 0, must be -1 (dynamic) or positive");
  return batch;
}

int ReadSide(const Field& field) { return static_cast<int>(field.Integer(1, kLargestSide)); }

// Refuses a size that no image could have and still fit into the input: a mistake of the file, not of the images.
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
  resize.pad = field.At("pad").Bool();
  if (rule == "none") return resize;
  const Field size = field.At("size");
  if (rule == "exact") resize.rule = ResizeSpec::Rule::kExact;
  if (rule == "short_side") resize.rule = ResizeSpec::Rule::kShortSide;
  if (rule == "long_side") resize.rule = ResizeSpec::Rule::kLongSide;
  if (rule == "exact" || (rule == "long_side" && size.IsList())) {
    const auto sides = ReadArray<int, 2>(size, ReadSide);
    resize.height = sides[0];
    resize.width = sides[1];
  } else {
    resize.side = ReadSide(size);
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
  // float32 planes that the host normalises, or uint8 pixels that the graph normalises.
  const bool in_graph = field.At("layout").OneOf({"NCHW", "NHWC"}) == "NHWC";
  input.layout = in_graph ? Layout::kNhwc : Layout::kNchw;
  ReadInputShape(field, &input);
  field.At("normalize").OneOf({in_graph ? "graph" : "host"});
  input.normalize_on_host = !in_graph;
  field.At("dtype").OneOf({in_graph ? "uint8" : "float32"});
  input.dtype = in_graph ? DType::kUint8 : DType::kFloat32;
  input.bgr = field.At("color_order").OneOf({"RGB", "BGR"}) == "BGR";
  input.value_range = field.At("value_range").Number();
  if (input.value_range != 1 && input.value_range != 255) field.At("value_range").Fail("must be 1 or 255");
  const auto number = [](const Field& item) { return item.Number(); };
  input.mean = ReadArray<double, 3>(field.At("mean"), number);
  input.std = ReadArray<double, 3>(field.At("std"), number);
  if (std::count(input.std.begin(), input.std.end(), 0) > 0) field.At("std").Fail("must not hold 0");
  input.resize = ReadResize(field.Mapping("resize"), input);
  input.pad_value = ReadArray<uint8_t, 3>(field.At("pad_value"), ReadByte);
  return input;
}

OutputSpec ReadOutput(const Field& field, const InputSpec& input) {
  OutputSpec output;
  output.name = field.At("name").String();
  output.logits = field.At("type").OneOf({"argmax", "logits"}) == "logits";
  // The model file itself says what it gives; results are uint8 ids or float32 logits in any case.
  field.At("dtype").OneOf(output.logits ? std::vector<std::string>{"float32", "float16"}
                                        : std::vector<std::string>{"uint8", "int32"});
  const Field shape = field.At("shape");
  const std::vector<Field> items = shape.List();
  const size_t rank = output.logits ? 4 : 3;
  if (items.size() != rank) {
    shape.Fail("has " + std::to_string(items.size()) + " values, must have " + std::to_string(rank));
  }
  output.batch = ReadBatch(items[0]);
  if (output.logits) output.classes = static_cast<int>(items[1].Integer(1, 255));
  output.height = ReadSide(items[rank - 2]);
  output.width = ReadSide(items[rank - 1]);
  if (output.height != input.height || output.width != input.width) {
    shape.Fail("has another height or width than input.shape");
  }
  if (output.batch != input.batch) shape.Fail("has another batch than input.shape");
  if (!field.ContainsValue("confidence")) return output;
  output.confidence = field.At("confidence").String();
  if (output.logits || output.confidence == output.name) {
    field.At("confidence").Fail("must be a second output beside class ids (argmax)");
  }
  if (field.At("temperature").Number() <= 0) field.At("temperature").Fail("must be above 0");
  return output;
}

// Reads names and colours of the classes; the other facts of the data set are checked only, the program has no use for
// them.
void ReadDataset(const Field& field, Manifest* manifest) {
  field.At("name").String();
  std::vector<std::string>& classes = manifest->classes;
  for (const Field& name : field.At("classes").List()) classes.push_back(name.String());
  if (classes.empty() || classes.size() > 255) field.At("classes").Fail("must be a list of 1 to 255 names");
  const std::string each = ", must have one for each of " + std::to_string(classes.size()) + " classes";
  const std::vector<Field> colours = field.At("palette").List();
  if (colours.size() != classes.size()) field.At("palette").Fail("has " + std::to_string(colours.size()) + each);
  for (const Field& colour : colours) manifest->palette.push_back(ReadArray<uint8_t, 3>(colour, ReadByte));
  ReadByte(field.At("ignore_id"));
  if (field.ContainsValue("label_ids")) {
    const std::vector<Field> ids = field.At("label_ids").List();
    if (ids.size() != classes.size()) field.At("label_ids").Fail("has " + std::to_string(ids.size()) + each);
    for (const Field& id : ids) ReadByte(id);
  }
  if (field.ContainsValue("label_map")) {
    for (const Field& value : field.At("label_map").KeysAndValues()) ReadByte(value);
  }
}

ModelFile ReadModel(const Field& field, const fs::path& folder) {
  ModelFile model;
  model.format = field.At("format").OneOf({"onnx", "openvino", "mindir", "om", "air"});
  model.path = folder / field.At("file").FileName();
  model.batch = ReadBatch(field.At("batch"));
  if (field.Contains("batches")) {
    for (const Field& gear : field.At("batches").List()) model.gears.push_back(gear.Integer(1, kLargestBatch));
    if (model.gears.empty()) field.At("batches").Fail("lists no batch size");
  }
  const Field sum = field.At("sha256");
  model.sha256 = sum.String();
  if (model.sha256.size() != 64 || model.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
    sum.Fail("is '" + model.sha256 + "', must be 64 lower-case hexadecimal digits");
  }
  return model;
}

void CheckClasses(const Field& root, const Manifest& manifest) {
  const auto classes = static_cast<int64_t>(manifest.classes.size());
  const Field channels = root.At("model").At("num_classes");
  const int64_t count = channels.Integer(1, 256);
  // The network may have a channel more: void, which is never predicted.
  if (count != classes && count != classes + 1) {
    channels.Fail("is " + std::to_string(count) + " where dataset.classes has " + std::to_string(classes) + " names");
  }
  if (manifest.output.logits && manifest.output.classes != classes) {
    root.At("output").At("shape").Fail("must have " + std::to_string(classes) + " channels, one for each class");
  }
}

void CheckTensorSizes(const Field& root, const Manifest& manifest) {
  const auto check = [&root](const char* section, size_t bytes, int64_t batch) {
    if (bytes <= kLargestTensor / static_cast<size_t>(batch > 0 ? batch : 1)) return;
    root.At(section).At("shape").Fail("is a tensor of over 16 GiB");
  };
  check("input", manifest.input.BytesPerImage(), manifest.input.batch);
  check("output", manifest.output.ElementsPerImage() * sizeof(float), manifest.output.batch);
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
  manifest.input = ReadInput(root.Mapping("input"));
  manifest.output = ReadOutput(root.At("output"), manifest.input);
  ReadDataset(root.At("dataset"), &manifest);
  root.Mapping("source");
  root.Mapping("versions");
  for (const Field& item : root.At("models").List()) manifest.models.push_back(ReadModel(item, path.parent_path()));
  if (manifest.models.empty()) root.At("models").Fail("lists no model file");
  if (root.Contains("ascend")) {
    const Field ascend = root.Mapping("ascend");
    if (ascend.Contains("fusion_switch")) {
      manifest.fusion_switch = path.parent_path() / ascend.At("fusion_switch").FileName();
    }
  }
  CheckClasses(root, manifest);
  CheckTensorSizes(root, manifest);
  return manifest;
}

// Refuses what YAML parsers read differently: other encodings, tabs, control characters, rare line breaks, byte order
// marks and directives.
void CheckText(const std::string& text, const fs::path& path) {
  try {
    nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw UserError(path.string() + ": is not UTF-8 text; " + kRemedy);
  }
  for (size_t i = 0; i < text.size(); ++i) {
    const auto code = static_cast<unsigned char>(text[i]);
    const bool line_end = code == '\n' || (code == '\r' && text[i + 1] == '\n');
    const bool control = (code < 0x20 && !line_end) || code == 0x7f;
    const bool control_of_two_bytes = code == 0xc2 && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    const std::string three = code >= 0xe2 ? text.substr(i, 3) : "";
    const bool rare =
        three == "\u2028" || three == "\u2029" || three == "\ufeff" || three == "\ufffe" || three == "\uffff";
    const bool directive = code == '%' && (i == 0 || text[i - 1] == '\n');
    if (control || control_of_two_bytes || rare || directive) {
      throw UserError(path.string() + ": not valid YAML for a manifest: a tab, control character or directive; " +
                      kRemedy);
    }
  }
}

// A plain integer: a minus sign, and digits without a leading 0.
bool IsInteger(std::string_view text) {
  if (text.substr(0, 1) == "-") text.remove_prefix(1);
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos &&
         (text[0] != '0' || text.size() == 1);
}

// Refuses anchors, aliases, tags, over 64 levels and over 20,000 values: no manifest needs them, and parsers differ.
class Bounds : public YAML::EventHandler {
 public:
  explicit Bounds(const std::string& text) : text_(text) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Check(mark, "?", anchor);
    const auto place = static_cast<size_t>(mark.pos);
    const size_t before = place == 0 ? 0 : text_.find_last_not_of(" \r\n", place - 1);
    const bool no_item = At(place) == ',' && (At(before) == '[' || At(before) == ',');
    if (no_item) throw YAML::ParserException(mark, "a comma without a value");
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override { Check(mark, "?", anchor); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    constexpr size_t kLongestInteger = 1000;
    last_ = value;
    if (tag == "?" && value.size() > kLongestInteger && IsInteger(value)) {
      throw YAML::ParserException(mark, "an integer of over 1000 characters");
    }
    // The tag of a text in quotes is "!" too.
    Check(mark, tag == "!" && At(static_cast<size_t>(mark.pos)) != '!' ? "?" : tag, anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value style) override {
    Start(mark, tag, anchor, style);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value style) override {
    Start(mark, tag, anchor, style);
  }
  void OnMapEnd() override { open_.pop_back(); }

  const std::string& last() const { return last_; }

 private:
  // A character, or 0 for a place that is not in the text (npos, or the mark of a node that no text stands for).
  char At(size_t place) const { return place < text_.size() ? text_[place] : '\0'; }

  void Start(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YAML::EmitterStyle::value style) {
    Check(mark, tag, anchor);
    const bool in_block = !open_.empty() && open_.back() != YAML::EmitterStyle::Flow;
    if (in_block && style == YAML::EmitterStyle::Flow && mark.column == 0) {
      throw YAML::ParserException(mark, "a bracket stands at the beginning of a line");
    }
    open_.push_back(style);
  }

  void Check(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != YAML::NullAnchor) throw YAML::ParserException(mark, "anchors and aliases are not read here");
    if (!tag.empty() && tag != "?") throw YAML::ParserException(mark, "the tag " + tag + " has no meaning here");
    if (open_.size() > 64 || ++values_ > 20000) throw YAML::ParserException(mark, "over 64 levels or 20000 values");
  }

  const std::string& text_;
  std::string last_;
  std::vector<YAML::EmitterStyle::value> open_;
  int values_ = 0;
};

// YAML::Load ignores what stands behind the first document, and YAML::LoadAll never ends on some malformed texts: a
// document that is added must be the second.
void CheckBounds(const std::string& text) {
  const std::string longer = text + "\n---\nend\n";
  std::istringstream stream(longer);
  YAML::Parser parser(stream);
  Bounds first(longer);
  Bounds second(longer);
  parser.HandleNextDocument(first);
  if (!parser.HandleNextDocument(second) || second.last() != "end") {
    throw YAML::ParserException(YAML::Mark::null_mark(), "the file must hold one mapping and nothing behind it");
  }
}

// Checks the keys of parts that are not read, such as source and versions.
void CheckKeys(const YAML::Node& node, const fs::path& path) {
  const Field checked(path.string(), "", node);
  for (const auto& item : node) CheckKeys(node.IsMap() ? item.second : item, path);
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
  const std::string requested = format + (batch ? " model of batch " + std::to_string(batch) : " model");
  throw UserError(path.string() + ": models: no " + requested + " (there is: " + found +
                  "); export it, or choose another --backend or --batch");
}

Manifest ParseManifest(const std::string& text, const fs::path& path) {
  CheckText(text, path);
  try {
    CheckBounds(text);
    const YAML::Node root = YAML::Load(text);
    CheckKeys(root, path);
    Manifest manifest = Interpret(root, path);
    manifest.sha256 = Sha256(text.data(), text.size());
    return manifest;
  } catch (const YAML::Exception& error) {
    throw UserError(path.string() + ":" + std::to_string(error.mark.line + 1) + ": not valid YAML: " + error.msg +
                    "; " + kRemedy);
  }
}

Manifest LoadManifest(const fs::path& path) {
  constexpr size_t kLargestManifest = 1 << 20;
  std::error_code error;  // of a path that leads nowhere
  const fs::path file = fs::is_directory(path, error) ? path / "deploy.yaml" : path;
  if (!fs::exists(file, error)) {
    throw UserError("--manifest " + file.string() + ": no such file; give the deploy.yaml that export.py wrote");
  }
  const std::vector<uint8_t> bytes = ReadFile(file, kLargestManifest);
  return ParseManifest(std::string(bytes.begin(), bytes.end()), file);
}

void CheckHasConfidence(const Manifest& manifest) {
  if (!manifest.output.confidence.empty()) return;
  throw UserError("--confidence: the model of " + manifest.path.string() +
                  " gives none; export it again with --set export.confidence=true, or leave --confidence out");
}

void SelectModel(const fs::path& file, Manifest* manifest) {
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
  std::error_code error;  // of a path that leads nowhere
  if (!fs::is_regular_file(model.path, error)) {
    throw UserError(model.path.string() + ": no such model file, though " + manifest.path.string() +
                    " lists it; copy it there or export again");
  }
  const std::string sum = Sha256OfFile(model.path);
  if (sum != model.sha256) {
    throw UserError(model.path.string() + ": SHA-256 " + sum.substr(0, 12) + "... is not " +
                    model.sha256.substr(0, 12) + "... of " + manifest.path.string() +
                    ": the file is damaged or of another model; copy it again or export again");
  }
}

}  // namespace mindseg
