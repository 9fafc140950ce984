// AscendCL: an .om file on an Ascend device. AscendCL needs this order, which is that of the members below: library,
// device, context, then for each slot streams, model, description, device memory, data sets; released backwards.
// Load, execution and unload happen in one explicit context, which each thread makes its own before it calls. Each slot
// loads its own copy of the model, since one model id must not run on two streams at once.
//
// Copies overlap with execution: host memory is pinned, which asynchronous copies need; each slot has a stream for
// copying in and executing, and another for copying out; and one batch more than there are slots is under way. Then,
// with two slots, one batch is copied in while another is executed and a third is copied out:
//
//   slot 0  execute 0 | copy 0 out, copy 2 in | execute 2              | copy 2 out, copy 4 in | ...
//   slot 1  copy 1 in | execute 1             | copy 1 out, copy 3 in  | execute 3             | ...
//
// Copying in needs no third stream: it has to wait for the slot's last execution, which reads the same memory. Threads
// hand over by waiting for a stream and not by events, whose rules for using one again changed between versions of
// CANN.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "inc/acl_api.h"
#include "inc/backend.h"
#include "inc/error.h"

namespace mindseg {
namespace {

// Out of memory, by the run time and by the graph engine.
constexpr int kOutOfMemory[] = {207001, 207018, 245000, 200000};

constexpr size_t kDefaultSlots = 2;

constexpr aclError kNullResult = -1;  // of a function that returns a pointer

class OutOfMemory : public UserError {
 public:
  using UserError::UserError;
};

bool IsOutOfMemory(aclError status) { return std::count(std::begin(kOutOfMemory), std::end(kOutOfMemory), status) > 0; }

std::string Describe(aclError status, const std::string& function) {
  const char* recent = aclGetRecentErrMsg();  // reading it also clears it
  std::string text = function + (status == kNullResult ? " failed" : " failed with " + std::to_string(status));
  if (recent != nullptr && recent[0] != '\0') text += ": " + std::string(recent);
  if (status == ACL_ERROR_COMPILING_STUB_MODE) {
    text += "; this is the toolkit's stub library for linking: source set_env.sh of the CANN toolkit first";
  }
  if (IsOutOfMemory(status)) {
    text +=
        function == "aclrtMallocHost"
            ? "; out of pinned host memory: use a smaller --batch or fewer --streams"
            : "; out of device memory: use a smaller --batch or fewer --streams, see npu-smi info for who else uses it";
  }
  return text;
}

void Check(aclError status, const char* function) {
  if (status == ACL_SUCCESS) return;
  const std::string text = "AscendCL: " + Describe(status, function);
  if (IsOutOfMemory(status)) throw OutOfMemory(text);
  throw UserError(text);
}

template <typename T>
T* CheckPointer(T* pointer, const char* function) {
  if (pointer == nullptr) throw UserError("AscendCL: " + Describe(kNullResult, function));
  return pointer;
}

// A destructor must not throw, so a failed release is only printed.
void Release(aclError status, const char* function) {
  if (status != ACL_SUCCESS) std::cerr << "note: AscendCL: " + OneLine(Describe(status, function)) + "\n";
}

#define ACL_CALL(function, ...) Check(function(__VA_ARGS__), #function)
#define ACL_MAKE(function, ...) CheckPointer(function(__VA_ARGS__), #function)
#define ACL_RELEASE(function, ...) Release(function(__VA_ARGS__), #function)

// Owns what a function of AscendCL made; releases it by another.
class Handle {
 public:
  Handle() = default;
  virtual ~Handle() = default;
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
};

// The process initialises AscendCL once; the last backend ends it.
class Library : public Handle {
 public:
  Library() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (users_ == 0) ACL_CALL(aclInit, nullptr);
    ++users_;
  }
  ~Library() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--users_ == 0) ACL_RELEASE(aclFinalize);
  }

 private:
  static inline std::mutex mutex_;
  static inline int users_ = 0;
};

class Device : public Handle {
 public:
  explicit Device(int id) : id_(id) {
    uint32_t count = 0;
    ACL_CALL(aclrtGetDeviceCount, &count);
    if (static_cast<uint32_t>(id) >= count) {
      throw UserError("--device_id " + std::to_string(id) + ": no such Ascend device, there are " +
                      std::to_string(count) + (count ? " (from 0)" : "") + "; see npu-smi info");
    }
    ACL_CALL(aclrtSetDevice, id_);
  }
  ~Device() override { ACL_RELEASE(aclrtResetDevice, id_); }

 private:
  int id_;
};

