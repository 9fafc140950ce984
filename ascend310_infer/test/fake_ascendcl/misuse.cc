// A correct AscendCL program and its mutants: `misuse MODEL.om none` must end with 0 and print what the model gives;
// with the name of a mistake instead it must end with 86, or the simulation would not see that mistake in the backend.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "inc/acl_api.h"

namespace {

std::string g_mistake;

bool Is(const std::string& mistake) { return g_mistake == mistake; }

struct Program {
  aclrtContext context = nullptr;
  aclrtStream stream = nullptr;
  aclrtStream second_stream = nullptr;
  uint32_t model = 0;
  aclmdlDesc* description = nullptr;
  std::vector<void*> memory;
  std::vector<void*> pinned;
  std::vector<aclDataBuffer*> buffers;
  aclmdlDataset* input = nullptr;
  aclmdlDataset* output = nullptr;
};

void* Allocate(Program* p, size_t size) {
  void* data = nullptr;
  aclrtMalloc(&data, size, ACL_MEM_MALLOC_HUGE_FIRST);
  p->memory.push_back(data);
  return data;
}

void Add(Program* p, aclmdlDataset* dataset, void* data, size_t size) {
  p->buffers.push_back(aclCreateDataBuffer(data, size));
  aclmdlAddDatasetBuffer(dataset, p->buffers.back());
}

void Open(Program* p, const char* path) {
  if (!Is("no_init")) aclInit(nullptr);
  if (Is("init_twice")) aclInit(nullptr);
  if (!Is("no_device")) aclrtSetDevice(0);
  aclrtCreateContext(&p->context, 0);
  aclrtCreateStream(&p->stream);
  aclrtCreateStream(&p->second_stream);
  if (Is("thread_without_context")) std::thread([p] { Allocate(p, 16); }).join();
  aclmdlLoadFromFile(path, &p->model);
  p->description = aclmdlCreateDesc();
  if (!Is("no_description")) aclmdlGetDesc(p->description, p->model);
}

// Pinned memory for `size` bytes at a multiple of 64.
uint8_t* Pin(Program* p, size_t size) {
  constexpr uintptr_t kAlignment = 64;
  void* memory = nullptr;
  aclrtMallocHost(&memory, size + 2 * kAlignment);
  if (memory == nullptr) std::exit(1);  // convicted already
  p->pinned.push_back(memory);
  const auto aligned = (reinterpret_cast<uintptr_t>(memory) + kAlignment - 1) / kAlignment * kAlignment;
  return reinterpret_cast<uint8_t*>(aligned);
}

void CopyIn(Program* p, void* image, size_t bytes) {
  uint8_t* host = Pin(p, bytes);
  std::vector<float> values(bytes / sizeof(float));
  std::iota(values.begin(), values.end(), 0.0f);
  std::copy(values.begin(), values.end(), reinterpret_cast<float*>(host));
  const size_t copied = Is("copy_beyond_the_block") ? bytes + 4 : bytes;
  const aclrtMemcpyKind kind = Is("wrong_kind")    ? ACL_MEMCPY_DEVICE_TO_HOST
                               : Is("host_kind")   ? ACL_MEMCPY_HOST_TO_HOST
                               : Is("device_kind") ? ACL_MEMCPY_DEVICE_TO_DEVICE
                                                   : ACL_MEMCPY_HOST_TO_DEVICE;
  const void* source = Is("pageable_memory") ? static_cast<const void*>(values.data()) : host;
  if (Is("unaligned_copy")) source = host + 4;
  aclrtContext other = nullptr;
  if (Is("copy_in_another_context")) aclrtCreateContext(&other, 0);
  aclrtMemcpyAsync(image, copied, source, copied, kind, p->stream);
  if (other != nullptr) {
    aclrtDestroyContext(other);
    aclrtSetCurrentContext(p->context);
  }
  if (Is("write_what_is_copied")) host[0] = 1;
  if (Is("free_pinned_in_flight")) aclrtFreeHost(p->pinned.back());
  if (Is("host_touches_the_device")) static_cast<uint8_t*>(image)[0] = 1;
}

void Prepare(Program* p) {
  const size_t bytes = aclmdlGetInputSizeByIndex(p->description, 0);
  p->input = aclmdlCreateDataset();
  p->output = aclmdlCreateDataset();
  void* image = Allocate(p, bytes);
  CopyIn(p, image, bytes);
  Add(p, p->input, Is("host_memory_as_input") ? p->pinned[0] : image, Is("short_input") ? bytes - 4 : bytes);
  if (!Is("no_batch_buffer")) Add(p, p->input, Allocate(p, 8), 8);
  const size_t result_bytes = aclmdlGetOutputSizeByIndex(p->description, 0);
  if (!Is("no_output")) Add(p, p->output, Allocate(p, result_bytes), Is("short_output") ? 4 : result_bytes);
}

void Execute(Program* p) {
  if (!Is("batch_not_set"))
    aclmdlSetDynamicBatchSize(p->model, p->input, Is("wrong_index") ? 0 : 1, Is("no_gear") ? 3 : 2);
  aclrtContext other = nullptr;
  if (Is("other_context")) aclrtCreateContext(&other, 0);
  // Not behind the copy of the image, but beside it.
  const aclrtStream stream = Is("execute_beside_the_copy") ? p->second_stream : p->stream;
  aclmdlExecuteAsync(p->model, p->input, p->output, stream);
  if (Is("twice_at_once")) aclmdlExecuteAsync(p->model, p->input, p->output, stream);
  if (Is("batch_set_in_flight")) aclmdlSetDynamicBatchSize(p->model, p->input, 1, 1);
  if (other != nullptr) {
    aclrtDestroyContext(other);
    aclrtSetCurrentContext(p->context);
  }
  if (Is("free_in_flight")) aclrtFree(p->memory[0]);
  if (Is("data_set_ends_in_flight")) aclmdlDestroyDataset(p->input);
  if (Is("data_buffer_ends_in_flight")) aclDestroyDataBuffer(p->buffers[0]);
  if (Is("unload_in_flight")) aclmdlUnload(p->model);
}

// On a stream of its own, which has to wait for the execution.
void Fetch(Program* p) {
  const size_t bytes = aclmdlGetOutputSizeByIndex(p->description, 0);
  if (Is("close_in_flight")) return;
  if (!Is("fetch_in_flight")) aclrtSynchronizeStream(p->stream);
  uint8_t* result = Pin(p, bytes);
  if (!Is("no_output")) {
    aclrtMemcpyAsync(result, bytes, p->memory.back(), bytes, ACL_MEMCPY_DEVICE_TO_HOST, p->second_stream);
  }
  if (!Is("read_in_flight")) aclrtSynchronizeStream(p->second_stream);
  for (size_t i = 0; i < bytes; ++i) std::cout << int{result[i]} << ' ';
  std::cout << std::endl;
}

void Close(Program* p) {
  if (!Is("leak_data_set")) aclmdlDestroyDataset(p->input);
  aclmdlDestroyDataset(p->output);
  for (aclDataBuffer* buffer : p->buffers) {
    if (!Is("leak_buffer")) aclDestroyDataBuffer(buffer);
  }
  for (void* data : p->memory) {
    if (!Is("leak_memory")) aclrtFree(data);
    if (Is("free_twice")) aclrtFree(data);
  }
  for (void* data : p->pinned) {
    if (!Is("leak_pinned_memory")) aclrtFreeHost(data);
    if (Is("free_pinned_memory_twice")) aclrtFreeHost(data);
  }
  if (!Is("leak_description")) aclmdlDestroyDesc(p->description);
  if (Is("context_before_stream")) aclrtDestroyContext(p->context);
  if (!Is("leak_model")) aclmdlUnload(p->model);
  if (Is("unload_twice")) aclmdlUnload(p->model);
  if (!Is("leak_stream")) aclrtDestroyStream(p->stream);
  aclrtDestroyStream(p->second_stream);
  if (Is("device_before_context")) aclrtResetDevice(0);
  if (!Is("leak_context") && !Is("context_before_stream")) aclrtDestroyContext(p->context);
  if (!Is("leak_device") && !Is("device_before_context")) aclrtResetDevice(0);
  if (!Is("no_finalize")) aclFinalize();
  if (Is("finalize_twice")) aclFinalize();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  g_mistake = argv[2];
  Program program;
  Open(&program, argv[1]);
  Prepare(&program);
  Execute(&program);
  Fetch(&program);
  Close(&program);
  return 0;
}
