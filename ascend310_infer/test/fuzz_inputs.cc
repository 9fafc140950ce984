// libFuzzer target for all that comes from files. The first byte says what the rest is: M a manifest, N a files.txt,
// B a .bin, anything else an image. A UserError is a good answer; a crash, a leak or undefined behaviour is not.
#include <cstdint>
#include <string>
#include <vector>

#include "inc/error.h"
#include "inc/image_source.h"
#include "inc/manifest.h"
#include "inc/preprocess.h"

namespace {

using mindseg::InputSpec;

InputSpec SmallInput() {
  InputSpec input;
  input.height = 24;
  input.width = 40;
  input.mean = {1, 2, 3};
  input.resize.rule = mindseg::ResizeSpec::Rule::kLongSide;
  input.resize.side = 24;
  input.resize.pad = true;
  return input;
}

void TryImage(const std::vector<uint8_t>& bytes) {
  const InputSpec input = SmallInput();
  static const mindseg::Preprocessor kPreprocessor(input);
  std::vector<uint8_t> tensor(input.BytesPerImage());
  kPreprocessor.Run(mindseg::DecodeImage(bytes, "fuzz.png"), "fuzz.png", tensor.data());
}

void TryBin(const std::vector<uint8_t>& bytes) {
  InputSpec input = SmallInput();
  input.height = 2;
  input.width = 2;
  std::vector<uint8_t> tensor(input.BytesPerImage());
  mindseg::CopyBin(bytes, "fuzz.bin", input, mindseg::DType::kFloat16, tensor.data());
}

void TryManifest(const std::string& text) {
  const mindseg::Manifest manifest = mindseg::ParseManifest(text, "fuzz/deploy.yaml");
  manifest.FindModel("onnx", 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::vector<uint8_t> rest(data + 1, data + size);
  const std::string text(rest.begin(), rest.end());
  try {
    switch (data[0]) {
      case 'M':
        TryManifest(text);
        break;
      case 'N':
        mindseg::ParseNames(text, "fuzz/files.txt");
        break;
      case 'B':
        TryBin(rest);
        break;
      default:
        TryImage(rest);
    }
  } catch (const mindseg::UserError&) {
  }
  return 0;
}
