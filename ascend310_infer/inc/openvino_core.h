// OpenVINO, once a process.
#ifndef ASCEND310_INFER_INC_OPENVINO_CORE_H_
#define ASCEND310_INFER_INC_OPENVINO_CORE_H_

#include <cstdlib>
#include <openvino/openvino.hpp>

namespace mindseg {

// Made by the first call and never deleted. On processors with AMX a core replaces the stack on which the thread that
// first compiles a model handles signals. When the core is deleted it frees that stack, even if the thread still has
// it: a signal, or AddressSanitizer at the thread's end, then meets memory of something else.
inline ov::Core& OpenvinoCore() {
  static ov::Core* const core = [] {
    // The project's Python sets this against a fault of MindSpore's oneDNN, and children inherit it. OpenVINO's own
    // copy of oneDNN has no such fault and would only be slower.
    ::unsetenv("ONEDNN_MAX_CPU_ISA");
    return new ov::Core();
  }();
  return *core;
}

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_OPENVINO_CORE_H_
