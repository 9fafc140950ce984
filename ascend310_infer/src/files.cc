#include "inc/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

#include "inc/error.h"

namespace segment {
namespace fs = std::filesystem;
namespace {

std::string ErrnoText(int number) { return std::system_category().message(number); }

// A file descriptor that is closed, and a file that is unlinked, unless released.
class TemporaryFile {
 public:
  explicit TemporaryFile(const fs::path& target)
      : path_(target.parent_path() / ("." + target.filename().string() + ".tmp" + std::to_string(::getpid()))) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  }
  ~TemporaryFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!renamed_ && opened()) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  bool opened() const { return fd_ >= 0 || closed_; }

  bool Write(const char* data, size_t size) {
    while (size > 0) {
      const ssize_t written = ::write(fd_, data, size);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return false;
      data += written;
      size -= static_cast<size_t>(written);
    }
    return true;
  }

  bool CloseAndRename(const fs::path& target) {
    closed_ = true;
    const int status = ::close(fd_);
    fd_ = -1;
    renamed_ = status == 0 && ::rename(path_.c_str(), target.c_str()) == 0;
    return renamed_;
  }

 private:
  fs::path path_;
  int fd_ = -1;
  bool closed_ = false;
  bool renamed_ = false;
};

class Sha256 {
 public:
  void Update(const uint8_t* data, size_t size) {
    total_ += size;
    while (size > 0) {
      const size_t taken = std::min(size, block_.size() - used_);
      std::memcpy(block_.data() + used_, data, taken);
      used_ += taken;
      data += taken;
      size -= taken;
      if (used_ == block_.size()) {
        Compress();
        used_ = 0;
      }
    }
  }

  std::string Finish() {
    const uint64_t bits = total_ * 8;
    const uint8_t one = 0x80;
    const uint8_t zero = 0;
    Update(&one, 1);
    while (used_ != 56) Update(&zero, 1);
    std::array<uint8_t, 8> length{};
    for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    Update(length.data(), length.size());
    std::string text;
    for (uint32_t word : state_) {
      for (int shift = 28; shift >= 0; shift -= 4) text.push_back("0123456789abcdef"[(word >> shift) & 15]);
    }
    return text;
  }

 private:
  static uint32_t Rotate(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

  void Compress() {
    static constexpr std::array<uint32_t, 64> kRound = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    std::array<uint32_t, 64> w;
    for (int i = 0; i < 16; ++i) {
      w[i] = uint32_t{block_[4 * i]} << 24 | uint32_t{block_[4 * i + 1]} << 16 | uint32_t{block_[4 * i + 2]} << 8 |
             uint32_t{block_[4 * i + 3]};
    }
    for (int i = 16; i < 64; ++i) {
      const uint32_t s0 = Rotate(w[i - 15], 7) ^ Rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const uint32_t s1 = Rotate(w[i - 2], 17) ^ Rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int i = 0; i < 64; ++i) {
      const uint32_t t1 = h + (Rotate(e, 6) ^ Rotate(e, 11) ^ Rotate(e, 25)) + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
      const uint32_t t2 = (Rotate(a, 2) ^ Rotate(a, 13) ^ Rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g;
      g = f;
      f = e;
      e = d + t1;
      d = c;
      c = b;
      b = a;
      a = t1 + t2;
    }
    const std::array<uint32_t, 8> add = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state_[i] += add[i];
  }

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_{};
  size_t used_ = 0;
  uint64_t total_ = 0;
};

}  // namespace

std::vector<uint8_t> ReadFile(const fs::path& path, size_t limit) {
  std::error_code error;
  if (fs::is_directory(path, error)) throw ItemError(path.string() + ": is a folder, not a file");
  std::ifstream stream(path, std::ios::binary | std::ios::ate);
  if (!stream) throw ItemError(path.string() + ": cannot open: " + ErrnoText(errno));
  const std::streamoff size = stream.tellg();
  if (size < 0) throw ItemError(path.string() + ": cannot read its size");
  if (static_cast<uint64_t>(size) > limit) {
    throw ItemError(path.string() + ": has " + std::to_string(size) + " bytes, more than the " + std::to_string(limit) +
                    " that are accepted");
  }
  std::vector<uint8_t> bytes(static_cast<size_t>(size));
  stream.seekg(0);
  if (size > 0 && !stream.read(reinterpret_cast<char*>(bytes.data()), size)) {
    throw ItemError(path.string() + ": cannot read all of its " + std::to_string(size) + " bytes");
  }
  return bytes;
}

void WriteFileAtomically(const fs::path& path, const void* data, size_t size) {
  const auto fail = [&path](int number) {
    throw UserError(path.string() + ": cannot write: " + ErrnoText(number) +
                    "; free some space or choose another --output folder");
  };
  TemporaryFile file(path);
  if (!file.opened()) fail(errno);
  if (!file.Write(static_cast<const char*>(data), size)) fail(errno);
  if (!file.CloseAndRename(path)) fail(errno);
}

void MakeOutputFolder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error || !fs::is_directory(folder)) {
    const std::string reason = error ? error.message() : "a file of that name exists";
    throw UserError("--output " + folder.string() + ": cannot make the folder: " + reason + "; choose another one");
  }
  TemporaryFile probe(folder / "probe");
  if (!probe.opened()) {
    throw UserError("--output " + folder.string() + ": cannot write into the folder: " + ErrnoText(errno) +
                    "; change its permissions or choose another one");
  }
}

std::string Sha256OfFile(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw UserError(path.string() + ": cannot open: " + ErrnoText(errno));
  std::vector<char> chunk(1 << 20);
  Sha256 sum;
  while (stream) {
    stream.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    sum.Update(reinterpret_cast<const uint8_t*>(chunk.data()), static_cast<size_t>(stream.gcount()));
  }
  if (stream.bad()) throw UserError(path.string() + ": cannot read");
  return sum.Finish();
}

}  // namespace segment