class Context : public Handle {
 public:
  explicit Context(int device_id) { ACL_CALL(aclrtCreateContext, &context_, device_id); }
  ~Context() override { ACL_RELEASE(aclrtDestroyContext, context_); }
  // Of the calling thread.
  void MakeCurrent() const { ACL_CALL(aclrtSetCurrentContext, context_); }
  void MakeCurrentForRelease() const { ACL_RELEASE(aclrtSetCurrentContext, context_); }

 private:
  aclrtContext context_ = nullptr;
};

class Stream : public Handle {
 public:
  Stream() { ACL_CALL(aclrtCreateStream, &stream_); }
  ~Stream() override { ACL_RELEASE(aclrtDestroyStream, stream_); }
  aclrtStream get() const { return stream_; }

 private:
  aclrtStream stream_ = nullptr;
};

// What is given to a stream in a scope. An error that ends the scope waits for it too: its memory may be freed then.
class Tasks : public Handle {
 public:
  explicit Tasks(const Stream& stream) : stream_(stream.get()) {}
  ~Tasks() override {
    if (stream_ != nullptr) ACL_RELEASE(aclrtSynchronizeStream, stream_);
  }
  void Finish() { ACL_CALL(aclrtSynchronizeStream, std::exchange(stream_, nullptr)); }

 private:
  aclrtStream stream_;
};

class LoadedModel : public Handle {
 public:
  explicit LoadedModel(const std::string& path) { ACL_CALL(aclmdlLoadFromFile, path.c_str(), &id_); }
  ~LoadedModel() override { ACL_RELEASE(aclmdlUnload, id_); }
  uint32_t id() const { return id_; }

 private:
  uint32_t id_ = 0;
};

class Description : public Handle {
 public:
  explicit Description(uint32_t model_id) : description_(ACL_MAKE(aclmdlCreateDesc)) {
    const aclError status = aclmdlGetDesc(description_, model_id);
    if (status == ACL_SUCCESS) return;
    const std::string text = Describe(status, "aclmdlGetDesc");
    ACL_RELEASE(aclmdlDestroyDesc, description_);  // the destructor does not run
    throw UserError("AscendCL: " + text);
  }
  ~Description() override { ACL_RELEASE(aclmdlDestroyDesc, description_); }
  aclmdlDesc* get() const { return description_; }

 private:
  aclmdlDesc* description_;
};

// Device memory with the data buffer that names it.
class DeviceBuffer : public Handle {
 public:
  explicit DeviceBuffer(size_t size) : size_(size) {
    ACL_CALL(aclrtMalloc, &data_, size, ACL_MEM_MALLOC_HUGE_FIRST);
    buffer_ = aclCreateDataBuffer(data_, size);
    if (buffer_ != nullptr) return;
    const std::string text = Describe(kNullResult, "aclCreateDataBuffer");
    ACL_RELEASE(aclrtFree, data_);  // the destructor does not run
    throw UserError("AscendCL: " + text);
  }
  ~DeviceBuffer() override {
    ACL_RELEASE(aclDestroyDataBuffer, buffer_);
    ACL_RELEASE(aclrtFree, data_);
  }
  void CopyFromHost(const uint8_t* source, size_t size, const Stream& stream) {
    ACL_CALL(aclrtMemcpyAsync, data_, size_, source, size, ACL_MEMCPY_HOST_TO_DEVICE, stream.get());
  }
  void CopyToHost(uint8_t* target, size_t size, const Stream& stream) const {
    ACL_CALL(aclrtMemcpyAsync, target, size, data_, size, ACL_MEMCPY_DEVICE_TO_HOST, stream.get());
  }
  aclDataBuffer* get() const { return buffer_; }

 private:
  void* data_ = nullptr;
  size_t size_;
  aclDataBuffer* buffer_ = nullptr;
};

class Dataset : public Handle {
 public:
  Dataset() : dataset_(ACL_MAKE(aclmdlCreateDataset)) {}
  ~Dataset() override { ACL_RELEASE(aclmdlDestroyDataset, dataset_); }
  DeviceBuffer& Add(size_t size) {
    buffers_.push_back(std::make_unique<DeviceBuffer>(size));
    ACL_CALL(aclmdlAddDatasetBuffer, dataset_, buffers_.back()->get());
    return *buffers_.back();
  }
  aclmdlDataset* get() const { return dataset_; }

 private:
  aclmdlDataset* dataset_;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;  // the data set does not own them
};

