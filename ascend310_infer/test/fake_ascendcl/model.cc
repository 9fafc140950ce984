// Models, their descriptions, data sets and execution.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "test/fake_ascendcl/fake.h"
#include "test/fake_ascendcl/om.h"

using fake::DataBuffer;
using fake::Dataset;
using fake::Description;
using fake::Enter;
using fake::EnterWithContext;
using fake::Fail;
using fake::Model;
using fake::OmModel;
using fake::State;
using fake::TheState;
using fake::Violate;
using Lock = std::lock_guard<std::recursive_mutex>;

namespace {

constexpr size_t kImage = 0;  // index of the image input; a dynamic model has its batch input behind it
constexpr size_t kBatch = 1;
constexpr size_t kBatchBytes = sizeof(int64_t);

template <typename Opaque, typename Known>
Known* Unwrap(Opaque* pointer) {
  return reinterpret_cast<Known*>(const_cast<std::remove_const_t<Opaque>*>(pointer));
}

Dataset* AsDataset(const aclmdlDataset* dataset) { return Unwrap<const aclmdlDataset, Dataset>(dataset); }

// The described model; nullptr (and a violation) for a bad pointer, an empty description, a bad index.
OmModel* Described(const aclmdlDesc* description, const char* function, size_t index, bool input) {
  const auto* known = Unwrap<const aclmdlDesc, Description>(description);
  if (TheState().descriptions.count(known) == 0 || !known->om) {
    Violate(fake::kInvalidParam, std::string(function) + ": no such description, or aclmdlGetDesc was not called");
    return nullptr;
  }
  const size_t inputs = known->om->gears().empty() ? 1 : 2;
  if (index >= (input ? inputs : known->om->output_count())) {
    Violate(fake::kInvalidParam, std::string(function) + ": index " + std::to_string(index));
    return nullptr;
  }
  return known->om.get();
}

void FillDims(const std::vector<int64_t>& shape, const std::string& name, aclmdlIODims* dims) {
  std::memset(dims, 0, sizeof(*dims));
  std::strncpy(dims->name, name.c_str(), sizeof(dims->name) - 1);
  dims->dimCount = shape.size();
  std::copy(shape.begin(), shape.end(), dims->dims);
}

Model* FindModel(uint32_t id, const char* function, aclError* status) {
  State& state = TheState();
  const auto model = state.models.find(id);
  if (model == state.models.end()) {
    *status = Violate(fake::kInvalidModelId, std::string(function) + ": no such model");
    return nullptr;
  }
  if (model->second.context != fake::CurrentContext()) {
    *status = Violate(fake::kInvalidParam, std::string(function) + ": in another context than aclmdlLoadFromFile");
    return nullptr;
  }
  return &model->second;
}

// Every buffer of `dataset` is device memory of at least the given size.
aclError CheckBuffers(const Dataset& dataset, const std::vector<size_t>& bytes, bool exact, aclError code,
                      const std::string& what) {
  State& state = TheState();
  if (state.datasets.count(&dataset) == 0) return Violate(code, what + ": no such data set");
  if (dataset.buffers.size() != bytes.size()) {
    return Violate(code, what + ": " + std::to_string(dataset.buffers.size()) + " buffers instead of " +
                             std::to_string(bytes.size()));
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    const DataBuffer* buffer = dataset.buffers[i];
    if (state.buffers.count(buffer) == 0) return Violate(code, what + ": a data buffer was destroyed");
    if (fake::DeviceContent(buffer->data, buffer->size) == nullptr) return Violate(code, what + ": not device memory");
    if (buffer->size < bytes[i] || (exact && buffer->size != bytes[i])) {
      return Violate(code,
                     what + ": " + std::to_string(buffer->size) + " bytes instead of " + std::to_string(bytes[i]));
    }
  }
  return ACL_SUCCESS;
}

// The batch of this execution, 0 if it was not set to one of the gears.
int64_t BatchOf(const OmModel& om, const Dataset& input) {
  if (om.gears().empty()) return om.InputShape()[0];
  int64_t batch = 0;
  std::memcpy(&batch, fake::DeviceContent(input.buffers[kBatch]->data, kBatchBytes), kBatchBytes);
  return std::count(om.gears().begin(), om.gears().end(), batch) ? batch : 0;
}

}  // namespace

extern "C" {

aclDataBuffer* aclCreateDataBuffer(void* data, size_t size) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (Enter("aclCreateDataBuffer") != ACL_SUCCESS) return nullptr;
  auto* buffer = new DataBuffer{data, size};
  state.buffers.insert(buffer);
  return reinterpret_cast<aclDataBuffer*>(buffer);
}

