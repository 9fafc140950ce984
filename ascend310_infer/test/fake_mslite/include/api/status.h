// Of MindSpore Lite's C++ interface just what backend_mslite.cc uses, written from the published signatures, for the
// simulation beside it. See fake_mslite.cc.
#ifndef ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_STATUS_H_
#define ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_STATUS_H_

#include <string>
#include <utility>

namespace mindspore {

class Status {
 public:
  Status() = default;
  explicit Status(std::string error) : error_(std::move(error)) {}
  bool IsOk() const { return error_.empty(); }
  std::string ToString() const { return error_; }

 private:
  std::string error_;
};

}  // namespace mindspore

#endif  // ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_STATUS_H_
