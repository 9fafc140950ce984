#include "inc/pipeline.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <opencv2/imgcodecs.hpp>
#include <optional>
#include <thread>

#include "inc/bounded_queue.h"
#include "inc/buffer.h"
#include "inc/error.h"
#include "inc/files.h"
#include "inc/overlay.h"
#include "inc/png_file.h"
#include "inc/preprocess.h"
#include "inc/restore.h"
#include "inc/tiled_run.h"

namespace mindseg {
namespace {

// Set by a signal handler and read by all threads: lock-free atomics are safe for both.
std::atomic<int> g_signal{0};
static_assert(std::atomic<int>::is_always_lock_free);

void OnSignal(int number) { g_signal = number; }

struct Batch {
  size_t first = 0;                  // index of its first image
  size_t count = 0;                  // images given out so far
  size_t pending = 0;                // given out and not yet done
  bool closed = false;               // no more images will be given out
  std::vector<char> good;            // by position: the image could be read
  std::vector<cv::Mat> photographs;  // by position: what overlays are drawn on
  std::unique_ptr<Buffer> input;     // goes back to the packer after inference
  std::unique_ptr<Buffer> output;    // goes back to the pool after writing
};

using BatchPtr = std::shared_ptr<Batch>;

// Room for one image in a batch.
struct BatchSlot {
  BatchPtr batch;
  size_t image = 0;     // index in the input
  size_t position = 0;  // in the batch
};

// Gives images out in order and packs them into batches; waits while all input buffers are under way.
class Packer {
 public:
  Packer(size_t total, size_t batch, std::vector<std::unique_ptr<Buffer>> buffers, BoundedQueue<BatchPtr>* ready)
      : total_(total), batch_(batch), ready_(ready), free_(std::move(buffers)) {}

  // The next image to prepare, or nothing if there is none or a signal came.
  std::optional<BatchSlot> Take() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return Ended() || next_ % batch_ != 0 || !free_.empty(); });
    if (Ended()) {
      if (open_) Close(&lock);
      return std::nullopt;
    }
    if (!open_) {
      open_ = std::make_shared<Batch>();
      open_->first = next_;
      open_->good.assign(batch_, 0);
      open_->photographs.resize(batch_);
      open_->input = std::move(free_.back());
      free_.pop_back();
    }
    BatchSlot slot{open_, next_, open_->count};
    ++open_->count;
    ++open_->pending;
    ++next_;
    changed_.notify_all();
    if (open_->count == batch_ || next_ == total_) Close(&lock);
    return slot;
  }

  void Done(const BatchSlot& slot, bool good) {
    std::unique_lock<std::mutex> lock(mutex_);
    slot.batch->good[slot.position] = good;
    --slot.batch->pending;
    SendIfComplete(slot.batch, &lock);
  }

  void GiveBack(std::unique_ptr<Buffer> buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(buffer));
    changed_.notify_all();
  }

  void Abort() {
    const std::lock_guard<std::mutex> lock(mutex_);
    aborted_ = true;
    changed_.notify_all();
  }

  size_t taken() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return next_;
  }

 private:
  bool Ended() const { return aborted_ || g_signal != 0 || next_ >= total_; }

  void Close(std::unique_lock<std::mutex>* lock) {
    const BatchPtr batch = std::move(open_);
    open_ = nullptr;
    batch->closed = true;
    SendIfComplete(batch, lock);
  }

  void SendIfComplete(const BatchPtr& batch, std::unique_lock<std::mutex>* lock) {
    if (!batch->closed || batch->pending > 0) return;
    lock->unlock();  // Push may wait
    ready_->Push(batch);
    lock->lock();
  }

  const size_t total_;
  const size_t batch_;
  BoundedQueue<BatchPtr>* ready_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Buffer>> free_;
  BatchPtr open_;
  size_t next_ = 0;
  bool aborted_ = false;
};

