// A SIMULATION of AscendCL for tests: it behaves as the published documentation says, on a machine without the device.
// Never installed, never part of the product.
//
// - An ".om" is a text file that names its ONNX twin and what ATC would have made of it (see om.cc). It runs on
//   OpenVINO.
// - Device memory lies at addresses that the host cannot touch; only aclrtMemcpyAsync reaches it, and it checks the
// kind
//   of copy, both ends' sizes and alignment, that the host's end is pinned, and that no other stream uses the memory.
//   (CANN 9 also copies from pageable memory, but waits for it; on the first 310 and 910 the result is undefined.)
// - Pinned memory is out of the host's reach while a copy into it is in flight, and cannot be written while it is read.
// - A stream does its tasks in order, side by side with other streams, on one engine for each direction of copying and
//   one for executing. Nothing is done before some thread waits in aclrtSynchronizeStream, so that what does not wait
//   finds nothing done.
// - A broken rule (order, context, size, double release, leak) is a VIOLATION: it is printed, the call fails with the
//   documented code, and the process ends with status 86 instead of its own. What can happen to a correct program (no
//   such device, out of memory, a bad model file) is only an error code.
//
// FAKE_ACL_DEVICES=n      devices (default 1)
// FAKE_ACL_MEMORY_MB=n    device memory (default 4096)
// FAKE_ACL_PINNED_MB=n    host memory that can be pinned (default 4096)
// FAKE_ACL_FAIL=f:n       the n-th call of function f fails with 500000
// FAKE_ACL_H2D_US=n       simulated microseconds of a copy to the device (default 0),
// FAKE_ACL_EXECUTE_US=n   of an execution,
// FAKE_ACL_D2H_US=n       of a copy back. Simulated time passes only while all threads of the process sleep: the
//                         program's own work takes none of it, on a fast machine or a busy one. aclFinalize prints it.
#ifndef ASCEND310_INFER_TEST_FAKE_ASCENDCL_FAKE_H_
#define ASCEND310_INFER_TEST_FAKE_ASCENDCL_FAKE_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "inc/acl_api.h"

namespace fake {

constexpr int kViolationExit = 86;

// Documented codes.
constexpr aclError kInvalidParam = 100000;
constexpr aclError kUninitialized = 100001;
constexpr aclError kRepeatInitialize = 100002;
constexpr aclError kInvalidModelId = 100011;
constexpr aclError kInputNotMatch = 100017;
constexpr aclError kOutputNotMatch = 100018;
constexpr aclError kModelNotDynamic = 100019;
constexpr aclError kRepeatFinalize = 100037;
constexpr aclError kInvalidDevice = 107001;
constexpr aclError kContextNull = 107002;
constexpr aclError kStreamContext = 107003;
constexpr aclError kModelPathInvalid = 145002;
constexpr aclError kModelDataInvalid = 145006;
constexpr aclError kBatchSizeInvalid = 145013;
constexpr aclError kMemoryAllocation = 207001;
constexpr aclError kInternalError = 500000;

struct Context {
  int32_t device = 0;
  bool is_default = false;
};

enum Engine { kCopyIn, kExecute, kCopyOut, kEngines };

struct Range {
  const void* begin = nullptr;
  size_t size = 0;
};

struct Task {
  Engine engine = kExecute;
  std::function<void()> work;
  std::vector<Range> uses;  // memory, data sets and data buffers
  uint32_t model_id = 0;    // 0: a copy
};

struct Stream {
  Context* context = nullptr;
  std::deque<Task> tasks;  // the first may be running
  size_t given = 0;        // tasks so far
  size_t done = 0;
  bool ending = false;
  std::thread worker;
};

struct PinnedBlock {
  size_t size = 0;
  void* pages = nullptr;
  size_t page_bytes = 0;
};

struct DataBuffer {
  void* data = nullptr;
  size_t size = 0;
};

struct Dataset {
  std::vector<DataBuffer*> buffers;
};

class OmModel;  // om.cc

struct Model {
  std::shared_ptr<OmModel> om;
  Context* context = nullptr;  // of loading
  size_t device_bytes = 0;
  int in_flight = 0;
};

struct Description {
  std::shared_ptr<OmModel> om;
};

// All that is alive; guarded by `mutex`.
struct State {
  std::recursive_mutex mutex;
  bool initialized = false;
  bool finalized = false;
  int violations = 0;
  std::map<int32_t, int> devices;                        // set, with their reference counts
  std::map<int32_t, std::unique_ptr<Context>> defaults;  // default contexts
  std::set<Context*> contexts;
  std::set<Stream*> streams;
  std::map<const uint8_t*, std::vector<uint8_t>> memory;  // device address -> content
  std::map<const uint8_t*, PinnedBlock> pinned;           // by host address
  size_t memory_used = 0;
  std::map<uint32_t, Model> models;
  uint32_t next_model_id = 1;
  std::set<const Description*> descriptions;
  std::set<const Dataset*> datasets;
  std::set<const DataBuffer*> buffers;
  std::map<std::string, int> calls;

  std::condition_variable_any changed;    // streams, engines, time
  std::deque<Stream*> engines[kEngines];  // whose first task wants or has the engine, in order
  int waiting = 0;                        // threads in aclrtSynchronizeStream
  int executions = 0;                     // done
  int64_t now_us = 0;                     // simulated time
  std::multiset<int64_t> alarms;          // when tasks that run now are done
  std::thread clock;                      // where some latency is not 0
  bool clock_ends = false;
};

State& TheState();
Context*& CurrentContext();  // of the calling thread

// Sets the thread's error text and returns `code`.
aclError Fail(aclError code, const std::string& text);
// The same for a broken rule.
aclError Violate(aclError code, const std::string& text);

// First in every function: counts the call, injects failures, refuses calls outside aclInit … aclFinalize.
// Returns 0 if the function may go on.
aclError Enter(const char* function);
// The same, where a current context is needed.
aclError EnterWithContext(const char* function);

int EnvironmentNumber(const char* name, int otherwise);

// The stream, or nullptr (and a violation in `status`) if it is none of the current context's.
Stream* FindStream(aclrtStream stream, const char* function, aclError* status);
void Give(Stream* stream, Task task);
// Whether a task in flight uses any of the bytes, on another stream than `except`.
bool InFlight(const void* begin, size_t size, const Stream* except = nullptr);
void StartClock();
void StopClock();  // and prints the simulated time

// Content of device memory, or nullptr if [address, address + size) does not lie within one allocation.
uint8_t* DeviceContent(const void* address, size_t size);
bool IsDeviceAddress(const void* address);
// The pinned block that [address, address + size) lies in, or nullptr.
const PinnedBlock* FindPinned(const void* address, size_t size);
bool TakeMemory(size_t size);  // false: the device is full
void GiveMemory(size_t size);

}  // namespace fake

#endif  // ASCEND310_INFER_TEST_FAKE_ASCENDCL_FAKE_H_
