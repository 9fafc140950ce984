// A correct AscendCL program and its mutants: `misuse MODEL.om none` must end with 0 and print what the model gives;
// with the name of a mistake instead it must end with 86, or the simulation would not see that mistake in the backend.
#include <cstdint>
#include <cstring>
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
  uint32_t model = 0;
  aclmdlDesc* description = nullptr;
  std::vector<void*> memory;
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
  if (Is("thread_without_context")) std::thread([p] { Allocate(p, 16); }).join();
  aclmdlLoadFromFile(path, &p->model);
  p->description = aclmdlCreateDesc();
  if (!Is("no_description")) aclmdlGetDesc(p->description, p->model);
}

std::vector<float> Prepare(Program* p) {
  const size_t bytes = aclmdlGetInputSizeByIndex(p->description, 0);
  p->input = aclmdlCreateDataset();
  p->output = aclmdlCreateDataset();
  void* image = Allocate(p, bytes);
  std::vector<float> host(bytes / sizeof(float));
  std::iota(host.begin(), host.end(), 0.0f);
  const size_t copied = Is("copy_beyond_the_block") ? bytes + 4 : bytes;
  host.resize(copied / sizeof(float));
  const aclrtMemcpyKind kind = Is("wrong_kind")    ? ACL_MEMCPY_DEVICE_TO_HOST
                               : Is("host_kind")   ? ACL_MEMCPY_HOST_TO_HOST
                               : Is("device_kind") ? ACL_MEMCPY_DEVICE_TO_DEVICE
                                                   : ACL_MEMCPY_HOST_TO_DEVICE;
  aclrtMemcpy(image, copied, host.data(), copied, kind);
  Add(p, p->input, Is("host_memory_as_input") ? static_cast<void*>(host.data()) : image,
      Is("short_input") ? bytes - 4 : bytes);
  if (!Is("no_batch_buffer")) Add(p, p->input, Allocate(p, 8), 8);
  const size_t result_bytes = aclmdlGetOutputSizeByIndex(p->description, 0);
  if (!Is("no_output")) Add(p, p->output, Allocate(p, result_bytes), Is("short_output") ? 4 : result_bytes);
  return host;
}

void Execute(Program* p) {
  if (!Is("batch_not_set"))
    aclmdlSetDynamicBatchSize(p->model, p->input, Is("wrong_index") ? 0 : 1, Is("no_gear") ? 3 : 2);
  aclrtContext other = nullptr;
  if (Is("other_context")) aclrtCreateContext(&other, 0);
  aclmdlExecuteAsync(p->model, p->input, p->output, p->stream);
  if (Is("twice_at_once")) aclmdlExecuteAsync(p->model, p->input, p->output, p->stream);
  if (other != nullptr) {
    aclrtDestroyContext(other);
    aclrtSetCurrentContext(p->context);
  }
  if (Is("free_in_flight")) aclrtFree(p->memory[0]);
  if (!Is("copy_in_flight") && !Is("close_in_flight")) aclrtSynchronizeStream(p->stream);
  std::vector<uint8_t> result(aclmdlGetOutputSizeByIndex(p->description, 0));
  if (!Is("close_in_flight") && !Is("no_output")) {
    aclrtMemcpy(result.data(), result.size(), p->memory.back(), result.size(), ACL_MEMCPY_DEVICE_TO_HOST);
  }
  if (Is("copy_in_flight")) aclrtSynchronizeStream(p->stream);
  for (uint8_t id : result) std::cout << int{id} << ' ';
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
  if (!Is("leak_description")) aclmdlDestroyDesc(p->description);
  if (Is("context_before_stream")) aclrtDestroyContext(p->context);
  if (!Is("leak_model")) aclmdlUnload(p->model);
  if (Is("unload_twice")) aclmdlUnload(p->model);
  if (!Is("leak_stream")) aclrtDestroyStream(p->stream);
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
  Close(&program);
  return 0;
}
