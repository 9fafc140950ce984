// Whole-file reading, and writing that never leaves a half-written file behind.
#ifndef ASCEND310_INFER_INC_FILES_H_
#define ASCEND310_INFER_INC_FILES_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace mindseg {

// Reads a file of at most `limit` bytes. Throws ItemError.
std::vector<uint8_t> ReadFile(const std::filesystem::path& path, size_t limit);

// Writes to a hidden temporary name in the same folder, then renames. Throws UserError; removes the temporary file.
void WriteFileAtomically(const std::filesystem::path& path, const void* data, size_t size);

// Makes `folder` and its parents and checks that files can be made in it. Throws UserError.
void MakeOutputFolder(const std::filesystem::path& folder);

// Lower-case hexadecimal SHA-256 (FIPS 180-4) of a file. Throws UserError.
std::string Sha256OfFile(const std::filesystem::path& path);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_FILES_H_
