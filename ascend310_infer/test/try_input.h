// One input through the runner's reader of its kind: M a manifest, N a files.txt, B a .bin, anything else an image.
#ifndef ASCEND310_INFER_TEST_TRY_INPUT_H_
#define ASCEND310_INFER_TEST_TRY_INPUT_H_

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "inc/decode.h"
#include "inc/image_source.h"
#include "inc/manifest.h"
#include "inc/preprocess.h"

// The input of 24x40 pixels that images and bins are read for.
inline mindseg::InputSpec SmallInput() {
  mindseg::InputSpec input;
  input.height = 24;
  input.width = 40;
  input.mean = {1, 2, 3};
  input.resize.rule = mindseg::ResizeSpec::Rule::kLongSide;
  input.resize.side = 24;
  input.resize.pad = true;
  return input;
}

// Throws UserError if the reader refuses `bytes`; `path` only names them in messages.
inline void TryInput(char kind, const std::vector<uint8_t>& bytes, const std::filesystem::path& path,
                     int64_t max_pixels = mindseg::kMaxPixels) {
  static const mindseg::InputSpec kInput = SmallInput();
  static const mindseg::Preprocessor kPreprocessor(kInput);
  const std::string text(bytes.begin(), bytes.end());
  std::vector<uint8_t> tensor(kInput.BytesPerImage());
  switch (kind) {
    case 'M':
      mindseg::ParseManifest(text, path);
      break;
    case 'N':
      mindseg::ParseNames(text, path);
      break;
    case 'B':
      mindseg::CopyBin(bytes, path, kInput, mindseg::DType::kFloat16, tensor.data());
      break;
    default:
      kPreprocessor.Run(mindseg::DecodeImage(bytes, path, max_pixels), path, tensor.data());
  }
}

#endif  // ASCEND310_INFER_TEST_TRY_INPUT_H_