DType FromAcl(aclDataType type, const std::string& path) {
  switch (static_cast<int>(type)) {
    case ACL_FLOAT:
      return DType::kFloat32;
    case ACL_FLOAT16:
      return DType::kFloat16;
    case ACL_INT32:
      return DType::kInt32;
    case ACL_UINT8:
      return DType::kUint8;
    case ACL_INT64:
      return DType::kInt64;
    default:
      throw UserError(path + ": has a tensor of AscendCL type " + std::to_string(static_cast<int>(type)) +
                      ", which the runner does not know; convert with scripts/convert_om.sh");
  }
}

std::vector<int64_t> Sides(const aclmdlIODims& dims) {
  return {dims.dims, dims.dims + std::min<size_t>(dims.dimCount, ACL_MAX_DIM_CNT)};
}

// One loaded model with its streams and memory.
class Slot {
 public:
  // `confidence`: name of the second output; empty: there is none.
  Slot(const std::string& path, const std::string& confidence)
      : path_(path),
        model_(path),
        description_(model_.id()),
        gears_(ReadGears()),
        image_index_(FindImageInput(confidence.empty() ? 1 : 2)),
        result_index_(!confidence.empty() && output_name(0) == confidence ? 1 : 0) {}

  // Static batch: empty. Dynamic batch: what the model was converted for, ascending.
  const std::vector<int64_t>& gears() const { return gears_; }
  DType input_dtype() const { return FromAcl(aclmdlGetInputDataType(description_.get(), image_index_), path_); }
  DType output_dtype() const { return FromAcl(aclmdlGetOutputDataType(description_.get(), result_index_), path_); }
  DType confidence_dtype() const {
    return FromAcl(aclmdlGetOutputDataType(description_.get(), 1 - result_index_), path_);
  }
  std::string input_name() const {
    const char* name = aclmdlGetInputNameByIndex(description_.get(), image_index_);
    return name == nullptr ? "" : name;
  }
  std::vector<int64_t> input_shape() const {
    aclmdlIODims dims;
    ACL_CALL(aclmdlGetInputDims, description_.get(), image_index_, &dims);
    return Sides(dims);
  }
  std::vector<int64_t> output_shape() const { return Sides(OutputDims(result_index_)); }
  std::vector<int64_t> confidence_shape() const { return Sides(OutputDims(1 - result_index_)); }
  size_t input_bytes() const { return aclmdlGetInputSizeByIndex(description_.get(), image_index_); }
  size_t output_bytes() const { return aclmdlGetOutputSizeByIndex(description_.get(), result_index_); }

  void Allocate() {
    for (size_t i = 0; i < aclmdlGetNumInputs(description_.get()); ++i) {
      DeviceBuffer& buffer = inputs_.Add(aclmdlGetInputSizeByIndex(description_.get(), i));
      if (i == image_index_) image_ = &buffer;
    }
    std::vector<DeviceBuffer*> outputs;
    for (size_t i = 0; i < aclmdlGetNumOutputs(description_.get()); ++i) {
      outputs.push_back(&outputs_.Add(aclmdlGetOutputSizeByIndex(description_.get(), i)));
    }
    result_ = outputs[result_index_];
    if (outputs.size() == 2) confidence_ = outputs[1 - result_index_];
  }

  // For any thread: while the results of one are copied out, the image of the next is copied in. `confidence` may be
  // null.
  void Run(int64_t batch, const uint8_t* input, size_t input_size, uint8_t* output, size_t output_size,
           uint8_t* confidence, size_t confidence_size) {
    std::unique_lock<std::mutex> input_lock(input_mutex_);
    Tasks computing(compute_stream_);
    image_->CopyFromHost(input, input_size, compute_stream_);
    if (!gears_.empty()) {
      ACL_CALL(aclmdlSetDynamicBatchSize, model_.id(), inputs_.get(), batch_index_, static_cast<uint64_t>(batch));
    }
    const std::lock_guard<std::mutex> output_lock(output_mutex_);
    ACL_CALL(aclmdlExecuteAsync, model_.id(), inputs_.get(), outputs_.get(), compute_stream_.get());
    computing.Finish();
    input_lock.unlock();
    Tasks fetching(fetch_stream_);
    result_->CopyToHost(output, output_size, fetch_stream_);
    if (confidence != nullptr) confidence_->CopyToHost(confidence, confidence_size, fetch_stream_);
    fetching.Finish();
  }

 private:
  std::vector<int64_t> ReadGears() {
    aclmdlBatch batch;
    ACL_CALL(aclmdlGetDynamicBatch, description_.get(), &batch);
    if (batch.batchCount == 0) return {};
    ACL_CALL(aclmdlGetInputIndexByName, description_.get(), ACL_DYNAMIC_TENSOR_NAME, &batch_index_);
    std::vector<int64_t> gears(batch.batch, batch.batch + std::min<size_t>(batch.batchCount, ACL_MAX_BATCH_NUM));
    std::sort(gears.begin(), gears.end());
    return gears;
  }

