// deploy.yaml: everything the runner knows about an exported model. The program holds no constant of any model.
#ifndef ASCEND310_INFER_INC_MANIFEST_H_
#define ASCEND310_INFER_INC_MANIFEST_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "inc/tensor.h"

namespace mindseg {

constexpr int64_t kDynamicBatch = -1;
constexpr int kLargestBatch = 2048;

struct ResizeSpec {
  enum class Rule { kNone, kExact, kShortSide, kLongSide };
  Rule rule = Rule::kNone;
  int height = 0;  // exact; long_side: the box to fit into, 0 if `side` says it
  int width = 0;   // as height
  int side = 0;    // short_side, long_side: that side's length after resizing
  bool pad = false;
};

struct InputSpec {
  std::string name;
  int64_t batch = 1;
  int channels = 3;
  int height = 0;
  int width = 0;
  Layout layout = Layout::kNchw;
  DType dtype = DType::kFloat32;
  bool bgr = false;               // colour order of the tensor; false = RGB
  bool normalize_on_host = true;  // false: the graph normalises raw pixels
  double value_range = 255;       // 1 or 255: mean and std refer to pixels scaled to 0..value_range
  std::array<double, 3> mean{};
  std::array<double, 3> std{1, 1, 1};
  ResizeSpec resize;
  std::array<uint8_t, 3> pad_value{};  // in the tensor's colour order

  size_t ElementsPerImage() const { return static_cast<size_t>(channels) * height * width; }
  size_t BytesPerImage() const { return ElementsPerImage() * ElementSize(dtype); }
  std::vector<int64_t> Shape(int64_t with_batch) const;
};

struct OutputSpec {
  std::string name;
  bool logits = false;  // false: class ids (argmax)
  int64_t batch = 1;
  int classes = 1;  // channels of logits; 1 for class ids
  int height = 0;
  int width = 0;
  std::string confidence;  // a second output, uint8 in the shape of the ids: 255 p of each class; empty: none

  size_t ElementsPerImage() const { return static_cast<size_t>(classes) * height * width; }
  std::vector<int64_t> Shape(int64_t with_batch) const;
};

struct ModelFile {
  std::string format;  // onnx | openvino | mindir | om | air
  std::filesystem::path path;
  int64_t batch = 1;
  std::vector<int64_t> gears;  // `batches`: batch sizes that a model of dynamic batch was converted for; empty: any
  std::string sha256;          // 64 lower-case hexadecimal digits
};

using Palette = std::vector<std::array<uint8_t, 3>>;  // red, green and blue of each class

struct Manifest {
  std::filesystem::path path;
  std::string model_name;
  std::vector<std::string> classes;  // names, in the order of the ids
  Palette palette;
  InputSpec input;
  OutputSpec output;
  std::vector<ModelFile> models;
  std::string sha256;                   // of the file's bytes
  std::filesystem::path fusion_switch;  // optional `ascend.fusion_switch`, for MindSpore Lite

  // The model file of `format`, with `batch` images an inference (0: the first one listed). Throws UserError.
  const ModelFile& FindModel(const std::string& format, int64_t batch) const;
  bool HasFormat(const std::string& format) const;
};

// Reads and checks deploy.yaml; a folder stands for its deploy.yaml. Throws UserError.
Manifest LoadManifest(const std::filesystem::path& path);

// The same from text, for tests and fuzzing; `path` only names the file in messages.
Manifest ParseManifest(const std::string& text, const std::filesystem::path& path);

// Throws UserError if the model was exported without confidence.
void CheckHasConfidence(const Manifest& manifest);

// Leaves only the model file that `file` names, as a path or as a name beside the manifest. Throws UserError if the
// manifest does not list it.
void SelectModel(const std::filesystem::path& file, Manifest* manifest);

// Throws UserError if the file is missing or its SHA-256 is not the manifest's.
void CheckModelFile(const Manifest& manifest, const ModelFile& model);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_MANIFEST_H_
