// The pipeline with a backend made up here, which needs no vendor library and can be told to misbehave. Also what runs
// under the thread sanitizer.
#include <atomic>
#include <csignal>
#include <cstring>
#include <map>
#include <opencv2/imgcodecs.hpp>
#include <thread>

#include "inc/error.h"
#include "inc/files.h"
#include "inc/output_folder.h"
#include "inc/pipeline.h"
#include "inc/preprocess.h"
#include "test/check.h"
#include "test/temporary_folder.h"

namespace mindseg {
namespace {

namespace fs = std::filesystem;

constexpr int kHeight = 6;
constexpr int kWidth = 8;

Manifest SmallManifest(int64_t batch, bool logits, const std::string& confidence = "") {
  Manifest manifest;
  manifest.path = "deploy.yaml";
  manifest.input.batch = batch;
  manifest.input.height = kHeight;
  manifest.input.width = kWidth;
  manifest.input.layout = Layout::kNhwc;
  manifest.input.dtype = DType::kUint8;
  manifest.input.normalize_on_host = false;
  manifest.output.batch = batch;
  manifest.output.logits = logits;
  manifest.output.confidence = confidence;
  manifest.output.height = kHeight;
  manifest.output.width = kWidth;
  return manifest;
}

// Class id of a pixel = its red value + 1, confidence = 255 - its red value; padding must never reach the results.
class PlainBackend : public Backend {
 public:
  PlainBackend(const Manifest& manifest, int64_t batch, int slots, int ahead = 0) {
    info_.batch = batch;
    info_.slots = slots;
    info_.ahead = ahead;
    info_.input = manifest.input;
    info_.output_dtype = manifest.output.logits ? DType::kFloat32 : DType::kUint8;
    busy_ = std::vector<std::atomic<bool>>(static_cast<size_t>(info_.Calls()));
  }

  const BackendInfo& Info() const override { return info_; }

  void Infer(int call, int64_t count, const uint8_t* input, uint8_t* output, uint8_t* confidence) override {
    if (busy_[static_cast<size_t>(call)].exchange(true))
      throw std::logic_error("a number was used by two threads at once");
    if (count < 1 || count > info_.batch) throw std::logic_error("count");
    if (++calls == fail_at) throw UserError("the device burnt down");
    if (calls == signal_at) std::raise(SIGTERM);
    const size_t pixels = static_cast<size_t>(info_.batch) * kHeight * kWidth;
    for (size_t i = 0; i < pixels; ++i) {
      if (confidence != nullptr) confidence[i] = static_cast<uint8_t>(255 - input[3 * i]);
      if (info_.output_dtype == DType::kUint8) {
        output[i] = static_cast<uint8_t>(input[3 * i] + 1);
      } else {
        reinterpret_cast<float*>(output)[i] = static_cast<float>(input[3 * i]) + 1;
      }
    }
    busy_[static_cast<size_t>(call)] = false;
  }

  std::atomic<int> calls{0};
  int fail_at = 0;
  int signal_at = 0;

