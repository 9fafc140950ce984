#ifndef ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_TYPES_H_
#define ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_TYPES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mindspore {

enum ModelType : uint32_t { kMindIR = 0 };

enum class DataType : int {
  kNumberTypeInt32 = 34,
  kNumberTypeInt64 = 35,
  kNumberTypeUInt8 = 37,
  kNumberTypeFloat16 = 42,
  kNumberTypeFloat32 = 43,
};

// A handle: copies share the data, as in the real one.
class MSTensor {
 public:
  struct Content {
    enum DataType type;
    std::vector<int64_t> shape;
    std::vector<uint8_t> data;
  };
  explicit MSTensor(std::shared_ptr<Content> content) : content_(std::move(content)) {}
  enum DataType DataType() const { return content_->type; }
  const std::vector<int64_t>& Shape() const { return content_->shape; }
  void* MutableData() { return content_->data.data(); }
  size_t DataSize() const { return content_->data.size(); }

 private:
  std::shared_ptr<Content> content_;
};

std::string Version();

}  // namespace mindspore

#endif  // ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_TYPES_H_
