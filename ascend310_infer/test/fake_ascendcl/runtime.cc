// Initialisation, devices, contexts and memory.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <iostream>

#include "test/fake_ascendcl/fake.h"

namespace fake {
namespace {

thread_local std::string t_error;
thread_local std::string t_returned;
thread_local Context* t_context = nullptr;

void Convict(const std::string& text) {
  ++TheState().violations;
  std::cerr << "SIMULATED AscendCL: VIOLATION: " + text + "\n";
}

// Runs when the process ends, however the program liked it; this thread's error text is gone by then.
void Judge() {
  State& state = TheState();
  if (state.initialized) Convict("aclFinalize was not called before the process ended");
  if (state.violations > 0) {
    std::cerr << "SIMULATED AscendCL: " << state.violations << " violation(s)" << std::endl;
    _exit(kViolationExit);
  }
}

template <typename Things>
void ReportLeak(const Things& things, const std::string& what) {
  if (!things.empty()) Violate(kInvalidParam, "leak: " + std::to_string(things.size()) + " " + what);
}

struct sigaction g_earlier_fault_handler;

// The host touched memory that is the device's; other faults go to whoever handled them before.
void OnFault(int number, siginfo_t* info, void* /*context*/) {
  if (!IsDeviceAddress(info->si_addr) && FindPinned(info->si_addr, 1) == nullptr) {
    sigaction(number, &g_earlier_fault_handler, nullptr);
    return;
  }
  constexpr char kText[] =
      "SIMULATED AscendCL: VIOLATION: the host touched memory of the device or of a copy in flight\n";
  if (write(STDERR_FILENO, kText, sizeof(kText) - 1) < 0) _exit(kViolationExit + 1);
  _exit(kViolationExit);
}

void CatchFaults() {
  static const int caught = [] {
    struct sigaction action{};
    action.sa_sigaction = OnFault;
    action.sa_flags = SA_SIGINFO;
    return sigaction(SIGSEGV, &action, &g_earlier_fault_handler);
  }();
  if (caught != 0) Violate(kInternalError, "cannot catch faults");
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
  Convict(text);
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

const PinnedBlock* FindPinned(const void* address, size_t size) {
  State& state = TheState();
  const auto* requested = static_cast<const uint8_t*>(address);
  auto block = state.pinned.upper_bound(requested);
  if (block == state.pinned.begin()) return nullptr;
  --block;
  const auto offset = static_cast<size_t>(requested - block->first);
  if (offset > block->second.size || size > block->second.size - offset) return nullptr;
  return &block->second;
}

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
  if (status != ACL_SUCCESS) {
    state.initialized = false;
    return status;
  }
  fake::CatchFaults();
  fake::StartClock();
  return ACL_SUCCESS;
}

aclError aclFinalize() {
  State& state = TheState();
  fake::StopClock();
  const Lock lock(state.mutex);
  if (state.finalized && !state.initialized) return Violate(fake::kRepeatFinalize, "aclFinalize called twice");
  const aclError status = Enter("aclFinalize");
  fake::ReportLeak(state.models, "loaded model(s)");
  fake::ReportLeak(state.descriptions, "model description(s)");
  fake::ReportLeak(state.datasets, "data set(s)");
  fake::ReportLeak(state.buffers, "data buffer(s)");
  fake::ReportLeak(state.memory, "block(s) of device memory");
  fake::ReportLeak(state.pinned, "block(s) of pinned memory");
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
  if (fake::InFlight(devPtr, block->second.size())) {  // kept, because it will still be read or written
    return Violate(fake::kInvalidParam, "aclrtFree of memory that a task in flight uses");
  }
  fake::GiveMemory(block->second.size());
  munmap(devPtr, block->second.size());
  state.memory.erase(block);
  return status;
}

aclError aclrtMallocHost(void** hostPtr, size_t size) {
  State& state = TheState();
  const Lock lock(state.mutex);
  if (const aclError status = EnterWithContext("aclrtMallocHost")) return status;
  if (size == 0) return Violate(fake::kInvalidParam, "aclrtMallocHost of 0 bytes");
  size_t pinned = size;
  for (const auto& [address, block] : state.pinned) pinned += block.size;
  if (pinned > static_cast<size_t>(fake::EnvironmentNumber("FAKE_ACL_PINNED_MB", 4096)) << 20) {
    return Fail(fake::kMemoryAllocation, "no pinned memory for " + std::to_string(size) + " bytes");
  }
  // On a board (RC mode) nobody promises that the address is a multiple of 64; pages of its own, to be protected.
  constexpr size_t kOffset = 32;
  fake::PinnedBlock block{size, nullptr, size + kOffset};
  block.pages = mmap(nullptr, block.page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block.pages == MAP_FAILED) return Fail(fake::kMemoryAllocation, "mmap");
  uint8_t* address = static_cast<uint8_t*>(block.pages) + kOffset;
  std::fill(address, address + size, uint8_t{0xA5});  // nor is it zero
  state.pinned[address] = block;
  *hostPtr = address;
  return ACL_SUCCESS;
}

aclError aclrtFreeHost(void* hostPtr) {
  State& state = TheState();
  const Lock lock(state.mutex);
  const aclError status = EnterWithContext("aclrtFreeHost");
  const auto block = state.pinned.find(static_cast<const uint8_t*>(hostPtr));
  if (block == state.pinned.end()) {
    return Violate(fake::kInvalidParam, "aclrtFreeHost of what aclrtMallocHost did not give");
  }
  if (fake::InFlight(hostPtr, block->second.size)) {
    return Violate(fake::kInvalidParam, "aclrtFreeHost of memory that a copy in flight uses");
  }
  munmap(block->second.pages, block->second.page_bytes);
  state.pinned.erase(block);
  return status;
}

}  // extern "C"
