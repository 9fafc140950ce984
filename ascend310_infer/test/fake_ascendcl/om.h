// A simulated .om: a text file beside its ONNX twin.
//
//   SIMULATED OM
//   onnx: fast_scnn.onnx
//   gears: 1 4                              dynamic batch (ascending); absent: static, as in the ONNX
//   input_dtype: float16                    default: the ONNX's
//   output_dtype: float16                   of the first output, default: the ONNX's; also int32, int64, float32, uint8
//   outputs: 1 0                            order of two outputs; default: the ONNX's
//   aipp: 123 116 103 0.675 0.28 0.53 0.017 0.0175 0.0174
//                                           static AIPP for uint8 NHWC: mean_chn, min_chn, var_reci_chn
#ifndef ASCEND310_INFER_TEST_FAKE_ASCENDCL_OM_H_
#define ASCEND310_INFER_TEST_FAKE_ASCENDCL_OM_H_

#include <cstdint>
#include <map>
#include <mutex>
#include <openvino/openvino.hpp>
#include <string>
#include <vector>

#include "inc/acl_api.h"

namespace fake {

class OmModel {
 public:
  // Throws std::runtime_error if the file is not one of these.
  explicit OmModel(const std::string& path);

  const std::vector<int64_t>& gears() const { return gears_; }
  const std::string& input_name() const { return input_name_; }
  size_t output_count() const { return outputs_.size(); }
  const std::string& output_name(size_t index) const { return outputs_[index].name; }
  aclDataType input_type() const { return input_type_; }
  aclDataType output_type(size_t index) const { return outputs_[index].type; }
  std::vector<int64_t> InputShape() const;               // -1 for the batch of a dynamic model
  std::vector<int64_t> OutputShape(size_t index) const;  // of the largest gear
  size_t InputBytes() const;                             // of the largest gear
  size_t OutputBytes(size_t index) const;
  size_t file_bytes() const { return file_bytes_; }

  // Plain memory in and out; `batch` is a gear, or the static batch.
  void Run(int64_t batch, const uint8_t* input, const std::vector<uint8_t*>& outputs);

 private:
  struct Output {
    size_t port;  // in the ONNX twin
    std::string name;
    std::vector<int64_t> shape;
    aclDataType type;
  };

  ov::CompiledModel& Compiled(int64_t batch);
  ov::Tensor MakeInput(int64_t batch, const uint8_t* bytes) const;
  void ParseLine(const std::string& key, const std::string& value, const std::string& folder);

  std::mutex mutex_;
  ov::Core core_;
  std::shared_ptr<ov::Model> twin_;
  std::map<int64_t, ov::CompiledModel> compiled_;
  std::vector<int64_t> gears_;
  std::vector<float> aipp_;
  std::string input_name_;
  std::vector<int64_t> input_shape_;  // of the twin, batch -1 if dynamic
  std::vector<Output> outputs_;
  aclDataType input_type_ = ACL_FLOAT;
  size_t file_bytes_ = 0;
};

size_t TypeBytes(aclDataType type);

}  // namespace fake

#endif  // ASCEND310_INFER_TEST_FAKE_ASCENDCL_OM_H_
