// Initialisation, devices, contexts, streams and memory.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <iostream>

#include "test/fake_ascendcl/fake.h"

namespace fake {
namespace {

thread_local std::string t_error;
thread_local std::string t_returned;
thread_local Context* t_context = nullptr;

// Runs when the process ends, however the program liked it.
void Judge() {
  State& state = TheState();
  if (state.initialized) Violate(kUninitialized, "aclFinalize was not called before the process ended");
  if (state.violations > 0) {
    std::cerr << "SIMULATED AscendCL: " << state.violations << " violation(s)" << std::endl;
    _exit(kViolationExit);
  }
}

template <typename Things>
void ReportLeak(const Things& things, const std::string& what) {
  if (!things.empty()) Violate(kInvalidParam, "leak: " + std::to_string(things.size()) + " " + what);
}

bool StreamUses(const Stream& stream, const uint8_t* begin, size_t size) {
  for (const Task& task : stream.pending) {
    for (const void* memory : task.memory) {
      const auto* address = static_cast<const uint8_t*>(memory);
      if (address >= begin && address < begin + size) return true;
    }
  }
  return false;
}

bool InFlight(const void* address) {
  State& state = TheState();
  auto block = state.memory.upper_bound(static_cast<const uint8_t*>(address));
  if (block == state.memory.begin()) return false;
  --block;
  for (const Stream* stream : state.streams) {
    if (StreamUses(*stream, block->first, block->second.size())) return true;
  }
  return false;
}

// Whether [address, address + size) is device memory as `on_device` says; explains itself if not.
aclError CheckEnd(const void* address, size_t size, bool on_device, const std::string& end) {
  if (address == nullptr) return Violate(kInvalidParam, "aclrtMemcpy: " + end + " is null");
  if (IsDeviceAddress(address) != on_device) {
    return Violate(kInvalidParam, "aclrtMemcpy: " + end + " is " + (on_device ? "host" : "device") +
                                      " memory, which the kind of copy denies");
  }
  if (!on_device) return ACL_SUCCESS;
  if (DeviceContent(address, size) == nullptr) {
    return Violate(kInvalidParam, "aclrtMemcpy: " + end + ": " + std::to_string(size) + " bytes are not in one block");
  }
  if (InFlight(address)) return Violate(kInvalidParam, "aclrtMemcpy: " + end + " is used by an execution in flight");
  return ACL_SUCCESS;
}

}  // namespace

State& TheState() {
  static State* state = [] {
    std::atexit(Judge);
    return new State;  // lives on until the process has been judged
  }();
  return *state;
}

Context*& CurrentContext() { return t_context; }

aclError Fail(aclError code, const std::string& text) {
  t_error = "SIMULATED: " + text;
  return code;
}

aclError Violate(aclError code, const std::string& text) {
  ++TheState().violations;
  std::cerr << "SIMULATED AscendCL: VIOLATION: " + text + "\n";
  return Fail(code, text);
}

int EnvironmentNumber(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

aclError Enter(const char* function) {
  State& state = TheState();
  const int call = ++state.calls[function];
  const char* requested = std::getenv("FAKE_ACL_FAIL");
  if (requested != nullptr && requested == std::string(function) + ":" + std::to_string(call)) {
    return Fail(kInternalError, std::string("injected failure of ") + function);
  }
  if (!state.initialized)
    return Violate(kUninitialized, std::string(function) + " called outside aclInit … aclFinalize");
  return ACL_SUCCESS;
}

aclError EnterWithContext(const char* function) {
  if (const aclError status = Enter(function)) return status;
  State& state = TheState();
  Context* context = CurrentContext();
  bool alive = state.contexts.count(context) > 0;
  for (const auto& [device, other] : state.defaults) alive = alive || other.get() == context;
  if (context == nullptr || !alive) {
    return Violate(kContextNull, std::string(function) + ": the thread has no (living) current context");
  }
  return ACL_SUCCESS;
}

uint8_t* DeviceContent(const void* address, size_t size) {
  State& state = TheState();
  const auto* requested = static_cast<const uint8_t*>(address);
  auto block = state.memory.upper_bound(requested);
  if (block == state.memory.begin()) return nullptr;
  --block;
  const size_t offset = static_cast<size_t>(requested - block->first);
  if (offset > block->second.size() || size > block->second.size() - offset) return nullptr;
  return block->second.data() + offset;
}

bool IsDeviceAddress(const void* address) { return DeviceContent(address, 1) != nullptr; }

bool TakeMemory(size_t size) {
  State& state = TheState();
  const size_t limit = static_cast<size_t>(EnvironmentNumber("FAKE_ACL_MEMORY_MB", 4096)) << 20;
  if (size > limit || state.memory_used > limit - size) return false;
  state.memory_used += size;
  return true;
}

void GiveMemory(size_t size) { TheState().memory_used -= size; }

}  // namespace fake

using fake::Context;
using fake::Enter;
using fake::EnterWithContext;
using fake::Fail;
using fake::State;
using fake::Stream;
using fake::TheState;
using fake::Violate;
using Lock = std::lock_guard<std::recursive_mutex>;

extern "C" {

aclError aclInit(const char* /*configPath*/) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (state.initialized) return Violate(fake::kRepeatInitialize, "aclInit called twice");
  state.initialized = true;
  const aclError status = Enter("aclInit");
  if (status != ACL_SUCCESS) state.initialized = false;
  return status;
}

aclError aclFinalize() {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (state.finalized && !state.initialized) return Violate(fake::kRepeatFinalize, "aclFinalize called twice");
  const aclError status = Enter("aclFinalize");
  fake::ReportLeak(state.models, "loaded model(s)");
  fake::ReportLeak(state.descriptions, "model description(s)");
  fake::ReportLeak(state.datasets, "data set(s)");
  fake::ReportLeak(state.buffers, "data buffer(s)");
  fake::ReportLeak(state.memory, "block(s) of device memory");
  fake::ReportLeak(state.streams, "stream(s)");
  fake::ReportLeak(state.contexts, "context(s)");
  fake::ReportLeak(state.devices, "device(s) not reset");
  state.initialized = false;
  state.finalized = true;
  return status;
}

const char* aclGetRecentErrMsg() {
  fake::t_returned.swap(fake::t_error);
  fake::t_error.clear();
  return fake::t_returned.c_str();
}

const char* aclrtGetSocName() { return "Ascend310P3-simulated"; }

// No real one has this version.
aclError aclrtGetVersion(int32_t* majorVersion, int32_t* minorVersion, int32_t* patchVersion) {
  const Lock lock(TheState().mutex);
  *majorVersion = *minorVersion = *patchVersion = 0;
  return Enter("aclrtGetVersion");
}

aclError aclrtGetDeviceCount(uint32_t* count) {
  const Lock lock(TheState().mutex);
  *count = static_cast<uint32_t>(fake::EnvironmentNumber("FAKE_ACL_DEVICES", 1));
  return Enter("aclrtGetDeviceCount");
}

aclError aclrtSetDevice(int32_t deviceId) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = Enter("aclrtSetDevice")) return status;
  if (deviceId < 0 || deviceId >= fake::EnvironmentNumber("FAKE_ACL_DEVICES", 1)) {
    return Fail(fake::kInvalidDevice, "no device " + std::to_string(deviceId));
  }
  ++state.devices[deviceId];
  std::unique_ptr<Context>& context = state.defaults[deviceId];
  if (!context) context = std::make_unique<Context>(Context{deviceId, true});
  fake::CurrentContext() = context.get();
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t deviceId) {
  State& state = TheState();
  const Lock lock(state.mutex);
  const aclError status = Enter("aclrtResetDevice");
  const auto device = state.devices.find(deviceId);
  if (device == state.devices.end()) return Violate(fake::kInvalidDevice, "aclrtResetDevice without aclrtSetDevice");
  if (--device->second > 0) return status;
  for (const Stream* stream : state.streams) {
    if (stream->context->device == deviceId) Violate(fake::kInvalidParam, "aclrtResetDevice before aclrtDestroyStream");
  }
  for (const Context* context : state.contexts) {
    if (context->device == deviceId) Violate(fake::kInvalidParam, "aclrtResetDevice before aclrtDestroyContext");
  }
  state.devices.erase(device);
  state.defaults.erase(deviceId);
  return status;
}

