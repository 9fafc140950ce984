// The folder of the results. Only files that this program wrote are ever replaced; their names stand in a record.
#ifndef ASCEND310_INFER_INC_OUTPUT_FOLDER_H_
#define ASCEND310_INFER_INC_OUTPUT_FOLDER_H_

#include <cstddef>
#include <filesystem>
#include <mutex>
#include <set>
#include <string>

#include "inc/files.h"

namespace mindseg {

// Throws UserError if `output` is the input's folder or lies above the input, whose files it could then replace.
void CheckApart(const std::filesystem::path& input, const std::filesystem::path& output);

// Shares its rules and the record `.mindseg-files`, one name a line, with src/mindseg/outputs.py. The record is locked
// while the object lives; the kernel releases the lock when the process ends, however it ends.
class OutputFolder {
 public:
  // Makes the folder and removes the temporary files of killed runs. `overwrite`: foreign files may be replaced too.
  // Throws UserError: it cannot be made or written, or another process writes there.
  OutputFolder(const std::filesystem::path& folder, bool overwrite);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  // Throws UserError if a file of that name exists and was not written by this program.
  void Check(const std::string& name) const;

  // Records the name and begins the file. Throws UserError. For several threads at once, as the following.
  AtomicFile Begin(const std::string& name);

  // Writes the file, whole or not at all. Throws UserError.
  void Write(const std::string& name, const void* data, size_t size);
  void Write(const std::string& name, const std::string& text) { Write(name, text.data(), text.size()); }

  // Removes the file if an earlier run of this program wrote it.
  void Remove(const std::string& name);

  const std::filesystem::path& path() const { return folder_; }

 private:
  void Lock() const;
  void ReadRecord();
  bool IsOwn(const std::string& name) const;
  void Record(const std::string& name);

  const std::filesystem::path folder_;
  const bool overwrite_;
  int record_ = -1;  // file descriptor
  mutable std::mutex mutex_;
  std::set<std::string> own_;  // files that this program wrote, now or earlier
};

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_OUTPUT_FOLDER_H_