class Pipeline {
 public:
  Pipeline(const ImageSource& source, const Manifest& manifest, Backend* backend, OutputFolder* output,
           const RunSettings& settings)
      : source_(source),
        manifest_(manifest),
        backend_(backend),
        info_(backend->Info()),
        output_(output),
        settings_(settings),
        preprocessor_(info_.input),
        calls_(static_cast<size_t>(info_.Calls())),
        to_infer_(calls_ + 1),
        to_write_(calls_ + 1),
        output_pool_(calls_ + 1),
        packer_(source.items.size(), static_cast<size_t>(info_.batch),
                MakeBuffers(calls_ + 2, info_.input.BytesPerImage() * static_cast<size_t>(info_.batch)), &to_infer_) {
    const size_t pixels =
        settings.confidence ? manifest.output.ElementsPerImage() * static_cast<size_t>(info_.batch) : 0;
    for (std::unique_ptr<Buffer>& buffer : MakeBuffers(calls_ + 1, ConfidenceStart() + pixels)) {
      output_pool_.Push(std::move(buffer));
    }
  }

  PipelineResult Run(size_t threads) {
    const Clock::time_point start = Clock::now();
    std::vector<std::thread> decoders;
    std::vector<std::thread> inferrers;
    std::vector<std::thread> writers;
    for (size_t i = 0; i < (threads + 1) / 2; ++i) writers.push_back(Start([this] { WriteLoop(); }));
    for (size_t i = 0; i < calls_; ++i) inferrers.push_back(Start([this, i] { InferLoop(static_cast<int>(i)); }));
    for (size_t i = 0; i < threads; ++i) decoders.push_back(Start([this] { DecodeLoop(); }));
    for (std::thread& thread : decoders) thread.join();
    to_infer_.Close();
    for (std::thread& thread : inferrers) thread.join();
    to_write_.Close();
    for (std::thread& thread : writers) thread.join();
    if (fatal_) std::rethrow_exception(fatal_);
    PipelineResult result = stats_.Finish();
    result.images = static_cast<int64_t>(packer_.taken());
    result.seconds = MillisecondsSince(start) / 1000;
    result.interrupted = g_signal != 0 && packer_.taken() < source_.items.size();
    return result;
  }

 private:
  std::vector<std::unique_ptr<Buffer>> MakeBuffers(size_t count, size_t size) const {
    std::vector<std::unique_ptr<Buffer>> buffers(count);
    for (auto& buffer : buffers) buffer = backend_->MakeBuffer(size);
    return buffers;
  }

  size_t OutputBytesPerImage() const { return manifest_.output.ElementsPerImage() * ElementSize(info_.output_dtype); }

  // In an output buffer the confidence follows the results of the whole batch, at an aligned address.
  size_t ConfidenceStart() const {
    const size_t results = OutputBytesPerImage() * static_cast<size_t>(info_.batch);
    return (results + Buffer::kAlignment - 1) / Buffer::kAlignment * Buffer::kAlignment;
  }

  // A thread whose first uncaught exception stops the whole pipeline.
  std::thread Start(std::function<void()> body) {
    return std::thread([this, body = std::move(body)] {
      try {
        body();
      } catch (...) {
        {
          const std::lock_guard<std::mutex> lock(fatal_mutex_);
          if (!fatal_) fatal_ = std::current_exception();
        }
        packer_.Abort();
        to_infer_.Close();
        to_write_.Close();
        output_pool_.Close();
      }
    });
  }

  void DecodeLoop() {
    while (const std::optional<BatchSlot> slot = packer_.Take()) {
      const InputItem& item = source_.items[slot->image];
      bool good = true;
      try {
        cv::Mat* photograph = settings_.overlay ? &slot->batch->photographs[slot->position] : nullptr;
        Prepare(item, slot->batch->input->data() + slot->position * info_.input.BytesPerImage(), photograph);
      } catch (const ItemError& error) {
        Fail(slot->image, error.what());
        good = false;
      }
      packer_.Done(*slot, good);
    }
  }

  // An earlier run's result must not pass for the one that is missing now.
  void Fail(size_t index, const std::string& error) {
    const InputItem& item = source_.items[index];
    stats_.Fail(index, item.path, error);
    for (const std::string& name : ResultNames(item.name, manifest_.output, settings_)) output_->Remove(name);
  }

