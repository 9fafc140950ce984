// Samples of a process's threads, taken at equal steps of the processor time that each uses: whether it holds Python's
// lock (GIL) just then. Linux only.
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

extern "C" int PyGILState_Check();

namespace {

std::atomic<long> g_samples{0};
std::atomic<long> g_steps{0};
std::atomic<long> g_held{0};

// The kernel looks at its timers when its clock ticks. A thread that was not running then has used several steps when
// its sample comes, which stands for all of them.
void Sample(int, siginfo_t* info, void*) {
  const int error = errno;
  const long steps = 1 + info->si_overrun;
  ++g_samples;
  g_steps += steps;
  if (PyGILState_Check()) g_held += steps;
  errno = error;
}

}  // namespace

// Starts to sample a thread, by its number in /proc/self/task; gives 0, or -1 if that is not possible.
extern "C" int lock_watch(int thread, timer_t* timer) {
  struct sigaction action = {};
  action.sa_sigaction = Sample;
  action.sa_flags = SA_RESTART | SA_SIGINFO;
  if (sigaction(SIGPROF, &action, nullptr) != 0) return -1;
  sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGPROF;
  event._sigev_un._tid = thread;
  const clockid_t processor_time = static_cast<clockid_t>(~static_cast<unsigned>(thread) << 3 | 6u);
  if (timer_create(processor_time, &event, timer) != 0) return -1;
  const itimerspec each_millisecond = {{0, 1000000}, {0, 1000000}};  // the kernel's clock ticks may be longer
  return timer_settime(*timer, 0, &each_millisecond, nullptr);
}

extern "C" void lock_forget(timer_t timer) { timer_delete(timer); }

// Numbers of samples, of steps that they stand for, and of those with the lock held.
extern "C" void lock_counts(long* samples, long* steps, long* held) {
  *samples = g_samples;
  *steps = g_steps;
  *held = g_held;
}
