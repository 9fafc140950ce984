#include "inc/backend.h"

#include <iostream>

#include "inc/error.h"

namespace mindseg {
namespace {

bool ManifestServes(const Manifest& manifest, const BackendKind& kind) {
  for (const std::string& format : kind.formats) {
    if (manifest.HasFormat(format)) return true;
  }
  return false;
}

std::unique_ptr<Backend> Create(const BackendKind& kind, const Manifest& manifest, const BackendOptions& options) {
  if (!options.device.empty() && !kind.device.empty() && options.device != kind.device) {
    throw UserError("--device " + options.device + ": the " + kind.name + " backend runs on " + kind.device +
                    "; leave it out or choose another --backend");
  }
  return kind.create(manifest, options);
}

std::unique_ptr<Backend> CreateFirstThatWorks(const Manifest& manifest, const BackendOptions& options) {
  std::vector<const BackendKind*> candidates;
  for (const BackendKind& kind : BuiltBackends()) {
    if (ManifestServes(manifest, kind)) candidates.push_back(&kind);
  }
  if (candidates.empty()) {
    throw UserError(manifest.path.string() + ": models: no file that a built backend reads (built: " +
                    BuiltBackendNames() + "); export ONNX or build with the SDK of your device");
  }
  for (size_t i = 0; i + 1 < candidates.size(); ++i) {
    try {
      return Create(*candidates[i], manifest, options);
    } catch (const UserError& error) {
      std::cerr << "note: backend " << candidates[i]->name << " cannot be used: " << error.what() << "\n";
    }
  }
  return Create(*candidates.back(), manifest, options);
}

}  // namespace

const std::vector<BackendKind>& BuiltBackends() {
  static const std::vector<BackendKind> kBuilt = {
#ifdef SEGMENT_WITH_ACL
      {"acl", {"om"}, "ascend", CreateAclBackend},
#endif
#ifdef SEGMENT_WITH_MSLITE
      {"mslite", {"mindir"}, "", CreateMsliteBackend},
#endif
#ifdef SEGMENT_WITH_OPENVINO
      {"openvino", {"onnx", "openvino"}, "cpu", CreateOpenvinoBackend},
#endif
  };
  return kBuilt;
}

std::string BuiltBackendNames() {
  std::string names;
  for (const BackendKind& kind : BuiltBackends()) names += (names.empty() ? "" : ", ") + kind.name;
  return names.empty() ? "none" : names;
}

std::unique_ptr<Backend> CreateBackend(const std::string& name, const Manifest& manifest,
                                       const BackendOptions& options) {
  if (name == "auto") return CreateFirstThatWorks(manifest, options);
  for (const BackendKind& kind : BuiltBackends()) {
    if (kind.name == name) return Create(kind, manifest, options);
  }
  throw UserError("--backend " + name + ": not built into this program (built: " + BuiltBackendNames() +
                  "); set ASCEND_HOME_PATH (acl), MS_LITE_HOME (mslite) or OpenVINO_DIR (openvino) and run build.sh");
}

size_t OutputCount(const Manifest& manifest) { return manifest.output.confidence.empty() ? 1 : 2; }

void CheckConfidence(const Manifest& manifest, const ModelFile& file, int64_t batch, DType dtype,
                     const std::vector<int64_t>& shape) {
  const std::vector<int64_t> expected = manifest.output.Shape(batch);
  if (dtype == DType::kUint8 && shape == expected) return;
  throw UserError(manifest.path.string() + ": output.confidence: says '" + manifest.output.confidence + "' uint8 " +
                  ShapeName(expected) + " but " + file.path.string() + " has " + DTypeName(dtype) + " " +
                  ShapeName(shape) + "; is this the manifest of another model?");
}

}  // namespace mindseg
