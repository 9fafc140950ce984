// Says of each file whether the runner accepts it, one line a file: `accepted`, or the message of the refusal.
//   check_inputs M|N|B|I FILE...       manifests, files.txt, bins or images
//   check_inputs P FILE...             images: HEIGHTxWIDTH and the SHA-256 of the decoded BGR pixels
//   check_inputs R FILE...             the same of images that are read by rows, some of them twice
#include <algorithm>
#include <exception>
#include <iostream>
#include <string>

#include "inc/error.h"
#include "inc/files.h"
#include "test/try_input.h"

namespace {

constexpr size_t kLargestFile = size_t{1} << 30;

cv::Mat ReadByRows(const std::string& path) {
  constexpr int kStep = 7;
  constexpr int kOverlap = 3;
  mindseg::ImageRows image(path, mindseg::kMaxPixels, nullptr);
  cv::Mat bgr(image.size(), CV_8UC3);
  for (int begin = 0; begin < bgr.rows; begin += kStep) {
    const int end = std::min(begin + kStep + kOverlap, bgr.rows);
    image.Read(begin, end).copyTo(bgr.rowRange(begin, end));
  }
  return bgr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: check_inputs M|N|B|I|P|R FILE...\n";
    return 2;
  }
  const char kind = argv[1][0];
  for (int i = 2; i < argc; ++i) {
    try {
      if (kind == 'P' || kind == 'R') {
        const cv::Mat bgr =
            kind == 'R' ? ReadByRows(argv[i]) : mindseg::DecodeImage(mindseg::ReadFile(argv[i], kLargestFile), argv[i]);
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
