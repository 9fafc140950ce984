// Errors that a user can correct. Every message is one line with the file, the key or value, and the remedy.
#ifndef ASCEND310_INFER_INC_ERROR_H_
#define ASCEND310_INFER_INC_ERROR_H_

#include <stdexcept>
#include <string>

namespace mindseg {

constexpr int kExitOk = 0;
constexpr int kExitError = 1;
constexpr int kExitSomeFailed = 3;
constexpr int kExitSignalBase = 128;  // plus the signal's number, as shells count

// Joins lines and cuts very long texts, so that a library's message fits into our one line.
std::string OneLine(const std::string& text);

// Ends the program with status 1.
class UserError : public std::runtime_error {
 public:
  explicit UserError(const std::string& message) : std::runtime_error(OneLine(message)) {}
};

// One input is bad: it is reported and counted, and the others go on.
class ItemError : public UserError {
 public:
  using UserError::UserError;
};

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_ERROR_H_
