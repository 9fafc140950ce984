// Segments one photograph with an exported model and writes the class ids as a grey PNG:
//   segment_one export/deploy.yaml photo.jpg mask.png
#include <mindseg/predictor.h>

#include <exception>
#include <iostream>
#include <opencv2/imgcodecs.hpp>
#include <vector>

namespace {

// Prints the classes that were found, with their share of the image.
void PrintShares(const cv::Mat& ids, const std::vector<std::string>& classes) {
  for (size_t id = 0; id < classes.size(); ++id) {
    const int pixels = cv::countNonZero(ids == static_cast<int>(id));
    if (pixels > 0) std::cout << classes[id] << ": " << 100.0 * pixels / static_cast<double>(ids.total()) << " %\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: segment_one MANIFEST IMAGE MASK.png\n";
    return 2;
  }
  try {
    // 8-bit colour, turned by its EXIF orientation, as segment run does for more formats.
    const cv::Mat image = cv::imread(argv[2], cv::IMREAD_COLOR);
    if (image.empty()) {
      std::cerr << "error: " << argv[2] << ": not an image\n";
      return 1;
    }
    mindseg::Predictor predictor(argv[1]);
    const cv::Mat ids = predictor.Predict(image);
    PrintShares(ids, predictor.classes());
    if (!cv::imwrite(argv[3], ids)) {
      std::cerr << "error: " << argv[3] << ": cannot be written\n";
      return 1;
    }
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
