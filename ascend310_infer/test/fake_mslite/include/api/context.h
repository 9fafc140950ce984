#ifndef ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_CONTEXT_H_
#define ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_CONTEXT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mindspore {

class DeviceInfoContext {
 public:
  virtual ~DeviceInfoContext() = default;
};

class CPUDeviceInfo : public DeviceInfoContext {};

class GPUDeviceInfo : public DeviceInfoContext {
 public:
  void SetDeviceID(uint32_t device_id) { device_id_ = device_id; }

 private:
  uint32_t device_id_ = 0;
};

class AscendDeviceInfo : public DeviceInfoContext {
 public:
  void SetDeviceID(uint32_t device_id) { device_id_ = device_id; }
  uint32_t GetDeviceID() const { return device_id_; }
  void SetFusionSwitchConfigPath(const std::string& path) { fusion_switch_ = path; }
  std::string GetFusionSwitchConfigPath() const { return fusion_switch_; }

 private:
  uint32_t device_id_ = 0;
  std::string fusion_switch_;
};

class Context {
 public:
  std::vector<std::shared_ptr<DeviceInfoContext>>& MutableDeviceInfo() { return devices_; }

 private:
  std::vector<std::shared_ptr<DeviceInfoContext>> devices_;
};

}  // namespace mindspore

#endif  // ASCEND310_INFER_TEST_FAKE_MSLITE_INCLUDE_API_CONTEXT_H_