aclError aclrtCreateContext(aclrtContext* context, int32_t deviceId) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = Enter("aclrtCreateContext")) return status;
  if (state.devices.count(deviceId) == 0)
    return Violate(fake::kInvalidDevice, "aclrtCreateContext before aclrtSetDevice");
  auto* made = new Context{deviceId, false};
  state.contexts.insert(made);
  fake::CurrentContext() = made;
  *context = made;
  return ACL_SUCCESS;
}

aclError aclrtDestroyContext(aclrtContext context) {
  State& state = TheState();
  const Lock lock(state.mutex);
  const aclError status = Enter("aclrtDestroyContext");
  auto* known = static_cast<Context*>(context);
  if (state.contexts.count(known) == 0) return Violate(fake::kInvalidParam, "aclrtDestroyContext: no such context");
  // What is still in use is kept, because its users name it when they are judged.
  for (const Stream* stream : state.streams) {
    if (stream->context == known) {
      return Violate(fake::kInvalidParam, "aclrtDestroyContext before aclrtDestroyStream");
    }
  }
  for (const auto& [id, model] : state.models) {
    if (model.context == known) return Violate(fake::kInvalidParam, "aclrtDestroyContext before aclmdlUnload");
  }
  state.contexts.erase(known);
  delete known;
  return status;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = Enter("aclrtSetCurrentContext")) return status;
  if (state.contexts.count(static_cast<Context*>(context)) == 0) {
    return Violate(fake::kInvalidParam, "aclrtSetCurrentContext: no such context");
  }
  fake::CurrentContext() = static_cast<Context*>(context);
  return ACL_SUCCESS;
}

