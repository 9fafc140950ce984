#include "inc/commands.h"

#include <atomic>
#include <cstring>
#include <iostream>
#include <map>
#include <mutex>
#include <random>

#include "inc/buffer.h"
#include "inc/error.h"
#include "inc/files.h"
#include "inc/image_source.h"
#include "inc/output_folder.h"
#include "inc/parallel.h"
#include "inc/pipeline.h"
#include "inc/report.h"

namespace mindseg {
namespace {

Manifest LoadSelected(const Options& options) {
  Manifest manifest = LoadManifest(options.manifest);
  if (!options.model.empty()) SelectModel(options.model, &manifest);
  return manifest;
}

void AddBackend(const BackendInfo& info, Json* json) {
  json->update({{"backend", info.backend},
                {"device", info.device},
                {"backend_version", info.version},
                {"precision", info.precision},
                {"model_file", info.model_file},
                {"batch", info.batch},
                {"streams", info.slots},
                {"simulated", info.simulated}});
}

size_t OutputBytesPerImage(const Manifest& manifest, const BackendInfo& info) {
  return manifest.output.ElementsPerImage() * ElementSize(info.output_dtype);
}

constexpr char kSummaryName[] = "summary.json";
constexpr char kNamesName[] = "inputs.txt";

// Before anything is inferred, so that no work is lost.
void CheckResults(const ImageSource& source, const Manifest& manifest, const RunSettings& settings,
                  const OutputFolder& output) {
  for (const char* name : {kSummaryName, kNamesName}) output.Check(name);
  std::map<std::string, std::filesystem::path> images;
  for (const InputItem& item : source.items) {
    if (!item.problem.empty()) continue;
    for (const std::string& name : ResultNames(item.name, manifest.output, settings)) {
      output.Check(name);
      const auto [place, is_new] = images.emplace(name, item.path);
      if (is_new) continue;
      throw UserError("--input: " + place->second.string() + " and " + item.path.string() +
                      " would both give results named '" + name + "'; rename one");
    }
  }
}

RunSettings ReadSettings(const Options& options, const ImageSource& source, const Manifest& manifest) {
  RunSettings settings{options.max_pixels, options.threads, !options.save.empty(), options.confidence, {}};
  if (options.tiled) settings.tiling = ReadTiling(options.tile, options.overlap, manifest.input);
  if (source.bins && (settings.tiling || settings.overlay)) {
    throw UserError("--input " + options.input +
                    ": holds preprocessed bins, but --tile and --save overlay need images");
  }
  return settings;
}

// The names of all results without ending, one a line. Control characters, which no result can have, become '?'.
std::string InputNames(const ImageSource& source) {
  std::string lines;
  for (const InputItem& item : source.items) {
    for (const char c : item.name) lines += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    lines += '\n';
  }
  return lines;
}

// Written before the first result, so that what a killed run leaves cannot be taken for a whole set of results.
Json RunIdentity(const Manifest& manifest, const BackendInfo& info, const RunSettings& settings,
                 const std::string& names, size_t images) {
  Json json = {{"program", "segment"},
               {"status", "running"},
               {"manifest_sha256", manifest.sha256},
               {"model_sha256", info.model_sha256},
               {"inputs_sha256", Sha256(names.data(), names.size())},
               {"images_expected", images}};
  if (settings.tiling) {
    const cv::Size& tile = settings.tiling->size;
    json["tiles"] = {{"height", tile.height}, {"width", tile.width}, {"overlap", settings.tiling->overlap}};
  }
  return json;
}

Json RunSummary(const Manifest& manifest, const BackendInfo& info, const PipelineResult& result) {
  Json failed = Json::array();
  for (const FailedItem& item : result.failed) failed.push_back({{"file", item.file}, {"error", item.error}});
  const auto done = static_cast<double>(result.write_ms.size());
  Json json = {{"model", manifest.model_name},
               {"images", result.images},
               {"failures", result.failed.size()},
               {"failed", failed}};
  AddBackend(info, &json);
  json["latency_ms"] = {{"decode", ToJson(Summarize(result.decode_ms))},
                        {"preprocess", ToJson(Summarize(result.preprocess_ms))},
                        {"infer", ToJson(Summarize(result.infer_ms))},
                        {"write", ToJson(Summarize(result.write_ms))}};
  json["seconds"] = Rounded(result.seconds);
  json["images_per_second"] = Rounded(result.seconds > 0 ? done / result.seconds : 0.0);
  json["input_bytes_per_image"] = info.input.BytesPerImage();
  json["output_bytes_per_image"] = OutputBytesPerImage(manifest, info);
  json["interrupted"] = result.interrupted;
  return json;
}

struct BenchResult {
  std::vector<double> warm_up_ms;
  std::vector<double> infer_ms;
  double seconds = 0;
};

using Buffers = std::vector<std::unique_ptr<Buffer>>;

// Runs `total` inferences, as many at once as the backend takes.
std::vector<double> InferMany(Backend* backend, int total, const Buffers& inputs, const Buffers& outputs) {
  std::mutex mutex;
  std::vector<double> times;
  std::atomic<int> next{0};
  OnThreads(backend->Info().Calls(), [&](int call) {
    while (next++ < total && CaughtSignal() == 0) {
      const Clock::time_point start = Clock::now();
      const auto index = static_cast<size_t>(call);
      backend->Infer(call, backend->Info().batch, inputs[index]->data(), outputs[index]->data(), nullptr);
      const double elapsed = MillisecondsSince(start);
      const std::lock_guard<std::mutex> lock(mutex);
      times.push_back(elapsed);
    }
  });
  return times;
}

// Plausible input: zeros would let some kernels and memory look faster than they are.
void FillWithNoise(const InputSpec& input, Buffer* buffer) {
  std::minstd_rand random(1);
  std::uniform_real_distribution<float> normal(-2, 2);
  uint8_t* bytes = buffer->data();
  const size_t count = buffer->size() / ElementSize(input.dtype);
  if (input.dtype == DType::kUint8) {
    for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(random() >> 16);
    return;
  }
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  if (input.dtype == DType::kFloat16) {
    FloatToHalf(values.data(), count, bytes);
  } else {
    std::memcpy(bytes, values.data(), count * sizeof(float));
  }
}

BenchResult Bench(const Manifest& manifest, Backend* backend, int iterations) {
  const BackendInfo& info = backend->Info();
  const auto batch = static_cast<size_t>(info.batch);
  Buffers inputs;
  Buffers outputs;
  for (int call = 0; call < info.Calls(); ++call) {
    inputs.push_back(backend->MakeBuffer(info.input.BytesPerImage() * batch));
    FillWithNoise(info.input, inputs.back().get());
    outputs.push_back(backend->MakeBuffer(OutputBytesPerImage(manifest, info) * batch));
  }
  BenchResult result;
  result.warm_up_ms = InferMany(backend, 2 * info.slots, inputs, outputs);
  const Clock::time_point start = Clock::now();
  result.infer_ms = InferMany(backend, iterations, inputs, outputs);
  result.seconds = MillisecondsSince(start) / 1000;
  return result;
}

void PrintBackend(const Manifest& manifest, const BackendInfo& info) {
  std::cout << "model       " << manifest.model_name << " (" << info.model_file << ")\n"
            << "backend     " << info.backend << " " << info.version << (info.simulated ? " (SIMULATED)" : "") << "\n"
            << "device      " << info.device << "\n"
            << "precision   " << info.precision << "\n"
            << "batch       " << info.batch << ", streams " << info.slots << "\n"
            << "input       " << info.input.name << " " << ShapeName(info.input.Shape(info.batch)) << " "
            << LayoutName(info.input.layout) << " " << DTypeName(info.input.dtype) << ", normalised by the "
            << (info.input.normalize_on_host ? "host" : "model") << "\n"
            << "output      " << manifest.output.name << " " << ShapeName(manifest.output.Shape(info.batch)) << " "
            << DTypeName(info.output_dtype) << (manifest.output.logits ? " logits" : " class ids") << "\n"
            << "host bytes  " << info.input.BytesPerImage() << " in, " << OutputBytesPerImage(manifest, info)
            << " out an image\n";
}

}  // namespace

int RunCommand(const Options& options) {
  const Manifest manifest = LoadSelected(options);
  if (options.confidence) CheckHasConfidence(manifest);
  CheckApart(options.input, options.output);
  const ImageSource source = ListInputs(options.input, options.output);
  const RunSettings settings = ReadSettings(options, source, manifest);
  const std::unique_ptr<Backend> backend = CreateBackend(options.backend, manifest, options.backend_options);
  // After the model, so that a missing one leaves no empty folder behind.
  OutputFolder output(options.output, options.overwrite);
  CheckResults(source, manifest, settings, output);
  StopOnSignals();
  const std::string names = InputNames(source);
  Json summary = RunIdentity(manifest, backend->Info(), settings, names, source.items.size());
  if (options.confidence) summary["confidence"] = true;
  output.Write(kSummaryName, JsonText(summary) + "\n");
  output.Write(kNamesName, names);
  const PipelineResult result = RunPipeline(source, manifest, backend.get(), &output, settings);
  summary["status"] = result.interrupted ? "interrupted" : "finished";
  summary.update(RunSummary(manifest, backend->Info(), result));
  output.Write(kSummaryName, JsonText(summary) + "\n");
  const Latency infer = Summarize(result.infer_ms);
  std::cout << result.images - static_cast<int64_t>(result.failed.size()) << " of " << source.items.size()
            << " images in " << result.seconds << " s, inference mean " << infer.mean << " ms, results in "
            << output.path().string() << std::endl;
  if (result.interrupted) {
    std::cerr << "interrupted: what was begun is finished and in summary.json" << std::endl;
    return kExitSignalBase + CaughtSignal();
  }
  return result.failed.empty() ? kExitOk : kExitSomeFailed;
}

int BenchCommand(const Options& options) {
  const Manifest manifest = LoadSelected(options);
  const std::unique_ptr<Backend> backend = CreateBackend(options.backend, manifest, options.backend_options);
  const BackendInfo& info = backend->Info();
  StopOnSignals();
  const BenchResult result = Bench(manifest, backend.get(), options.iterations);
  if (CaughtSignal() != 0) return kExitSignalBase + CaughtSignal();
  const Latency infer = Summarize(result.infer_ms);
  const double rate = static_cast<double>(result.infer_ms.size()) * static_cast<double>(info.batch) / result.seconds;
  if (options.json) {
    Json json = {{"model", manifest.model_name}};
    AddBackend(info, &json);
    json["height"] = info.input.height;
    json["width"] = info.input.width;
    json["iterations"] = result.infer_ms.size();
    json["latency_ms"] = {{"warm_up", ToJson(Summarize(result.warm_up_ms))}, {"infer", ToJson(infer)}};
    json["images_per_second"] = Rounded(rate);
    std::cout << JsonText(json) << std::endl;
    return kExitOk;
  }
  PrintBackend(manifest, info);
  std::cout << "iterations  " << result.infer_ms.size() << "\n"
            << "warm-up     " << Summarize(result.warm_up_ms).mean << " ms\n"
            << "latency ms  min " << infer.min << "  mean " << infer.mean << "  median " << infer.median << "  p99 "
            << infer.p99 << "\n"
            << "images/s    " << rate << std::endl;
  return kExitOk;
}

int InfoCommand(const Options& options) {
  const Manifest manifest = LoadSelected(options);
  const std::unique_ptr<Backend> backend = CreateBackend(options.backend, manifest, options.backend_options);
  if (!options.json) {
    PrintBackend(manifest, backend->Info());
    return kExitOk;
  }
  const BackendInfo& info = backend->Info();
  Json json = {{"model", manifest.model_name}};
  AddBackend(info, &json);
  json["input_shape"] = ShapeName(info.input.Shape(info.batch));
  json["input_dtype"] = DTypeName(info.input.dtype);
  json["output_shape"] = ShapeName(manifest.output.Shape(info.batch));
  json["output_dtype"] = DTypeName(info.output_dtype);
  json["built_backends"] = BuiltBackendNames();
  std::cout << JsonText(json) << std::endl;
  return kExitOk;
}

}  // namespace mindseg
