// Images in, result files out: decoding and preprocessing, inference, and writing at the same time.
//
//   Packer (gives each decode thread the next image and its place in a batch)
//     -> decode threads -> queue of full batches -> infer threads, as many as the backend takes calls -> queue
//     -> write threads
#ifndef ASCEND310_INFER_INC_PIPELINE_H_
#define ASCEND310_INFER_INC_PIPELINE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "inc/backend.h"
#include "inc/image_source.h"
#include "inc/manifest.h"
#include "inc/output_folder.h"
#include "inc/report.h"

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

// Ending of the results' names.
inline const char* ResultEnding(bool logits) { return logits ? ".bin" : ".png"; }

// Ending of the names of their confidence.
inline constexpr char kConfidenceEnding[] = "_confidence.png";

// Images of more than `max_pixels` are refused. `threads` decode and preprocess; 0: half the cores. A signal caught by
// StopOnSignals ends the intake: what was taken up is finished. Bad inputs are reported on stderr and collected. Throws
// UserError when the backend or the output folder fails; finished files stay. `confidence`: also write that of the
// classes, which the manifest must have.
PipelineResult RunPipeline(const ImageSource& source, const Manifest& manifest, Backend* backend, OutputFolder* output,
                           int64_t max_pixels, int threads, bool confidence = false);

// From now on the first SIGINT or SIGTERM only asks to stop; a second one kills.
void StopOnSignals();
int CaughtSignal();  // 0: none

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_PIPELINE_H_