  void Prepare(const InputItem& item, uint8_t* tensor, cv::Mat* photograph) {
    constexpr size_t kLargestImageFile = size_t{1} << 30;
    if (!item.problem.empty()) throw ItemError(item.path.string() + ": " + item.problem);
    Clock::time_point start = Clock::now();
    if (source_.bins) {
      // Before it is read: a file by mistake may be larger than the memory.
      std::error_code error;
      const uintmax_t size = std::filesystem::file_size(item.path, error);
      if (!error) CheckBinSize(size, item.path, manifest_.input);
      const std::vector<uint8_t> bytes = ReadFile(item.path, manifest_.input.BytesPerImage());
      CopyBin(bytes, item.path, manifest_.input, info_.input.dtype, tensor);
      stats_.Time(&PipelineResult::decode_ms, start);
      return;
    }
    const cv::Mat bgr = DecodeImage(ReadFile(item.path, kLargestImageFile), item.path, settings_.max_pixels, &notes_);
    stats_.Time(&PipelineResult::decode_ms, start);
    start = Clock::now();
    preprocessor_.Run(bgr, item.path, tensor);
    if (photograph != nullptr) *photograph = bgr;
    stats_.Time(&PipelineResult::preprocess_ms, start);
  }

  void InferLoop(int call) {
    while (std::optional<BatchPtr> popped = to_infer_.Pop()) {
      Batch& batch = **popped;
      if (std::count(batch.good.begin(), batch.good.end(), 1) > 0) {
        std::optional<std::unique_ptr<Buffer>> buffer = output_pool_.Pop();
        if (!buffer) return;  // the pipeline failed elsewhere
        batch.output = std::move(*buffer);
        const Clock::time_point start = Clock::now();
        uint8_t* const output = batch.output->data();
        backend_->Infer(call, static_cast<int64_t>(batch.count), batch.input->data(), output,
                        settings_.confidence ? output + ConfidenceStart() : nullptr);
        stats_.Time(&PipelineResult::infer_ms, start);
      }
      packer_.GiveBack(std::move(batch.input));
      if (batch.output) to_write_.Push(*popped);
    }
  }

  void WriteLoop() {
    while (std::optional<BatchPtr> popped = to_write_.Pop()) {
      Batch& batch = **popped;
      for (size_t position = 0; position < batch.count; ++position) {
        if (!batch.good[position]) continue;
        const InputItem& item = source_.items[batch.first + position];
        const Clock::time_point start = Clock::now();
        try {
          const uint8_t* tensor = batch.output->data() + position * OutputBytesPerImage();
          Write(item, tensor);
          if (settings_.confidence) WriteConfidence(item, batch.output->data() + ConfidenceStart(), position);
          if (settings_.overlay) WriteOverlay(item, tensor, &batch.photographs[position]);
        } catch (const ItemError& error) {
          Fail(batch.first + position, item.path.string() + ": " + error.what());
          continue;
        }
        stats_.Time(&PipelineResult::write_ms, start);
        Progress();
      }
      output_pool_.Push(std::move(batch.output));
    }
  }

  void Write(const InputItem& item, const uint8_t* tensor) const {
    const OutputSpec& output = manifest_.output;
    const size_t count = output.ElementsPerImage();
    if (output.logits) {
      if (info_.output_dtype == DType::kFloat32) {
        output_->Write(item.name + kLogitsEnding, tensor, count * sizeof(float));
        return;
      }
      std::vector<float> values(count);
      ToFloat32(info_.output_dtype, tensor, count, values.data());
      output_->Write(item.name + kLogitsEnding, values.data(), count * sizeof(float));
      return;
    }
    cv::Mat ids(output.height, output.width, CV_8UC1);
    ToClassIds(info_.output_dtype, tensor, count, ids.data);
    WritePng(item.name + kIdsEnding, ids);
  }

  // `batch` is the confidence of all images of a batch.
  void WriteConfidence(const InputItem& item, uint8_t* batch, size_t position) const {
    const OutputSpec& output = manifest_.output;
    WritePng(item.name + kConfidenceEnding,
             cv::Mat(output.height, output.width, CV_8UC1, batch + position * output.ElementsPerImage()));
  }

