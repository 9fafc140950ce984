// Images in, result files out: decoding and preprocessing, inference, and writing at the same time.
//
//   Packer (gives each decode thread the next image and its place in a batch)
//     -> decode threads -> queue of full batches -> infer threads, as many as the backend takes calls -> queue
//     -> write threads
#ifndef ASCEND310_INFER_INC_PIPELINE_H_
#define ASCEND310_INFER_INC_PIPELINE_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "inc/backend.h"
#include "inc/decode.h"
#include "inc/image_source.h"
#include "inc/manifest.h"
#include "inc/output_folder.h"
#include "inc/report.h"
#include "inc/tiles.h"

namespace mindseg {

struct FailedItem {
  std::string file;
  std::string error;
};

struct PipelineResult {
  int64_t images = 0;              // taken up, failed ones included
  std::vector<FailedItem> failed;  // in the order of the input
  std::vector<double> decode_ms;   // reading included
  std::vector<double> preprocess_ms;
  std::vector<double> infer_ms;  // of a whole batch
  std::vector<double> write_ms;  // encoding included
  double seconds = 0;
  bool interrupted = false;
};

// Endings of the results' names.
inline constexpr char kIdsEnding[] = ".png";
inline constexpr char kLogitsEnding[] = ".bin";
inline constexpr char kConfidenceEnding[] = "_confidence.png";
inline constexpr char kOverlayEnding[] = "_overlay.png";

// Collects times and failures of all threads.
class PipelineStats {
 public:
  void Time(std::vector<double> PipelineResult::* stage, double milliseconds);
  void Time(std::vector<double> PipelineResult::* stage, Clock::time_point start) {
    Time(stage, MillisecondsSince(start));
  }

  // Says so on stderr, too. `index` is that of the image in the input.
  void Fail(size_t index, const std::filesystem::path& path, const std::string& error);

  // All but the number of images, the seconds, and whether it was interrupted.
  PipelineResult Finish();

 private:
  std::mutex mutex_;
  PipelineResult result_;
  std::map<size_t, FailedItem> failed_;
};

struct RunSettings {
  int64_t max_pixels = kMaxPixels;  // of an image, with tiles of a row of them; what has more is refused
  int threads = 0;                  // that decode and preprocess; 0: half the cores
  bool overlay = false;             // also writes overlays
  bool confidence = false;          // also writes that of the classes, which the manifest must have
  std::optional<Tiling> tiling{};   // cuts images into tiles; the results are class ids of their size
};

// Names of the files that an image of the name `name` gives.
std::vector<std::string> ResultNames(const std::string& name, const OutputSpec& output, const RunSettings& settings);

// A signal caught by StopOnSignals ends the intake: what was taken up is finished. Bad inputs are reported on stderr
// and collected. Throws UserError when the backend or the output folder fails; finished files stay.
PipelineResult RunPipeline(const ImageSource& source, const Manifest& manifest, Backend* backend, OutputFolder* output,
                           const RunSettings& settings);

// From now on the first SIGINT or SIGTERM only asks to stop; a second one kills.
void StopOnSignals();
int CaughtSignal();  // 0: none

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_PIPELINE_H_