aclError aclrtCreateStream(aclrtStream* stream) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = EnterWithContext("aclrtCreateStream")) return status;
  auto* made = new Stream{fake::CurrentContext(), {}};
  state.streams.insert(made);
  *stream = made;
  return ACL_SUCCESS;
}

aclError aclrtDestroyStream(aclrtStream stream) {
  State& state = TheState();
  const Lock lock(state.mutex);
  const aclError status = EnterWithContext("aclrtDestroyStream");
  auto* known = static_cast<Stream*>(stream);
  if (state.streams.erase(known) == 0) return Violate(fake::kInvalidParam, "aclrtDestroyStream: no such stream");
  if (!known->pending.empty()) Violate(fake::kInvalidParam, "aclrtDestroyStream with work in flight");
  delete known;
  return status;
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
  State& state = TheState();
  std::vector<fake::Task> tasks;
  {
    const Lock lock(state.mutex);
    if (const aclError status = EnterWithContext("aclrtSynchronizeStream")) {
      if (auto* known = static_cast<Stream*>(stream); state.streams.count(known) > 0) {
        for (const fake::Task& task : known->pending) --state.models[task.model_id].in_flight;
        known->pending.clear();  // a failed stream has nothing in flight any more
      }
      return status;
    }
    auto* known = static_cast<Stream*>(stream);
    if (state.streams.count(known) == 0) return Violate(fake::kInvalidParam, "aclrtSynchronizeStream: no such stream");
    if (known->context != fake::CurrentContext()) {
      return Violate(fake::kStreamContext, "aclrtSynchronizeStream: stream of another context");
    }
    tasks = known->pending;
  }
  for (const fake::Task& task : tasks) task.work();  // unlocked: streams run side by side
  const Lock lock(state.mutex);
  for (const fake::Task& task : tasks) --state.models[task.model_id].in_flight;
  static_cast<Stream*>(stream)->pending.clear();
  return ACL_SUCCESS;
}

aclError aclrtMalloc(void** devPtr, size_t size, aclrtMemMallocPolicy /*policy*/) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = EnterWithContext("aclrtMalloc")) return status;
  if (size == 0) return Violate(fake::kInvalidParam, "aclrtMalloc of 0 bytes");
  if (!fake::TakeMemory(size)) return Fail(fake::kMemoryAllocation, "no memory for " + std::to_string(size) + " bytes");
  // The address is real but forbidden: a host that touches device memory crashes at once.
  void* address = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return Fail(fake::kMemoryAllocation, "mmap");
  // 0xA5: memory of a device is not zero
  state.memory[static_cast<const uint8_t*>(address)] = std::vector<uint8_t>(size, 0xA5);
  *devPtr = address;
  return ACL_SUCCESS;
}

aclError aclrtFree(void* devPtr) {
  State& state = TheState();
  const Lock lock(state.mutex);
  const aclError status = EnterWithContext("aclrtFree");
  const auto block = state.memory.find(static_cast<const uint8_t*>(devPtr));
  if (block == state.memory.end()) return Violate(fake::kInvalidParam, "aclrtFree of what aclrtMalloc did not give");
  if (fake::InFlight(devPtr)) {  // kept, because the execution will still read or write it
    return Violate(fake::kInvalidParam, "aclrtFree of memory that an execution in flight uses");
  }
  fake::GiveMemory(block->second.size());
  munmap(devPtr, block->second.size());
  state.memory.erase(block);
  return status;
}

aclError aclrtMemcpy(void* dst, size_t destMax, const void* src, size_t count, aclrtMemcpyKind kind) {
  const Lock lock(TheState().mutex);
  if (const aclError status = EnterWithContext("aclrtMemcpy")) return status;
  if (count == 0 || destMax < count) return Violate(fake::kInvalidParam, "aclrtMemcpy: count is 0 or above destMax");
  const bool to_device = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  const bool from_device = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (const aclError status = fake::CheckEnd(dst, destMax, to_device, "destination")) return status;
  if (const aclError status = fake::CheckEnd(src, count, from_device, "source")) return status;
  std::memcpy(to_device ? fake::DeviceContent(dst, count) : dst, from_device ? fake::DeviceContent(src, count) : src,
              count);
  return ACL_SUCCESS;
}

}  // extern "C"