 private:
  BackendInfo info_;
  std::vector<std::atomic<bool>> busy_;
};

ImageSource MakeImages(const TemporaryFolder& folder, int count) {
  for (int i = 0; i < count; ++i) {
    const cv::Mat image(kHeight, kWidth, CV_8UC3, cv::Scalar(0, 0, i % 200));  // BGR
    std::vector<uint8_t> png;
    cv::imencode(".png", image, png);
    char name[32];
    std::snprintf(name, sizeof(name), "in/%04d.png", i);
    folder.Write(name, std::string(png.begin(), png.end()));
  }
  return ListInputs(folder.path() / "in");
}

int ResultOf(const fs::path& path) {
  const cv::Mat ids = cv::imread(path.string(), cv::IMREAD_UNCHANGED);
  if (ids.rows != kHeight || ids.cols != kWidth || ids.type() != CV_8UC1) return -1;
  for (int i = 0; i < kHeight * kWidth; ++i) {
    if (ids.data[i] != ids.data[0]) return -1;
  }
  return ids.data[0];
}

TEST(EveryImageGetsItsOwnResult) {
  for (const int64_t batch : {1, 3, 4, 7}) {
    for (const int slots : {1, 3}) {
      for (const int threads : {1, 4}) {
        const TemporaryFolder folder;
        const ImageSource source = MakeImages(folder, 26);
        const Manifest manifest = SmallManifest(batch, false);
        PlainBackend backend(manifest, batch, slots, threads - 1);
        OutputFolder output(folder.path() / "out", false);
        const PipelineResult result = RunPipeline(source, manifest, &backend, &output, {kMaxPixels, threads});
        CHECK_EQ(result.images, int64_t{26});
        CHECK(result.failed.empty());
        CHECK_EQ(result.write_ms.size(), size_t{26});
        CHECK_EQ(int64_t{backend.calls}, (26 + batch - 1) / batch);
        for (int i = 0; i < 26; ++i) {
          CHECK_EQ(ResultOf(folder.path() / "out" / (source.items[static_cast<size_t>(i)].name + ".png")), i + 1);
        }
      }
    }
  }
}

TEST(EveryImageGetsItsOwnConfidence) {
  for (const int64_t batch : {1, 3, 4}) {
    const TemporaryFolder folder;
    MakeImages(folder, 11);
    const Manifest manifest = SmallManifest(batch, false, "confidence");
    for (const bool broken : {false, true}) {
      if (broken) folder.Write("in/0005.png", "broken");
      const ImageSource source = ListInputs(folder.path() / "in");
      PlainBackend backend(manifest, batch, 2, 1);
      OutputFolder output(folder.path() / "out", false);
      RunPipeline(source, manifest, &backend, &output, {kMaxPixels, 3, false, true});
      for (int i = 0; i < 11; ++i) {
        const std::string name = source.items[static_cast<size_t>(i)].name;
        const bool lost = broken && i == 5;  // nothing of the earlier run stays
        CHECK_EQ(ResultOf(folder.path() / "out" / (name + ".png")), lost ? -1 : i + 1);
        CHECK_EQ(ResultOf(folder.path() / "out" / (name + "_confidence.png")), lost ? -1 : 255 - i);
      }
    }
    PlainBackend backend(manifest, batch, 2);
    OutputFolder output(folder.path() / "ids", false);
    RunPipeline(ListInputs(folder.path() / "in"), manifest, &backend, &output, {kMaxPixels, 3});
    CHECK(!fs::exists(folder.path() / "ids" / "0001_confidence.png"));
    CHECK_EQ(ResultOf(folder.path() / "ids" / "0001.png"), 2);
  }
}

TEST(FailuresKeepTheInputsOrder) {
  const TemporaryFolder folder;
  MakeImages(folder, 40);
  for (const char* name : {"in/0003.png", "in/0004.png", "in/0005.png", "in/0017.png", "in/0039.png"}) {
    folder.Write(name, "broken");
  }
  const ImageSource source = ListInputs(folder.path() / "in");
  const Manifest manifest = SmallManifest(3, true);
  PlainBackend backend(manifest, 3, 2);
  OutputFolder output(folder.path() / "out", false);
  const PipelineResult result = RunPipeline(source, manifest, &backend, &output, {kMaxPixels, 3});
  CHECK_EQ(result.failed.size(), size_t{5});
  CHECK_EQ(fs::path(result.failed[0].file).filename(), "0003.png");
  CHECK_EQ(fs::path(result.failed[4].file).filename(), "0039.png");
  CHECK_EQ(backend.calls, 12);  // of 14: nothing to infer in that of 3, 4 and 5, and in that of 39
  CHECK_EQ(result.write_ms.size(), size_t{35});
  float value = 0;
  std::memcpy(&value, ReadFile(folder.path() / "out" / "0016.bin", 1000).data(), sizeof(value));
  CHECK_EQ(value, 17.0f);
}

TEST(AFailingBackendEndsTheRun) {
  for (const int fail_at : {1, 5}) {
    const TemporaryFolder folder;
    const ImageSource source = MakeImages(folder, 60);
    const Manifest manifest = SmallManifest(2, false);
    PlainBackend backend(manifest, 2, 2);
    backend.fail_at = fail_at;
    OutputFolder output(folder.path() / "out", false);
    CHECK_THROWS(UserError, RunPipeline(source, manifest, &backend, &output, {kMaxPixels, 2}), "burnt down");
    CHECK(backend.calls < 30);
  }
}

TEST(AnOutputFolderThatVanishesEndsTheRun) {
  const TemporaryFolder folder;
  const ImageSource source = MakeImages(folder, 30);
  const Manifest manifest = SmallManifest(4, false);
  PlainBackend backend(manifest, 4, 2);
  OutputFolder output(folder.path() / "gone", false);
  fs::remove_all(folder.path() / "gone");
  CHECK_THROWS(UserError, RunPipeline(source, manifest, &backend, &output, {kMaxPixels, 2}), "cannot write",
               "--output");
}

TEST(BinsOfAModelThatNormalisesItselfAreRefused) {
  Manifest manifest = SmallManifest(1, false);
  PlainBackend backend(manifest, 1, 1);
  manifest.input.normalize_on_host = true;
  ImageSource source;
  source.bins = true;
  const TemporaryFolder folder;
  OutputFolder output(folder.path(), false);
  CHECK_THROWS(UserError, RunPipeline(source, manifest, &backend, &output, {kMaxPixels, 1}), "AIPP");
}

TEST(AFailedImageLeavesNoResultOfAnEarlierRun) {
  const TemporaryFolder folder;
  MakeImages(folder, 4);
  const Manifest manifest = SmallManifest(2, false);
  for (const size_t failures : {0, 1}) {
    const ImageSource source = ListInputs(folder.path() / "in");
    PlainBackend backend(manifest, 2, 1);
    OutputFolder output(folder.path() / "out", false);
    const PipelineResult result = RunPipeline(source, manifest, &backend, &output, {kMaxPixels, 2});
    CHECK_EQ(result.failed.size(), failures);
    CHECK(fs::exists(folder.path() / "out" / "0001.png") == (failures == 0));
    CHECK(fs::exists(folder.path() / "out" / "0002.png"));
    folder.Write("in/0001.png", "broken");
  }
}

TEST(ImagesOverTheLimitAndUnusableNamesFailAlone) {
  const TemporaryFolder folder;
  MakeImages(folder, 2);
  const fs::path image = folder.path() / "in" / "0000.png";
  for (const std::string& name : {std::string("line\nbreak.png"), std::string(240, 'x') + ".png",
                                  std::string("back\\slash.png"), std::string("c:drive.png")}) {
    fs::copy_file(image, folder.path() / "in" / name);
  }
  std::vector<uint8_t> large;
  cv::imencode(".png", cv::Mat(kHeight, kWidth + 1, CV_8UC3, cv::Scalar::all(1)), large);
  folder.Write("in/large.png", std::string(large.begin(), large.end()));
  const ImageSource source = ListInputs(folder.path() / "in");
  const Manifest manifest = SmallManifest(1, false);
  PlainBackend backend(manifest, 1, 1);
  OutputFolder output(folder.path() / "out", false);
  const PipelineResult result = RunPipeline(source, manifest, &backend, &output, {kHeight * kWidth, 2});
  CHECK_EQ(result.failed.size(), size_t{5});
  CHECK_EQ(result.write_ms.size(), size_t{2});
  CHECK(result.failed[2].error.find("6x9 is above the limit of 48") != std::string::npos);
}

// Tiles of 6x8 pixels that share 2; the result is the red value of each pixel + 1, whatever tile it comes from.
TEST(LargeImagesAreSegmentedInTiles) {
  for (const bool logits : {false, true}) {
    for (const int64_t batch : {1, 4}) {
      for (const int slots : {1, 3}) {
        const TemporaryFolder folder;
        std::map<std::string, cv::Mat> images;
        for (const cv::Size& size : {cv::Size(41, 29), cv::Size(8, 6), cv::Size(41, 5), cv::Size(3, 20)}) {
          cv::Mat image(size, CV_8UC3);
          cv::randu(image, 0, logits ? 1 : 200);
          std::vector<uint8_t> png;
          cv::imencode(".png", image, png);
          const std::string name = std::to_string(size.width) + "x" + std::to_string(size.height);
          folder.Write("in/" + name + ".png", std::string(png.begin(), png.end()));
          images[name] = image;
        }
        const ImageSource source = ListInputs(folder.path() / "in");
        Manifest manifest = SmallManifest(batch, logits, "confidence");
        manifest.input.resize.pad = true;
        manifest.palette = {{0, 0, 0}};
        PlainBackend backend(manifest, batch, slots);
        OutputFolder output(folder.path() / "out", false);
        const RunSettings settings{kMaxPixels, 1, true, !logits, Tiling{{kWidth, kHeight}, 2}};
        const PipelineResult result = RunPipeline(source, manifest, &backend, &output, settings);
        CHECK(result.failed.empty());
        CHECK_EQ(result.write_ms.size(), images.size());
        for (const auto& [name, image] : images) {
          const fs::path path = folder.path() / "out" / (name + ".png");
          const cv::Mat ids = cv::imread(path.string(), cv::IMREAD_UNCHANGED);
          CHECK_EQ(ids.size(), image.size());
          cv::Mat red;
          cv::extractChannel(image, red, 2);
          CHECK_EQ(cv::norm(ids, logits ? cv::Mat(red * 0) : cv::Mat(red + 1), cv::NORM_INF), 0.0);
          if (!logits) {
            const fs::path confidence = folder.path() / "out" / (name + "_confidence.png");
            CHECK_EQ(cv::norm(cv::imread(confidence.string(), cv::IMREAD_UNCHANGED), cv::Mat(255 - red), cv::NORM_INF),
                     0.0);
          }
          const fs::path overlay = folder.path() / "out" / (name + "_overlay.png");
          CHECK_EQ(cv::imread(overlay.string()).size(), image.size());
        }
      }
    }
  }
}

TEST(AFailureAmongTilesLeavesNoHalfResult) {
  const TemporaryFolder folder;
  const auto write = [&folder](const std::string& name, int brightest) {
    cv::Mat image(200, 60, CV_8UC3, cv::Scalar::all(7));
    image.at<cv::Vec3b>(150, 9)[2] = static_cast<uint8_t>(brightest);
    std::vector<uint8_t> png;
    cv::imencode(".png", image, png);
    folder.Write("in/" + name + ".png", std::string(png.begin(), png.end()));
  };
  for (const char* name : {"a", "b", "c"}) write(name, 200);
  const Manifest manifest = SmallManifest(2, false);
  const RunSettings settings{kMaxPixels, 1, true, false, Tiling{{kWidth, kHeight}, 2}};
  const auto run = [&](int slots, int fail_at, int* calls) {
    PlainBackend backend(SmallManifest(2, true), 2, slots);  // ids of floating-point numbers
    backend.fail_at = fail_at;
    OutputFolder output(folder.path() / "out", false);
    const PipelineResult result = RunPipeline(ListInputs(folder.path() / "in"), manifest, &backend, &output, settings);
    *calls = backend.calls;
    return result;
  };
  const auto files = [&folder] { return std::distance(fs::directory_iterator(folder.path() / "out"), {}); };
  int calls = 0;
  CHECK(run(2, 0, &calls).failed.empty());
  CHECK_EQ(files(), 7);  // ids and overlays, and the record
  const int each = calls / 3;
  write("b", 255);  // becomes class 256
  for (const int slots : {1, 3}) {
    const PipelineResult result = run(slots, 0, &calls);
    CHECK_EQ(result.failed.size(), size_t{1});
    CHECK_EQ(fs::path(result.failed[0].file).filename(), "b.png");
    CHECK(result.failed[0].error.find("b.png: the model gave class id 256") != std::string::npos);
    CHECK(calls > 2 * each + each / 2 && calls < 3 * each);  // it failed in the middle
    CHECK_EQ(files(), 5);
    CHECK_THROWS(UserError, run(slots, each / 2, &calls), "burnt down");
    CHECK_EQ(files(), 5);  // still those of before
  }
}

// Last, because the signal is remembered for good.
TEST(SignalsFinishWhatWasBegun) {
  const TemporaryFolder folder;
  const ImageSource source = MakeImages(folder, 200);
  const Manifest manifest = SmallManifest(3, false);
  PlainBackend backend(manifest, 3, 2);
  backend.signal_at = 7;
  OutputFolder output(folder.path() / "out", false);
  StopOnSignals();
  const PipelineResult result = RunPipeline(source, manifest, &backend, &output, {kMaxPixels, 2});
  CHECK(result.interrupted);
  CHECK_EQ(CaughtSignal(), SIGTERM);
  CHECK(result.images >= 19 && result.images < 200);
  CHECK_EQ(static_cast<int64_t>(result.write_ms.size()), result.images);
  for (int64_t i = 0; i < result.images; ++i) {
    const std::string name = source.items[static_cast<size_t>(i)].name + ".png";
    CHECK_EQ(ResultOf(folder.path() / "out" / name), static_cast<int>(i % 200) + 1);
  }
  const RunSettings tiles{kMaxPixels, 1, false, false, Tiling{{kWidth, kHeight}, 2}};
  const PipelineResult nothing = RunPipeline(source, manifest, &backend, &output, tiles);
  CHECK(nothing.interrupted);
  CHECK_EQ(nothing.images, int64_t{0});
}

}  // namespace
}  // namespace mindseg

int main() { return check::RunAll(); }
