// libFuzzer target for all that comes from files. The first byte says what the rest is, as in try_input.h. A UserError
// is a good answer; a crash, a leak or undefined behaviour is not.
#include <cstdint>
#include <vector>

#include "inc/error.h"
#include "test/try_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr int64_t kMaxPixels = 1000000;  // bounds the memory that a file may make the decoders claim
  if (size == 0) return 0;
  try {
    TryInput(static_cast<char>(data[0]), std::vector<uint8_t>(data + 1, data + size), "fuzz/input", kMaxPixels);
  } catch (const mindseg::UserError&) {
  }
  return 0;
}
