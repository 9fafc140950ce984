#include "inc/output_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <sstream>
#include <system_error>
#include <vector>

#include "inc/error.h"

namespace mindseg {
namespace fs = std::filesystem;
namespace {

constexpr char kRecordName[] = ".mindseg-files";

std::string ErrnoText(int number) { return std::system_category().message(number); }

// Without links and `..`, as far as the path exists. Throws UserError.
fs::path Resolve(const std::string& option, const fs::path& path) {
  std::error_code error;
  const fs::path resolved = fs::weakly_canonical(fs::absolute(path), error);
  if (error) throw UserError(option + " " + path.string() + ": cannot be used: " + error.message());
  // A slash at the end of what does not exist yet stands for an empty name.
  return resolved.has_filename() ? resolved : resolved.parent_path();
}

bool Exists(const fs::path& path) {
  struct stat status{};
  return ::lstat(path.c_str(), &status) == 0;
}

}  // namespace

void CheckApart(const fs::path& input, const fs::path& output) {
  const fs::path place = Resolve("--input", input);
  const fs::path target = Resolve("--output", output);
  for (fs::path above = place;; above = above.parent_path()) {
    if (above == target) break;
    if (above == above.parent_path()) return;
  }
  std::error_code error;
  const fs::path folder = fs::is_directory(place, error) ? place : place.parent_path();
  throw UserError("--output " + output.string() + ": " + (target == folder ? "is the folder of" : "lies above") +
                  " the input " + input.string() + ", whose files could be replaced; choose another --output");
}

OutputFolder::OutputFolder(const fs::path& folder, bool overwrite) : folder_(folder), overwrite_(overwrite) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error || !fs::is_directory(folder, error)) {
    const std::string reason = error ? error.message() : "a file of that name exists";
    throw UserError("--output " + folder.string() + ": cannot make the folder: " + reason + "; choose another one");
  }
  // Neither waits for a pipe of that name nor writes to where a link of that name points.
  constexpr int kFlags = O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
  record_ = ::open((folder / kRecordName).c_str(), kFlags, 0666);
  if (record_ < 0) {
    throw UserError("--output " + folder.string() + ": cannot write into the folder: " + ErrnoText(errno) +
                    "; change its permissions or choose another one");
  }
  try {
    Lock();
    ReadRecord();
    RemoveLeftovers(folder);
  } catch (...) {
    ::close(record_);
    throw;
  }
}

OutputFolder::~OutputFolder() {
  if (own_.empty()) ::unlink((folder_ / kRecordName).c_str());
  ::close(record_);
}

void OutputFolder::Lock() const {
  // Other errors: a file system without locks.
  if (::flock(record_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw UserError(folder_.string() +
                    ": another process writes results there; wait for it or choose another --output");
  }
}

void OutputFolder::ReadRecord() {
  constexpr size_t kLargestRecord = size_t{1} << 28;
  const std::vector<uint8_t> bytes = ReadFile(folder_ / kRecordName, kLargestRecord);
  std::istringstream lines(std::string(bytes.begin(), bytes.end()));
  for (std::string name; std::getline(lines, name);) {
    if (IsPlainName(name)) own_.insert(name);
  }
}

bool OutputFolder::IsOwn(const std::string& name) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return own_.count(name) > 0;
}

void OutputFolder::Check(const std::string& name) const {
  if (overwrite_ || IsOwn(name) || !Exists(folder_ / name)) return;
  throw UserError((folder_ / name).string() +
                  ": exists and was not written by mindseg; choose another --output or give --overwrite");
}

void OutputFolder::Record(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!own_.insert(name).second) return;
  const std::string line = name + "\n";
  const off_t end = ::lseek(record_, 0, SEEK_END);
  const ssize_t written = ::write(record_, line.data(), line.size());
  if (written == static_cast<ssize_t>(line.size())) return;
  // Half a name would swallow the next one. If even this fails, there is no more to do.
  if (written > 0 && ::ftruncate(record_, end) != 0) errno = EIO;
  throw UserError(folder_.string() + ": cannot write: " + ErrnoText(written < 0 ? errno : ENOSPC) +
                  "; free some space or choose another --output folder");
}

AtomicFile OutputFolder::Begin(const std::string& name) {
  Check(name);
  Record(name);
  return AtomicFile(folder_ / name);
}

void OutputFolder::Write(const std::string& name, const void* data, size_t size) {
  AtomicFile file = Begin(name);
  file.Write(data, size);
  file.Finish();
}

void OutputFolder::Remove(const std::string& name) {
  if (IsOwn(name)) ::unlink((folder_ / name).c_str());
}

}  // namespace mindseg
