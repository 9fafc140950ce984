#include "inc/options.h"

#include <charconv>
#include <functional>
#include <map>

#include "inc/error.h"

namespace segment {
namespace {

constexpr char kHelp[] = "; see segment --help";

int ParseInteger(const std::string& flag, const std::string& text, int low, int high) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high) {
    throw UserError(flag + " " + text + ": must be a whole number in " + std::to_string(low) + ".." +
                    std::to_string(high));
  }
  return value;
}

bool ParsePrecision(const std::string& text) {
  if (text != "f32" && text != "bf16") throw UserError("--precision " + text + ": must be f32 or bf16");
  return text == "bf16";
}

std::string ParseDevice(const std::string& text) {
  if (text == "ascend" || text == "gpu" || text == "cpu") return text;
  throw UserError("--device " + text + ": must be ascend, gpu or cpu");
}

using Setter = std::function<void(const std::string& flag, const std::string& value)>;

// The options of a command; each has one value except --json.
std::map<std::string, Setter> Setters(Options* o) {
  const auto text = [](std::string* target) {
    return [target](const std::string&, const std::string& value) { *target = value; };
  };
  const auto number = [](auto* target, int low, int high) {
    return [=](const std::string& flag, const std::string& value) { *target = ParseInteger(flag, value, low, high); };
  };
  BackendOptions& b = o->backend_options;
  std::map<std::string, Setter> setters = {
      {"--manifest", text(&o->manifest)},
      {"--model", text(&o->model)},
      {"--backend", text(&o->backend)},
      {"--device", [&b](const std::string&, const std::string& value) { b.device = ParseDevice(value); }},
      {"--device_id", number(&b.device_id, 0, 1023)},
      {"--precision", [&b](const std::string&, const std::string& value) { b.bf16 = ParsePrecision(value); }},
      {"--batch", number(&b.batch, 1, 1024)},
  };
  if (o->command != "info") setters["--streams"] = number(&b.streams, 1, 256);
  if (o->command == "run") {
    setters["--input"] = text(&o->input);
    setters["--output"] = text(&o->output);
    setters["--threads"] = number(&o->threads, 1, 256);
  }
  if (o->command == "bench") setters["--iterations"] = number(&o->iterations, 1, 1000000);
  return setters;
}

void Require(const std::string& flag, const std::string& value) {
  if (value.empty()) throw UserError(flag + " is missing" + kHelp);
}

}  // namespace

Options ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  for (const std::string& argument : arguments) {
    if (argument == "--help" || argument == "-h") options.command = "help";
    if (argument == "--version") options.command = "version";
  }
  if (!options.command.empty()) return options;
  if (arguments.empty()) throw UserError(std::string("no command; use run, bench or info") + kHelp);
  options.command = arguments[0];
  if (options.command != "run" && options.command != "bench" && options.command != "info") {
    throw UserError("no command '" + options.command + "'; use run, bench or info" + kHelp);
  }
  const std::map<std::string, Setter> setters = Setters(&options);
  for (size_t i = 1; i < arguments.size(); ++i) {
    const size_t equals = arguments[i].find('=');
    const std::string flag = arguments[i].substr(0, equals);
    if (flag == "--json" && options.command != "run" && equals == std::string::npos) {
      options.json = true;
      continue;
    }
    const auto setter = setters.find(flag);
    if (setter == setters.end()) throw UserError("unknown option '" + flag + "' for " + options.command + kHelp);
    if (equals == std::string::npos && i + 1 == arguments.size()) throw UserError(flag + " needs a value" + kHelp);
    setter->second(flag, equals == std::string::npos ? arguments[++i] : arguments[i].substr(equals + 1));
  }
  Require("--manifest", options.manifest);
  if (options.command == "run") {
    Require("--input", options.input);
    Require("--output", options.output);
  }
  return options;
}

std::string UsageText() {
  return "usage: segment run   --manifest DIR/deploy.yaml --input IMAGES|BINS --output RESULTDIR [options]\n"
         "       segment bench --manifest DIR/deploy.yaml [--iterations 20] [--json] [options]\n"
         "       segment info  --manifest DIR/deploy.yaml [--json] [options]\n"
         "\n"
         "run    segments images (a file, a folder, a Cityscapes tree) or the .bin tensors of preprocess.py; writes\n"
         "       NAME.png (class ids) or NAME.bin (float32 logits) and summary.json\n"
         "bench  measures the model alone, on made-up input\n"
         "info   prints what the manifest says and what the backend makes of it\n"
         "\n"
         "options:\n"
         "  --backend auto|acl|mslite|openvino   default auto; built into this program: " +
         BuiltBackendNames() +
         "\n"
         "  --model FILE         runs this one of the files that the manifest lists\n"
         "  --device_id N        Ascend device, default 0\n"
         "  --device KIND        mslite only: ascend (default), cpu, or gpu (untested)\n"
         "  --precision f32|bf16 OpenVINO only: f32 (default) compares with training, bf16 is faster where the CPU has "
         "it\n"
         "  --batch N            images an inference; picks the model file, default the first one listed\n"
         "  --streams N          inferences at once, default the backend's choice\n"
         "  --threads N          run: threads that decode and preprocess, default half the cores\n"
         "\n"
         "exit status: 0 all well, 1 error, 3 some images failed (see summary.json), 130 interrupted\n"
         "\n"
         "example: segment run --manifest deploy/deploy.yaml --input leftImg8bit/val --output result_Files\n";
}

}  // namespace segment
