#include "inc/tiled_run.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <future>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>

#include "inc/error.h"
#include "inc/overlay.h"
#include "inc/parallel.h"
#include "inc/png_file.h"
#include "inc/preprocess.h"

namespace mindseg {
namespace {

// Lets threads pass one after the other, in the order of their numbers from 0 on.
class Turns {
 public:
  // Waits for the turn of `number`; false if the work was given up.
  bool Wait(size_t number) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return given_up_ || next_ == number; });
    return !given_up_;
  }

  void Next() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++next_;
    changed_.notify_all();
  }

  void GiveUp() {
    const std::lock_guard<std::mutex> lock(mutex_);
    given_up_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t next_ = 0;
  bool given_up_ = false;
};

class TiledRun {
 public:
  TiledRun(const ImageSource& source, const Manifest& manifest, Backend* backend, OutputFolder* output,
           const RunSettings& settings)
      : source_(source),
        manifest_(manifest),
        backend_(backend),
        info_(backend->Info()),
        output_(output),
        settings_(settings),
        preprocessor_(info_.input),
        batch_(static_cast<size_t>(info_.batch)),
        output_bytes_(manifest.output.ElementsPerImage() * ElementSize(info_.output_dtype)),
        pixels_(static_cast<size_t>(manifest.output.height) * static_cast<size_t>(manifest.output.width)) {
    for (int call = 0; call < info_.Calls(); ++call) {
      inputs_.push_back(backend_->MakeBuffer(info_.input.BytesPerImage() * batch_));
      outputs_.push_back(backend_->MakeBuffer(output_bytes_ * batch_));
      confidences_.push_back(backend_->MakeBuffer(settings.confidence ? pixels_ * batch_ : 0));
    }
  }

  PipelineResult Run() {
    const Clock::time_point start = Clock::now();
    size_t taken = 0;
    for (; taken < source_.items.size() && CaughtSignal() == 0; ++taken) {
      const InputItem& item = source_.items[taken];
      try {
        Segment(item);
      } catch (const ItemError& error) {
        stats_.Fail(taken, item.path, error.what());
        // An earlier run's result must not pass for the one that is missing now.
        for (const std::string& name : ResultNames(item.name, manifest_.output, settings_)) output_->Remove(name);
      }
    }
    PipelineResult result = stats_.Finish();
    result.images = static_cast<int64_t>(taken);
    result.seconds = MillisecondsSince(start) / 1000;
    result.interrupted = taken < source_.items.size();
    return result;
  }

 private:
  void Segment(const InputItem& item) {
    if (!item.problem.empty()) throw ItemError(item.path.string() + ": " + item.problem);
    Clock::time_point start = Clock::now();
    ImageRows image(item.path, settings_.max_pixels, &notes_);
    double decode_ms = MillisecondsSince(start);
    double write_ms = 0;
    TileJoiner joiner(image.size(), *settings_.tiling, manifest_.output, info_.input.resize, info_.output_dtype);
    const std::vector<Span>& rows = joiner.rows();
    const auto read = [&](const Span& row) {
      const Clock::time_point begin = Clock::now();
      const cv::Mat band = image.Read(row.start, row.start + row.length);
      decode_ms += MillisecondsSince(begin);
      return band;
    };
    PngFile ids_file(output_, item.name + kIdsEnding, image.size(), 1);
    std::optional<PngFile> confidence_file;
    if (settings_.confidence) confidence_file.emplace(output_, item.name + kConfidenceEnding, image.size(), 1);
    std::optional<PngFile> overlay_file;
    if (settings_.overlay) overlay_file.emplace(output_, item.name + kOverlayEnding, image.size(), 3);
    std::future<cv::Mat> coming = std::async(std::launch::async, read, rows[0]);
    for (size_t row = 0; row < rows.size(); ++row) {
      const cv::Mat band = coming.get();
      if (row + 1 < rows.size()) coming = std::async(std::launch::async, read, rows[row + 1]);
      InferRow(item, band, &joiner);
      start = Clock::now();
      const cv::Mat ids = joiner.NextRows();
      ids_file.Write(ids);
      if (confidence_file) confidence_file->Write(joiner.Confidence());
      if (overlay_file) {
        const int first = rows[row].first - rows[row].start;
        overlay_file->Write(Overlay(band.rowRange(first, first + ids.rows), ids, manifest_.palette));
      }
      write_ms += MillisecondsSince(start);
      Progress(item, row + 1, rows.size());
    }
    ids_file.Finish();
    if (confidence_file) confidence_file->Finish();
    if (overlay_file) overlay_file->Finish();
    stats_.Time(&PipelineResult::decode_ms, decode_ms);
    stats_.Time(&PipelineResult::write_ms, write_ms);
  }