aclError aclDestroyDataBuffer(const aclDataBuffer* dataBuffer) {
  State& state = TheState();
  const Lock lock(state.mutex);
  const aclError status = Enter("aclDestroyDataBuffer");
  const auto* buffer = Unwrap<const aclDataBuffer, DataBuffer>(dataBuffer);
  if (fake::InFlight(buffer, 1))
    return Violate(fake::kInvalidParam, "aclDestroyDataBuffer: an execution in flight uses it");
  if (state.buffers.erase(buffer) == 0) return Violate(fake::kInvalidParam, "aclDestroyDataBuffer: no such buffer");
  delete buffer;
  return status;
}

aclmdlDataset* aclmdlCreateDataset() {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (Enter("aclmdlCreateDataset") != ACL_SUCCESS) return nullptr;
  auto* dataset = new Dataset;
  state.datasets.insert(dataset);
  return reinterpret_cast<aclmdlDataset*>(dataset);
}

aclError aclmdlDestroyDataset(const aclmdlDataset* dataset) {
  State& state = TheState();
  const Lock lock(state.mutex);
  const aclError status = Enter("aclmdlDestroyDataset");
  const Dataset* known = AsDataset(dataset);
  if (fake::InFlight(known, 1))
    return Violate(fake::kInvalidParam, "aclmdlDestroyDataset: an execution in flight uses it");
  if (state.datasets.erase(known) == 0) return Violate(fake::kInvalidParam, "aclmdlDestroyDataset: no such data set");
  delete known;
  return status;
}

aclError aclmdlAddDatasetBuffer(aclmdlDataset* dataset, aclDataBuffer* dataBuffer) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = Enter("aclmdlAddDatasetBuffer")) return status;
  auto* buffer = Unwrap<aclDataBuffer, DataBuffer>(dataBuffer);
  if (state.datasets.count(AsDataset(dataset)) == 0 || state.buffers.count(buffer) == 0) {
    return Violate(fake::kInvalidParam, "aclmdlAddDatasetBuffer: no such data set or buffer");
  }
  AsDataset(dataset)->buffers.push_back(buffer);
  return ACL_SUCCESS;
}

aclError aclmdlLoadFromFile(const char* modelPath, uint32_t* modelId) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = EnterWithContext("aclmdlLoadFromFile")) return status;
  if (!std::filesystem::exists(modelPath)) return Fail(fake::kModelPathInvalid, std::string(modelPath) + " not found");
  Model model;
  try {
    model.om = std::make_shared<OmModel>(modelPath);
  } catch (const std::exception& error) {
    return Fail(fake::kModelDataInvalid, std::string("load model failed: ") + error.what());
  }
  if (!fake::TakeMemory(model.om->file_bytes())) return Fail(fake::kMemoryAllocation, "no memory for the model");
  model.device_bytes = model.om->file_bytes();
  model.context = fake::CurrentContext();
  *modelId = state.next_model_id++;
  state.models[*modelId] = std::move(model);
  return ACL_SUCCESS;
}

aclError aclmdlUnload(uint32_t modelId) {
  State& state = TheState();
  const Lock lock(state.mutex);
  const aclError entered = EnterWithContext("aclmdlUnload");
  aclError status = ACL_SUCCESS;
  const Model* model = FindModel(modelId, "aclmdlUnload", &status);
  if (model == nullptr) return status;
  if (model->in_flight > 0) Violate(fake::kInvalidParam, "aclmdlUnload while the model runs");
  fake::GiveMemory(model->device_bytes);
  state.models.erase(modelId);
  return entered;
}

aclmdlDesc* aclmdlCreateDesc() {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (Enter("aclmdlCreateDesc") != ACL_SUCCESS) return nullptr;
  auto* description = new Description;
  state.descriptions.insert(description);
  return reinterpret_cast<aclmdlDesc*>(description);
}

aclError aclmdlDestroyDesc(aclmdlDesc* modelDesc) {
  State& state = TheState();
  const Lock lock(state.mutex);
  const aclError status = Enter("aclmdlDestroyDesc");
  const auto* description = Unwrap<aclmdlDesc, Description>(modelDesc);
  if (state.descriptions.erase(description) == 0) {
    return Violate(fake::kInvalidParam, "aclmdlDestroyDesc: no such description");
  }
  delete description;
  return status;
}

aclError aclmdlGetDesc(aclmdlDesc* modelDesc, uint32_t modelId) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = EnterWithContext("aclmdlGetDesc")) return status;
  auto* description = Unwrap<aclmdlDesc, Description>(modelDesc);
  if (state.descriptions.count(description) == 0) return Violate(fake::kInvalidParam, "aclmdlGetDesc: no description");
  const auto model = state.models.find(modelId);
  if (model == state.models.end()) return Violate(fake::kInvalidModelId, "aclmdlGetDesc: no such model");
  description->om = model->second.om;
  return ACL_SUCCESS;
}

