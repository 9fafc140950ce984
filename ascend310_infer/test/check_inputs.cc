// Says of each file whether the runner accepts it, one line a file: `accepted`, or the message of the refusal.
//   check_inputs M|N|B|I FILE...       manifests, files.txt, bins or images
#include <exception>
#include <iostream>
#include <string>

#include "inc/error.h"
#include "inc/files.h"
#include "test/try_input.h"

int main(int argc, char** argv) {
  constexpr size_t kLargestFile = size_t{1} << 30;
  if (argc < 2) {
    std::cerr << "usage: check_inputs M|N|B|I FILE...\n";
    return 2;
  }
  const char kind = argv[1][0];
  for (int i = 2; i < argc; ++i) {
    try {
      if (kind == 'M') {
        mindseg::LoadManifest(argv[i]);
      } else {
        TryInput(kind, mindseg::ReadFile(argv[i], kLargestFile), argv[i]);
      }
      std::cout << "accepted\n";
    } catch (const mindseg::UserError& error) {
      std::cout << error.what() << "\n";
    }
  }
  return 0;
}