  void WritePng(const std::string& name, const cv::Mat& image) const {
    std::vector<uint8_t> png;
    // Level 1: masks compress well anyway, and higher levels cost more time than the network on fast devices.
    if (!cv::imencode(".png", image, png, {cv::IMWRITE_PNG_COMPRESSION, 1})) {
      throw UserError("OpenCV cannot encode PNG; install a build of it with PNG");
    }
    output_->Write(name, png.data(), png.size());
  }

  void WriteOverlay(const InputItem& item, const uint8_t* tensor, cv::Mat* photograph) const {
    const cv::Mat bgr = std::move(*photograph);
    const cv::Mat ids = RestoreIds(tensor, info_.output_dtype, manifest_.output, info_.input.resize, bgr.size());
    PngFile file(output_, item.name + kOverlayEnding, bgr.size(), bgr.channels());
    file.Write(Overlay(bgr, ids, manifest_.palette));
    file.Finish();
  }

  void Progress() {
    const size_t done = ++written_;
    if (!show_progress_ || (done % 10 != 0 && done != source_.items.size())) return;
    const std::string end = done == source_.items.size() ? "\n" : "";
    std::cerr << "\r" + std::to_string(done) + "/" + std::to_string(source_.items.size()) + " images" + end;
  }

  const ImageSource& source_;
  const Manifest& manifest_;
  Backend* backend_;
  const BackendInfo& info_;
  OutputFolder* const output_;
  const RunSettings& settings_;
  const Preprocessor preprocessor_;
  ConversionNotes notes_;
  const size_t calls_;  // of the backend at once
  BoundedQueue<BatchPtr> to_infer_;
  BoundedQueue<BatchPtr> to_write_;
  BoundedQueue<std::unique_ptr<Buffer>> output_pool_;
  Packer packer_;
  PipelineStats stats_;
  std::mutex fatal_mutex_;
  std::exception_ptr fatal_;
  std::atomic<size_t> written_{0};
  const bool show_progress_ = ::isatty(STDERR_FILENO) == 1;
};

}  // namespace

void StopOnSignals() {
  struct sigaction action{};
  action.sa_handler = OnSignal;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  for (int number : {SIGINT, SIGTERM}) sigaction(number, &action, nullptr);
}

int CaughtSignal() { return g_signal; }

void PipelineStats::Time(std::vector<double> PipelineResult::* stage, double milliseconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  (result_.*stage).push_back(milliseconds);
}

void PipelineStats::Fail(size_t index, const std::filesystem::path& path, const std::string& error) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::cerr << "failed: " << error << std::endl;
  failed_[index] = {path.string(), error};
}

PipelineResult PipelineStats::Finish() {
  for (auto& [index, item] : failed_) result_.failed.push_back(item);
  return std::move(result_);
}

std::vector<std::string> ResultNames(const std::string& name, const OutputSpec& output, const RunSettings& settings) {
  std::vector<std::string> names = {name + (output.logits && !settings.tiling ? kLogitsEnding : kIdsEnding)};
  if (settings.confidence) names.push_back(name + kConfidenceEnding);
  if (settings.overlay) names.push_back(name + kOverlayEnding);
  return names;
}

PipelineResult RunPipeline(const ImageSource& source, const Manifest& manifest, Backend* backend, OutputFolder* output,
                           const RunSettings& settings) {
  if (source.bins && manifest.input.normalize_on_host && !backend->Info().input.normalize_on_host) {
    throw UserError(
        backend->Info().model_file +
        " normalises pixels itself (AIPP) and cannot take normalised bins; give --input a folder of images");
  }
  cv::setNumThreads(1);  // images are prepared side by side; threads within one would only fight the inference
  if (settings.tiling) return RunTiles(source, manifest, backend, output, settings);
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  const size_t decoders = settings.threads > 0 ? static_cast<size_t>(settings.threads) : std::max<size_t>(1, cores / 2);
  Pipeline pipeline(source, manifest, backend, output, settings);
  return pipeline.Run(decoders);
}

}  // namespace mindseg