  // Infers a row of tiles, as many batches at once as the backend takes. Answers are joined from left to right, so that
  // sums of logits do not depend on which thread is faster.
  void InferRow(const InputItem& item, const cv::Mat& band, TileJoiner* joiner) {
    const std::vector<Span>& columns = joiner->columns();
    const size_t batches = (columns.size() + batch_ - 1) / batch_;
    std::atomic<size_t> next{0};
    Turns turns;
    OnThreads(static_cast<int>(std::min(inputs_.size(), batches)), [&](int call) {
      try {
        for (size_t number = next++; number < batches; number = next++) {
          const size_t first = number * batch_;
          const size_t count = std::min(batch_, columns.size() - first);
          Infer(call, item, band, columns.data() + first, count);
          if (!turns.Wait(number)) return;
          for (size_t i = 0; i < count; ++i) Join(call, item, i, joiner);
          turns.Next();
        }
      } catch (...) {
        turns.GiveUp();
        throw;
      }
    });
  }

  // Infers `count` tiles of a row.
  void Infer(int call, const InputItem& item, const cv::Mat& band, const Span* columns, size_t count) {
    const auto index = static_cast<size_t>(call);
    Clock::time_point start = Clock::now();
    for (size_t i = 0; i < count; ++i) {
      const cv::Mat tile = band.colRange(columns[i].start, columns[i].start + columns[i].length);
      preprocessor_.Run(tile, item.path, inputs_[index]->data() + i * info_.input.BytesPerImage());
    }
    stats_.Time(&PipelineResult::preprocess_ms, MillisecondsSince(start) / static_cast<double>(count));
    start = Clock::now();
    backend_->Infer(call, static_cast<int64_t>(count), inputs_[index]->data(), outputs_[index]->data(),
                    settings_.confidence ? confidences_[index]->data() : nullptr);
    stats_.Time(&PipelineResult::infer_ms, start);
  }

  // Joins the answer for the tile at `position` of a batch.
  void Join(int call, const InputItem& item, size_t position, TileJoiner* joiner) const {
    const auto index = static_cast<size_t>(call);
    const uint8_t* confidence = settings_.confidence ? confidences_[index]->data() + position * pixels_ : nullptr;
    try {
      joiner->Add(outputs_[index]->data() + position * output_bytes_, confidence);
    } catch (const ItemError& error) {
      throw ItemError(item.path.string() + ": " + error.what());
    }
  }

  void Progress(const InputItem& item, size_t done, size_t rows) const {
    if (!show_progress_) return;
    const std::string end = done == rows ? "\n" : "";
    std::cerr << "\r" + item.name + ": " + std::to_string(done) + "/" + std::to_string(rows) + " rows of tiles" + end;
  }

  const ImageSource& source_;
  const Manifest& manifest_;
  Backend* backend_;
  const BackendInfo& info_;
  OutputFolder* const output_;
  const RunSettings& settings_;
  const Preprocessor preprocessor_;
  ConversionNotes notes_;
  const size_t batch_;
  const size_t output_bytes_;                         // of a tile
  const size_t pixels_;                               // of a tile
  std::vector<std::unique_ptr<Buffer>> inputs_;       // of each call of the backend
  std::vector<std::unique_ptr<Buffer>> outputs_;      // of each call of the backend
  std::vector<std::unique_ptr<Buffer>> confidences_;  // of each call of the backend; empty unless it is written
  PipelineStats stats_;
  const bool show_progress_ = ::isatty(STDERR_FILENO) == 1;
};

}  // namespace

PipelineResult RunTiles(const ImageSource& source, const Manifest& manifest, Backend* backend, OutputFolder* output,
                        const RunSettings& settings) {
  return TiledRun(source, manifest, backend, output, settings).Run();
}

}  // namespace mindseg
