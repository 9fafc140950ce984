// The interface to the vendor libraries that run a model. Each library has one implementation, built where its SDK was
// found.
#ifndef ASCEND310_INFER_INC_BACKEND_H_
#define ASCEND310_INFER_INC_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "inc/buffer.h"
#include "inc/manifest.h"
#include "inc/tensor.h"

namespace mindseg {

struct BackendOptions {
  std::string device;  // ascend | gpu | cpu; empty: what the backend is for
  int device_id = 0;
  bool bf16 = false;  // allowed to compute in bfloat16 (OpenVINO)
  int64_t batch = 0;  // images an inference; 0: as the first model file listed (dynamic batch: 1)
  int streams = 0;    // inferences at once; 0: the backend's choice
};

struct BackendInfo {
  std::string backend;
  std::string device;
  std::string version;    // of the vendor library
  std::string precision;  // of the computation
  std::string model_file;
  std::string model_sha256;  // as the manifest lists it, and checked
  bool simulated = false;    // the vendor library is a stand-in for tests
  int64_t batch = 1;
  int slots = 1;    // inferences at once
  int ahead = 0;    // calls of Infer beyond the slots: batches that are copied while others run
  InputSpec input;  // as the model file takes it: the manifest's, or raw pixels (AIPP), or float16
  DType output_dtype = DType::kUint8;

  int Calls() const { return slots + ahead; }  // of Infer at once
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const BackendInfo& Info() const = 0;

  // Memory for the input or output of Infer; ends before the backend. Throws UserError.
  virtual std::unique_ptr<Buffer> MakeBuffer(size_t size) { return std::make_unique<Buffer>(size); }

  // Runs the `count` <= batch images at `input` (room for a whole batch; what follows the images is padding) and fills
  // `output` and, unless it is null, `confidence` (room for a whole batch too, uint8); all memory is from MakeBuffer.
  // Threads call at once under different numbers `call`, which are below Info().Calls(). Throws UserError.
  virtual void Infer(int call, int64_t count, const uint8_t* input, uint8_t* output, uint8_t* confidence) = 0;
};

struct BackendKind {
  std::string name;                  // as in --backend
  std::vector<std::string> formats;  // of model files it reads
  std::string device;                // the only one it runs on; empty: --device chooses
  std::unique_ptr<Backend> (*create)(const Manifest&, const BackendOptions&);
};

// Those compiled in, best first.
const std::vector<BackendKind>& BuiltBackends();
std::string BuiltBackendNames();

// `name` is one of the built ones or `auto`: the first whose model file is listed and whose device is there.
std::unique_ptr<Backend> CreateBackend(const std::string& name, const Manifest& manifest,
                                       const BackendOptions& options);

// Outputs that a model file must have, the confidence behind the ids.
size_t OutputCount(const Manifest& manifest);

// Throws UserError if a model file's second output is not the confidence of the manifest.
void CheckConfidence(const Manifest& manifest, const ModelFile& file, int64_t batch, DType dtype,
                     const std::vector<int64_t>& shape);

std::unique_ptr<Backend> CreateAclBackend(const Manifest& manifest, const BackendOptions& options);
std::unique_ptr<Backend> CreateMsliteBackend(const Manifest& manifest, const BackendOptions& options);
std::unique_ptr<Backend> CreateOpenvinoBackend(const Manifest& manifest, const BackendOptions& options);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_BACKEND_H_
