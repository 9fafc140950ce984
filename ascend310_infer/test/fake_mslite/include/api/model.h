#ifndef ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_MODEL_H_
#define ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "include/api/context.h"
#include "include/api/status.h"
#include "include/api/types.h"

namespace mindspore {

class Model {
 public:
  Model();
  ~Model();
  Status Build(const std::string& model_path, ModelType model_type, const std::shared_ptr<Context>& context);
  Status Resize(const std::vector<MSTensor>& inputs, const std::vector<std::vector<int64_t>>& dims);
  std::vector<MSTensor> GetInputs();
  std::vector<MSTensor> GetOutputs();
  Status Predict(const std::vector<MSTensor>& inputs, std::vector<MSTensor>* outputs);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mindspore

#endif  // ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_MODEL_H_
