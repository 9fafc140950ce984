// The command line.
#ifndef ASCEND310_INFER_INC_OPTIONS_H_
#define ASCEND310_INFER_INC_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "inc/backend.h"
#include "inc/decode.h"

namespace mindseg {

struct Options {
  std::string command;  // run | bench | info; empty: only `text` is asked for
  std::string text;     // of --help or --version
  std::string manifest;
  std::string model;  // one of the files that the manifest lists; empty: the backend and the batch decide
  std::string input;
  std::string output;
  std::string backend = "auto";
  BackendOptions backend_options;
  bool confidence = false;          // also writes the probability of each pixel's class
  bool overwrite = false;           // replaces files in the output folder that this program did not write
  int64_t max_pixels = kMaxPixels;  // of an image
  int threads = 0;                  // for decoding and preprocessing; 0: half the cores
  std::vector<std::string> save;    // what is written besides class ids or logits: overlay
  bool tiled = false;               // cuts images into tiles
  std::string tile;                 // their size as it was given; empty: that of the model's input
  std::optional<int> overlap;       // of tiles
  int iterations = 20;
  bool json = false;  // bench, info: print JSON
};

// Throws UserError for an unknown option, a missing or wrong value.
Options ParseOptions(std::vector<std::string> arguments);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_OPTIONS_H_
