// Streams, the engines that do their tasks, copies, and simulated time.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "test/fake_ascendcl/fake.h"

namespace fake {
namespace {

using UniqueLock = std::unique_lock<std::recursive_mutex>;

constexpr size_t kAlignment = 64;  // of both ends of a copy

int LatencyUs(int engine) {
  constexpr const char* kNames[kEngines] = {"FAKE_ACL_H2D_US", "FAKE_ACL_EXECUTE_US", "FAKE_ACL_D2H_US"};
  return EnvironmentNumber(kNames[engine], 0);
}

// The other threads with how often each has run; empty if one of them runs or wants to.
std::string SleepingThreads() {
  std::string threads;
  const std::string own = std::to_string(syscall(SYS_gettid));
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    if (thread.path().filename() == own) continue;
    std::ifstream status(thread.path() / "status");
    for (std::string line; std::getline(status, line);) {
      if (line.rfind("State:", 0) == 0 && line.find("(sleeping)") == std::string::npos) return "";
      if (line.find("ctxt_switches") != std::string::npos) threads += thread.path().string() + line + "\n";
    }
  }
  return threads;
}

// Lets time jump to the next alarm whenever no thread can do anything before it: between two looks that find the same
// threads asleep, none of which ran meanwhile, all slept at once.
void RunClock() {
  State& state = TheState();
  for (;;) {
    {
      UniqueLock lock(state.mutex);
      state.changed.wait(lock, [&] { return state.clock_ends || (state.waiting > 0 && !state.alarms.empty()); });
      if (state.clock_ends) return;
    }
    const std::string before = SleepingThreads();
    if (before.empty() || SleepingThreads() != before) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      continue;
    }
    const UniqueLock lock(state.mutex);
    if (!state.alarms.empty()) state.now_us = *state.alarms.begin();
    state.changed.notify_all();
  }
}

// Of an execution that is over, or never will be.
void LeaveModel(const Task& task) {
  const auto model = TheState().models.find(task.model_id);
  if (model != TheState().models.end()) --model->second.in_flight;
}

void SleepSimulated(const Stream& stream, int microseconds, UniqueLock* lock) {
  if (microseconds == 0) return;
  State& state = TheState();
  const auto alarm = state.alarms.insert(state.now_us + microseconds);
  state.changed.notify_all();
  state.changed.wait(*lock, [&] { return stream.ending || state.now_us >= *alarm; });
  state.alarms.erase(alarm);
}

// The next task of the stream, if any, queues for its engine.
void Queue(Stream* stream) {
  if (!stream->tasks.empty()) TheState().engines[stream->tasks.front().engine].push_back(stream);
  TheState().changed.notify_all();
}

void RunStream(Stream* stream) {
  State& state = TheState();
  UniqueLock lock(state.mutex);
  const auto may_start = [&] {
    return state.waiting > 0 && !stream->tasks.empty() && state.engines[stream->tasks.front().engine].front() == stream;
  };
  for (;;) {
    state.changed.wait(lock, [&] { return stream->ending || may_start(); });
    if (stream->ending) return;
    const Task& task = stream->tasks.front();
    SleepSimulated(*stream, LatencyUs(task.engine), &lock);
    if (stream->ending) return;
    lock.unlock();
    task.work();
    lock.lock();
    LeaveModel(task);
    if (task.engine == kExecute) ++state.executions;
    state.engines[task.engine].pop_front();
    stream->tasks.pop_front();
    ++stream->done;
    Queue(stream);
  }
}

// Ends the worker; what was not done never will be.
void EndWorker(Stream* stream, UniqueLock* lock) {
  State& state = TheState();
  stream->ending = true;
  state.changed.notify_all();
  lock->unlock();
  stream->worker.join();
  lock->lock();
  for (const Task& task : stream->tasks) LeaveModel(task);
  for (std::deque<Stream*>& queue : state.engines) {
    queue.erase(std::remove(queue.begin(), queue.end(), stream), queue.end());
  }
  state.changed.notify_all();
}

void Protect(const void* begin, size_t size, int protection) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / page * page;
  mprotect(reinterpret_cast<void*>(first), reinterpret_cast<uintptr_t>(begin) + size - first, protection);
}

// Whether [address, address + size) is device or pinned memory, as `on_device` says; explains itself if not.
aclError CheckEnd(const void* address, size_t size, bool on_device, const Stream* stream, const std::string& end) {
  if (reinterpret_cast<uintptr_t>(address) % kAlignment != 0) {
    return Violate(kInvalidParam, "aclrtMemcpyAsync: the address of the " + end + " is no multiple of 64");
  }
  if (IsDeviceAddress(address) != on_device) {
    return Violate(kInvalidParam, "aclrtMemcpyAsync: " + end + " is " + (on_device ? "host" : "device") +
                                      " memory, which the kind of copy denies");
  }
  if (on_device ? DeviceContent(address, size) == nullptr : FindPinned(address, size) == nullptr) {
    return Violate(kInvalidParam, "aclrtMemcpyAsync: " + end + ": " + std::to_string(size) +
                                      " bytes are not in one block" + (on_device ? "" : " of aclrtMallocHost"));
  }
  if (InFlight(address, size, stream)) {
    return Violate(kInvalidParam, "aclrtMemcpyAsync: another stream uses the " + end);
  }
  return ACL_SUCCESS;
}

}  // namespace