size_t aclmdlGetNumInputs(aclmdlDesc* modelDesc) {
  const Lock lock(TheState().mutex);
  const OmModel* om = Described(modelDesc, "aclmdlGetNumInputs", 0, true);
  return om == nullptr ? 0 : om->gears().empty() ? 1 : 2;
}

size_t aclmdlGetNumOutputs(aclmdlDesc* modelDesc) {
  const Lock lock(TheState().mutex);
  const OmModel* om = Described(modelDesc, "aclmdlGetNumOutputs", 0, false);
  return om == nullptr ? 0 : om->output_count();
}

size_t aclmdlGetInputSizeByIndex(aclmdlDesc* modelDesc, size_t index) {
  const Lock lock(TheState().mutex);
  const OmModel* om = Described(modelDesc, "aclmdlGetInputSizeByIndex", index, true);
  if (om == nullptr) return 0;
  return index == kImage ? om->InputBytes() : kBatchBytes;
}

size_t aclmdlGetOutputSizeByIndex(aclmdlDesc* modelDesc, size_t index) {
  const Lock lock(TheState().mutex);
  const OmModel* om = Described(modelDesc, "aclmdlGetOutputSizeByIndex", index, false);
  return om == nullptr ? 0 : om->OutputBytes(index);
}

aclError aclmdlGetInputDims(const aclmdlDesc* modelDesc, size_t index, aclmdlIODims* dims) {
  const Lock lock(TheState().mutex);
  if (const aclError status = Enter("aclmdlGetInputDims")) return status;
  const OmModel* om = Described(modelDesc, "aclmdlGetInputDims", index, true);
  if (om == nullptr) return fake::kInvalidParam;
  if (index == kImage) {
    FillDims(om->InputShape(), om->input_name(), dims);
  } else {
    FillDims({1}, ACL_DYNAMIC_TENSOR_NAME, dims);
  }
  return ACL_SUCCESS;
}

aclError aclmdlGetOutputDims(const aclmdlDesc* modelDesc, size_t index, aclmdlIODims* dims) {
  const Lock lock(TheState().mutex);
  if (const aclError status = Enter("aclmdlGetOutputDims")) return status;
  const OmModel* om = Described(modelDesc, "aclmdlGetOutputDims", index, false);
  if (om == nullptr) return fake::kInvalidParam;
  FillDims(om->OutputShape(index), "Cast_9:0:" + om->output_name(index), dims);  // node : edge : name, as for ONNX
  return ACL_SUCCESS;
}

const char* aclmdlGetInputNameByIndex(const aclmdlDesc* modelDesc, size_t index) {
  const Lock lock(TheState().mutex);
  const OmModel* om = Described(modelDesc, "aclmdlGetInputNameByIndex", index, true);
  if (om == nullptr) return "";
  return index == kImage ? om->input_name().c_str() : ACL_DYNAMIC_TENSOR_NAME;
}

aclDataType aclmdlGetInputDataType(const aclmdlDesc* modelDesc, size_t index) {
  const Lock lock(TheState().mutex);
  const OmModel* om = Described(modelDesc, "aclmdlGetInputDataType", index, true);
  return om == nullptr ? ACL_FLOAT : index == kImage ? om->input_type() : ACL_INT64;
}

aclDataType aclmdlGetOutputDataType(const aclmdlDesc* modelDesc, size_t index) {
  const Lock lock(TheState().mutex);
  const OmModel* om = Described(modelDesc, "aclmdlGetOutputDataType", index, false);
  return om == nullptr ? ACL_FLOAT : om->output_type(index);
}

aclError aclmdlGetInputIndexByName(const aclmdlDesc* modelDesc, const char* name, size_t* index) {
  const Lock lock(TheState().mutex);
  if (const aclError status = Enter("aclmdlGetInputIndexByName")) return status;
  const OmModel* om = Described(modelDesc, "aclmdlGetInputIndexByName", 0, true);
  if (om == nullptr) return fake::kInvalidParam;
  const bool batch = !om->gears().empty() && std::strcmp(name, ACL_DYNAMIC_TENSOR_NAME) == 0;
  if (!batch && om->input_name() != name) return Fail(fake::kInvalidParam, std::string("no input ") + name);
  *index = batch ? kBatch : kImage;
  return ACL_SUCCESS;
}

