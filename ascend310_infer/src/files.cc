#include "inc/files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <fstream>
#include <memory>
#include <system_error>

#include "inc/error.h"

namespace mindseg {
namespace fs = std::filesystem;
namespace {

std::string ErrnoText(int number) { return std::system_category().message(number); }

std::string Hexadecimal(const unsigned char* bytes, size_t size) {
  std::string text;
  for (size_t i = 0; i < size; ++i) {
    text += "0123456789abcdef"[bytes[i] >> 4];
    text += "0123456789abcdef"[bytes[i] & 15];
  }
  return text;
}

// The process that writes a file of this temporary name, `.NAME.mindseg-PROCESS.tmp`, in Python with an ending; 0 for
// other names.
int WriterOf(const std::string& name) {
  constexpr char kMark[] = ".mindseg-";
  constexpr size_t kMostDigits = 9;
  const size_t mark = name.rfind(kMark);
  if (name.front() != '.' || mark == 0 || mark == std::string::npos) return 0;
  const size_t begin = mark + sizeof(kMark) - 1;
  const size_t end = name.find_first_not_of("0123456789", begin);
  if (end == begin || end == std::string::npos || end - begin > kMostDigits) return 0;
  const std::string rest = name.substr(end);
  if (rest != ".tmp" && rest.compare(0, 5, ".tmp.") != 0) return 0;
  return std::stoi(name.substr(begin, end - begin));
}

// An open file; closed at the end.
struct Descriptor {
  explicit Descriptor(int number) : fd(number) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  const int fd;
};

}  // namespace

bool IsPlainName(const std::string& name) {
  for (const char c : name) {
    const auto code = static_cast<unsigned char>(c);
    if (code < 0x20 || code == 0x7f || c == '\\') return false;
  }
  if (name.size() > 1 && name[1] == ':' && std::isalpha(static_cast<unsigned char>(name[0]))) return false;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return true;
}

ByteSource OpenFile(const fs::path& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    throw ItemError(path.string() + ": is a folder, pipe or device; give a plain file");
  }
  const auto file = std::make_shared<const Descriptor>(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (file->fd < 0) throw ItemError(path.string() + ": cannot open: " + ErrnoText(errno));
  if (::fstat(file->fd, &status) != 0) throw ItemError(path.string() + ": cannot read its size: " + ErrnoText(errno));
  const auto size = static_cast<uint64_t>(status.st_size);
  return {size, [file, path, size](uint64_t at, size_t count, uint8_t* to) {
            for (size_t done = 0; done < count;) {
              const ssize_t got = ::pread(file->fd, to + done, count - done, static_cast<off_t>(at + done));
              if (got < 0 && errno == EINTR) continue;
              if (got <= 0) {
                throw ItemError(path.string() + ": cannot read all of its " + std::to_string(size) + " bytes" +
                                (got < 0 ? ": " + ErrnoText(errno) : ""));
              }
              done += static_cast<size_t>(got);
            }
          }};
}

std::vector<uint8_t> ReadFile(const fs::path& path, size_t limit) {
  const ByteSource file = OpenFile(path);
  if (file.size() > limit) {
    throw ItemError(path.string() + ": has " + std::to_string(file.size()) + " bytes, more than the " +
                    std::to_string(limit) + " that are accepted");
  }
  return file.Read(0, file.size());
}

AtomicFile::AtomicFile(const fs::path& path)
    : path_(path),
      temporary_(path.parent_path() /
                 ("." + path.filename().string() + ".mindseg-" + std::to_string(::getpid()) + ".tmp")),
      fd_(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666)) {
  if (fd_ < 0) Fail(errno);
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::Fail(int number) const {
  throw UserError(path_.string() + ": cannot write: " + ErrnoText(number) +
                  "; free some space or choose another --output folder");
}

void AtomicFile::Write(const void* data, size_t size) {
  const auto* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(fd_, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) Fail(errno);
    bytes += written;
    size -= static_cast<size_t>(written);
  }
}

void AtomicFile::Finish() {
  const int status = ::close(fd_);
  fd_ = -1;
  if (status == 0 && ::rename(temporary_.c_str(), path_.c_str()) == 0) return;
  const int number = errno;
  ::unlink(temporary_.c_str());
  Fail(number);
}

void WriteFileAtomically(const fs::path& path, const void* data, size_t size) {
  AtomicFile file(path);
  file.Write(data, size);
  file.Finish();
}

void RemoveLeftovers(const fs::path& folder) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const int process = WriterOf(entry.path().filename().string());
    // This process has not begun: the file is of an earlier one with its number.
    const bool ended = process == ::getpid() || (process > 0 && ::kill(process, 0) != 0 && errno == ESRCH);
    if (ended) ::unlink(entry.path().c_str());
  }
}

std::string Sha256(const void* data, size_t size) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int length = 0;
  if (EVP_Digest(data, size, digest.data(), &length, EVP_sha256(), nullptr) != 1) {
    throw UserError("OpenSSL cannot compute SHA-256; install a build of it with SHA-256");
  }
  return Hexadecimal(digest.data(), length);
}

std::string Sha256OfFile(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw UserError(path.string() + ": cannot open: " + ErrnoText(errno));
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> sum(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  bool good = EVP_DigestInit_ex(sum.get(), EVP_sha256(), nullptr) == 1;
  std::vector<char> chunk(1 << 20);
  while (good && stream) {
    stream.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    good = EVP_DigestUpdate(sum.get(), chunk.data(), static_cast<size_t>(stream.gcount())) == 1;
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  good = good && !stream.bad() && EVP_DigestFinal_ex(sum.get(), digest.data(), &size) == 1;
  if (!good) throw UserError(path.string() + ": cannot compute its SHA-256; is it readable to the end?");
  return Hexadecimal(digest.data(), size);
}

}  // namespace mindseg
