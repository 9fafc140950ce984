// Names, whole-file reading, and writing that never leaves a half-written file behind.
#ifndef ASCEND310_INFER_INC_FILES_H_
#define ASCEND310_INFER_INC_FILES_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "inc/bytes.h"

namespace mindseg {

// Tests a name from outside: a relative path without parts that are empty, `.` or `..`, without drive, backslash or
// control character. The rule of output_path in src/mindseg/outputs.py.
bool IsPlainName(const std::string& name);

// Opens a file, and never waits for a pipe; it is closed with the last copy of the result. Throws ItemError, when it is
// read too.
ByteSource OpenFile(const std::filesystem::path& path);

// Reads a file of at most `limit` bytes. Throws ItemError.
std::vector<uint8_t> ReadFile(const std::filesystem::path& path, size_t limit);

// A file that has a hidden temporary name in its folder until it is whole. Its methods throw UserError.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();  // removes what was not finished
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void Write(const void* data, size_t size);
  void Finish();  // gives the file its name

 private:
  [[noreturn]] void Fail(int number) const;

  const std::filesystem::path path_;
  const std::filesystem::path temporary_;
  int fd_ = -1;
};

// Writes a whole file by the class above.
void WriteFileAtomically(const std::filesystem::path& path, const void* data, size_t size);

// Removes temporary files of processes that were killed while they wrote into `folder`, those of the Python programs
// too (src/mindseg/files.py).
void RemoveLeftovers(const std::filesystem::path& folder);

// Lower-case hexadecimal SHA-256 (FIPS 180-4) of bytes and of a file. Throws UserError.
std::string Sha256(const void* data, size_t size);
std::string Sha256OfFile(const std::filesystem::path& path);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_FILES_H_