  aclmdlIODims OutputDims(size_t index) const {
    aclmdlIODims dims;
    ACL_CALL(aclmdlGetOutputDims, description_.get(), index, &dims);
    return dims;
  }

  // ATC calls the outputs NODE:NUMBER:NAME, with the names of the ONNX file.
  std::string output_name(size_t index) const {
    const std::string name = OutputDims(index).name;
    return name.substr(name.rfind(':') + 1);
  }

  size_t FindImageInput(size_t wanted_outputs) const {
    const size_t inputs = aclmdlGetNumInputs(description_.get());
    const size_t outputs = aclmdlGetNumOutputs(description_.get());
    if (inputs != (gears_.empty() ? 1u : 2u) || outputs != wanted_outputs) {
      throw UserError(path_ + ": has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
                      " outputs, must have one image and " + (wanted_outputs == 1 ? "one result" : "two results") +
                      "; convert with scripts/convert_om.sh");
    }
    return gears_.empty() || batch_index_ == 1 ? 0 : 1;
  }

  std::string path_;
  Stream compute_stream_;  // copies in and executes
  Stream fetch_stream_;    // copies out
  LoadedModel model_;
  Description description_;
  size_t batch_index_ = 0;
  std::vector<int64_t> gears_;
  size_t image_index_;
  size_t result_index_;  // of the ids or logits among the outputs; the confidence is the other one
  Dataset inputs_;
  Dataset outputs_;
  DeviceBuffer* image_ = nullptr;
  DeviceBuffer* result_ = nullptr;
  DeviceBuffer* confidence_ = nullptr;
  std::mutex input_mutex_;   // from copying in until the execution is done
  std::mutex output_mutex_;  // from the execution until copying out is done
};

class AclBackend : public Backend {
 public:
  AclBackend(const Manifest& manifest, const BackendOptions& options)
      : file_(Choose(manifest, options)), device_(options.device_id), context_(options.device_id) {
    slots_.push_back(std::make_unique<Slot>(file_.path.string(), manifest.output.confidence));
    DescribeDevice();
    CheckAgainst(manifest);
    PickBatch(options);
    CheckBytes(manifest);
    slots_[0]->Allocate();
    AddSlots(static_cast<size_t>(options.streams), manifest.output.confidence);
    info_.slots = static_cast<int>(slots_.size());
    info_.ahead = info_.slots > 1 ? 1 : 0;  // one slot gives the latency of an inference alone
  }

  ~AclBackend() override {
    context_.MakeCurrentForRelease();  // whichever thread ends the backend
  }

  const BackendInfo& Info() const override { return info_; }

  std::unique_ptr<Buffer> MakeBuffer(size_t size) override {
    context_.MakeCurrent();
    void* memory = nullptr;
    ACL_CALL(aclrtMallocHost, &memory, size + Buffer::kAlignment);  // aligned by itself, but not on a board (RC mode)
    const auto address = reinterpret_cast<uintptr_t>(memory);
    const uintptr_t aligned = (address + Buffer::kAlignment - 1) / Buffer::kAlignment * Buffer::kAlignment;
    return std::make_unique<Buffer>(reinterpret_cast<uint8_t*>(aligned), size, [this, memory](uint8_t* /*aligned*/) {
      context_.MakeCurrentForRelease();
      ACL_RELEASE(aclrtFreeHost, memory);
    });
  }

  // Slots take turns whichever thread calls, so that each always has its next batch.
  void Infer(int /*call*/, int64_t count, const uint8_t* input, uint8_t* output, uint8_t* confidence) override {
    context_.MakeCurrent();
    const std::vector<int64_t>& gears = slots_[0]->gears();
    const auto gear = std::lower_bound(gears.begin(), gears.end(), count);  // the least one that is enough
    const int64_t batch = gear == gears.end() ? info_.batch : *gear;
    slots_[turn_++ % slots_.size()]->Run(batch, input, info_.input.BytesPerImage() * static_cast<size_t>(batch), output,
                                         output_bytes_per_image_ * static_cast<size_t>(count), confidence,
                                         elements_per_image_ * static_cast<size_t>(count));
  }

 private:
  static ModelFile Choose(const Manifest& manifest, const BackendOptions& options) {
    if (options.bf16) throw UserError("--precision bf16: for OpenVINO; an .om has the precision it was converted with");
    const ModelFile& file = manifest.FindModel("om", options.batch);
    CheckModelFile(manifest, file);
    return file;
  }