aclError aclmdlGetDynamicBatch(const aclmdlDesc* modelDesc, aclmdlBatch* batch) {
  const Lock lock(TheState().mutex);
  if (const aclError status = Enter("aclmdlGetDynamicBatch")) return status;
  const OmModel* om = Described(modelDesc, "aclmdlGetDynamicBatch", 0, true);
  if (om == nullptr) return fake::kInvalidParam;
  batch->batchCount = om->gears().size();
  std::copy(om->gears().begin(), om->gears().end(), batch->batch);
  return ACL_SUCCESS;
}

aclError aclmdlSetDynamicBatchSize(uint32_t modelId, aclmdlDataset* dataset, size_t index, uint64_t batchSize) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = EnterWithContext("aclmdlSetDynamicBatchSize")) return status;
  aclError status = ACL_SUCCESS;
  const Model* model = FindModel(modelId, "aclmdlSetDynamicBatchSize", &status);
  if (model == nullptr) return status;
  const std::vector<int64_t>& gears = model->om->gears();
  if (gears.empty()) return Violate(fake::kModelNotDynamic, "aclmdlSetDynamicBatchSize: the batch is static");
  const Dataset* known = AsDataset(dataset);
  if (state.datasets.count(known) == 0 || index != kBatch || known->buffers.size() <= index) {
    return Violate(fake::kInvalidParam, "aclmdlSetDynamicBatchSize: no such data set, or not the batch's input");
  }
  if (std::count(gears.begin(), gears.end(), static_cast<int64_t>(batchSize)) == 0) {
    return Violate(fake::kBatchSizeInvalid, "aclmdlSetDynamicBatchSize: " + std::to_string(batchSize) + " is no gear");
  }
  uint8_t* content = fake::DeviceContent(known->buffers[index]->data, kBatchBytes);
  if (content == nullptr) return Violate(fake::kInvalidParam, "aclmdlSetDynamicBatchSize: not device memory");
  if (fake::InFlight(known->buffers[index]->data, kBatchBytes)) {
    return Violate(fake::kInvalidParam, "aclmdlSetDynamicBatchSize while the model runs");
  }
  const auto batch = static_cast<int64_t>(batchSize);
  std::memcpy(content, &batch, kBatchBytes);
  return ACL_SUCCESS;
}

aclError aclmdlExecuteAsync(uint32_t modelId, const aclmdlDataset* input, aclmdlDataset* output, aclrtStream stream) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = EnterWithContext("aclmdlExecuteAsync")) return status;
  aclError status = ACL_SUCCESS;
  Model* model = FindModel(modelId, "aclmdlExecuteAsync", &status);
  if (model == nullptr) return status;
  fake::Stream* on = fake::FindStream(stream, "aclmdlExecuteAsync", &status);
  if (on == nullptr) return status;
  if (model->in_flight > 0) return Violate(fake::kInvalidParam, "aclmdlExecuteAsync: the model runs already");
  std::vector<size_t> bytes = {model->om->InputBytes()};
  if (!model->om->gears().empty()) bytes.push_back(kBatchBytes);
  if ((status = CheckBuffers(*AsDataset(input), bytes, true, fake::kInputNotMatch, "input"))) return status;
  std::vector<size_t> output_bytes;
  for (size_t i = 0; i < model->om->output_count(); ++i) output_bytes.push_back(model->om->OutputBytes(i));
  if ((status = CheckBuffers(*AsDataset(output), output_bytes, false, fake::kOutputNotMatch, "output"))) {
    return status;
  }
  const int64_t batch = BatchOf(*model->om, *AsDataset(input));
  if (batch == 0) return Violate(fake::kBatchSizeInvalid, "aclmdlExecuteAsync: the batch was not set");
  fake::Task task{fake::kExecute, nullptr, {{input, 1}, {output, 1}}, modelId};
  for (const aclmdlDataset* dataset : {input, static_cast<const aclmdlDataset*>(output)}) {
    for (const DataBuffer* buffer : AsDataset(dataset)->buffers) {
      if (fake::InFlight(buffer->data, buffer->size, on)) {
        return Violate(fake::kInvalidParam, "aclmdlExecuteAsync: another stream uses the memory");
      }
      task.uses.push_back({buffer, 1});
      task.uses.push_back({buffer->data, buffer->size});
    }
  }
  const uint8_t* from = fake::DeviceContent(AsDataset(input)->buffers[kImage]->data, 1);
  std::vector<uint8_t*> to;
  for (const DataBuffer* buffer : AsDataset(output)->buffers) to.push_back(fake::DeviceContent(buffer->data, 1));
  task.work = [om = model->om, batch, from, to] { om->Run(batch, from, to); };
  fake::Give(on, std::move(task));
  ++model->in_flight;
  return ACL_SUCCESS;
}

}  // extern "C"