Stream* FindStream(aclrtStream stream, const char* function, aclError* status) {
  auto* known = static_cast<Stream*>(stream);
  if (TheState().streams.count(known) == 0) {
    *status = Violate(kInvalidParam, std::string(function) + ": no such stream");
    return nullptr;
  }
  if (known->context != CurrentContext()) {
    *status = Violate(kStreamContext, std::string(function) + ": stream of another context");
    return nullptr;
  }
  return known;
}

void Give(Stream* stream, Task task) {
  stream->tasks.push_back(std::move(task));
  ++stream->given;
  if (stream->tasks.size() == 1) Queue(stream);
}

bool InFlight(const void* begin, size_t size, const Stream* except) {
  const auto* first = static_cast<const uint8_t*>(begin);
  for (const Stream* stream : TheState().streams) {
    if (stream == except) continue;
    for (const Task& task : stream->tasks) {
      for (const Range& range : task.uses) {
        const auto* other = static_cast<const uint8_t*>(range.begin);
        if (first < other + range.size && other < first + size) return true;
      }
    }
  }
  return false;
}

void StartClock() {
  State& state = TheState();
  state.clock_ends = false;
  if (LatencyUs(kCopyIn) + LatencyUs(kExecute) + LatencyUs(kCopyOut) > 0) state.clock = std::thread(RunClock);
}

void StopClock() {
  State& state = TheState();
  if (!state.clock.joinable()) return;
  {
    const UniqueLock lock(state.mutex);
    state.clock_ends = true;
    state.changed.notify_all();
  }
  state.clock.join();
  std::cerr << "SIMULATED AscendCL: " << state.executions << " executions in " << state.now_us
            << " simulated microseconds" << std::endl;
}

}  // namespace fake

using fake::EnterWithContext;
using fake::State;
using fake::Stream;
using fake::TheState;
using fake::UniqueLock;
using fake::Violate;

extern "C" {

aclError aclrtCreateStream(aclrtStream* stream) {
  State& state = TheState();
  const UniqueLock lock(state.mutex);
  if (const aclError status = EnterWithContext("aclrtCreateStream")) return status;
  auto* made = new Stream;
  made->context = fake::CurrentContext();
  made->worker = std::thread(fake::RunStream, made);
  state.streams.insert(made);
  *stream = made;
  return ACL_SUCCESS;
}

aclError aclrtDestroyStream(aclrtStream stream) {
  State& state = TheState();
  UniqueLock lock(state.mutex);
  const aclError entered = EnterWithContext("aclrtDestroyStream");
  aclError status = ACL_SUCCESS;
  Stream* known = fake::FindStream(stream, "aclrtDestroyStream", &status);
  if (known == nullptr) return status;
  if (!known->tasks.empty()) Violate(fake::kInvalidParam, "aclrtDestroyStream with work in flight");
  fake::EndWorker(known, &lock);
  state.streams.erase(known);
  delete known;
  return entered;
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
  State& state = TheState();
  UniqueLock lock(state.mutex);
  const aclError entered = EnterWithContext("aclrtSynchronizeStream");
  aclError status = ACL_SUCCESS;
  const Stream* known = fake::FindStream(stream, "aclrtSynchronizeStream", &status);
  if (known == nullptr) return status;
  ++state.waiting;
  state.changed.notify_all();
  state.changed.wait(lock, [known, given = known->given] { return known->done >= given; });
  --state.waiting;
  return entered;  // an injected failure: the stream has nothing in flight any more
}

aclError aclrtMemcpyAsync(void* dst, size_t destMax, const void* src, size_t count, aclrtMemcpyKind kind,
                          aclrtStream stream) {
  const UniqueLock lock(TheState().mutex);
  if (const aclError status = EnterWithContext("aclrtMemcpyAsync")) return status;
  aclError status = ACL_SUCCESS;
  Stream* on = fake::FindStream(stream, "aclrtMemcpyAsync", &status);
  if (on == nullptr) return status;
  if (count == 0 || destMax < count)
    return Violate(fake::kInvalidParam, "aclrtMemcpyAsync: count is 0 or above destMax");
  const bool in = kind == ACL_MEMCPY_HOST_TO_DEVICE;
  if (!in && kind != ACL_MEMCPY_DEVICE_TO_HOST) return Violate(fake::kInvalidParam, "aclrtMemcpyAsync: kind");
  if ((status = fake::CheckEnd(dst, destMax, in, on, "destination"))) return status;
  if ((status = fake::CheckEnd(src, count, !in, on, "source"))) return status;
  const void* from = in ? src : fake::DeviceContent(src, count);
  void* to = in ? fake::DeviceContent(dst, count) : dst;
  const void* host = in ? src : dst;
  fake::Protect(host, count, in ? PROT_READ : PROT_NONE);
  const auto work = [from, to, host, count] {
    fake::Protect(host, count, PROT_READ | PROT_WRITE);
    std::memcpy(to, from, count);
  };
  fake::Give(on, {in ? fake::kCopyIn : fake::kCopyOut, work, {{src, count}, {dst, count}}, 0});
  return ACL_SUCCESS;
}

}  // extern "C"
