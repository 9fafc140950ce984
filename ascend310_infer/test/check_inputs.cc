// Says of each file whether the runner accepts it, one line a file: `accepted`, or the message of the refusal.
//   check_inputs M|N|B|I FILE...       manifests, files.txt, bins or images
//   check_inputs P FILE...             images: HEIGHTxWIDTH and the SHA-256 of the decoded BGR pixels
#include <exception>
#include <iostream>
#include <string>

#include "inc/error.h"
#include "inc/files.h"
#include "test/try_input.h"

int main(int argc, char** argv) {
  constexpr size_t kLargestFile = size_t{1} << 30;
  if (argc < 2) {
    std::cerr << "usage: check_inputs M|N|B|I|P FILE...\n";
    return 2;
  }
  const char kind = argv[1][0];
  for (int i = 2; i < argc; ++i) {
    try {
      if (kind == 'P') {
        const cv::Mat bgr = mindseg::DecodeImage(mindseg::ReadFile(argv[i], kLargestFile), argv[i]);
        std::cout << bgr.rows << "x" << bgr.cols << " " << mindseg::Sha256(bgr.data, bgr.total() * bgr.elemSize())
                  << "\n";
        continue;
      }
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