  // 0: the default, or as many as the device has memory for.
  void AddSlots(size_t wanted, const std::string& confidence) {
    while (slots_.size() < (wanted ? wanted : kDefaultSlots)) {
      try {
        auto slot = std::make_unique<Slot>(file_.path.string(), confidence);
        slot->Allocate();
        slots_.push_back(std::move(slot));
      } catch (const OutOfMemory& error) {
        if (wanted > 0) throw;
        std::cerr << "note: copies and inference take turns, for the model does not fit twice: " << error.what()
                  << "\n";
        return;
      }
    }
  }

  void DescribeDevice() {
    info_.backend = "acl";
    const char* soc = aclrtGetSocName();
    info_.device = soc == nullptr ? "Ascend" : soc;
    info_.simulated = info_.device.find("simulated") != std::string::npos;
    int32_t major = 0;
    int32_t minor = 0;
    int32_t patch = 0;
    ACL_CALL(aclrtGetVersion, &major, &minor, &patch);
    info_.version = "AscendCL " + std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch) +
                    (info_.simulated ? "-simulated" : "");
    info_.precision = "as converted";
    info_.model_file = file_.path.filename().string();
    info_.model_sha256 = file_.sha256;
  }

  // The tensors may differ from the manifest's in type (float16, wider ids) and by AIPP, not in size.
  void CheckAgainst(const Manifest& manifest) {
    const Slot& slot = *slots_[0];
    info_.input = manifest.input;
    info_.input.dtype = slot.input_dtype();
    info_.output_dtype = slot.output_dtype();
    if (info_.input.dtype == DType::kUint8 && manifest.input.dtype != DType::kUint8) {  // AIPP: pixels as they are
      info_.input.layout = Layout::kNhwc;
      info_.input.normalize_on_host = false;
    }
    const int64_t input_batch = slot.gears().empty() ? file_.batch : kDynamicBatch;
    const int64_t output_batch = slot.gears().empty() ? file_.batch : slot.gears().back();
    const std::vector<int64_t> input = info_.input.Shape(input_batch);
    const std::vector<int64_t> output = manifest.output.Shape(output_batch);
    if (OutputCount(manifest) == 2) {
      CheckConfidence(manifest, file_, output_batch, slot.confidence_dtype(), slot.confidence_shape());
    }
    if (slot.input_shape() == input && slot.output_shape() == output && slot.input_name() == manifest.input.name)
      return;
    throw UserError(manifest.path.string() + ": says '" + manifest.input.name + "' " + ShapeName(input) + " -> " +
                    ShapeName(output) + " but " + file_.path.string() + " has '" + slot.input_name() + "' " +
                    ShapeName(slot.input_shape()) + " -> " + ShapeName(slot.output_shape()) +
                    "; is this the manifest of another model?");
  }

  void PickBatch(const BackendOptions& options) {
    const std::vector<int64_t>& gears = slots_[0]->gears();
    if (gears.empty()) {
      info_.batch = file_.batch;
      return;
    }
    info_.batch = options.batch ? options.batch : gears.front();
    if (std::count(gears.begin(), gears.end(), info_.batch) == 0) {
      throw UserError("--batch " + std::to_string(info_.batch) + ": " + file_.path.string() + " was converted for " +
                      ShapeName(gears) + "; choose one of these or convert again");
    }
  }

  void CheckBytes(const Manifest& manifest) {
    const Slot& slot = *slots_[0];
    elements_per_image_ = manifest.output.ElementsPerImage();
    output_bytes_per_image_ = elements_per_image_ * ElementSize(info_.output_dtype);
    const auto largest = static_cast<size_t>(slot.gears().empty() ? info_.batch : slot.gears().back());
    if (slot.input_bytes() == info_.input.BytesPerImage() * largest &&
        slot.output_bytes() >= output_bytes_per_image_ * largest) {
      return;
    }
    throw UserError(file_.path.string() + ": takes " + std::to_string(slot.input_bytes()) + " bytes and gives " +
                    std::to_string(slot.output_bytes()) + ", " + manifest.path.string() + " says " +
                    std::to_string(info_.input.BytesPerImage() * largest) + " and " +
                    std::to_string(output_bytes_per_image_ * largest) + "; convert again with scripts/convert_om.sh");
  }

  BackendInfo info_;
  size_t elements_per_image_ = 0;
  size_t output_bytes_per_image_ = 0;
  ModelFile file_;
  Library library_;
  Device device_;
  Context context_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::atomic<size_t> turn_{0};
};

}  // namespace

std::unique_ptr<Backend> CreateAclBackend(const Manifest& manifest, const BackendOptions& options) {
  return std::make_unique<AclBackend>(manifest, options);
}

}  // namespace mindseg
