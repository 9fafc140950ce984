// Tiles, the rows of large images, and what is written row by row.
#include <cmath>
#include <opencv2/imgcodecs.hpp>

#include "inc/error.h"
#include "inc/output_folder.h"
#include "inc/overlay.h"
#include "inc/png_file.h"
#include "inc/tiles.h"
#include "test/check.h"
#include "test/temporary_folder.h"

namespace mindseg {
namespace {

TEST(TilesOfAnySizeAreRead) {
  InputSpec input;
  input.height = 512;
  input.width = 1024;
  const Tiling model = ReadTiling("", std::nullopt, input);
  CHECK_EQ(model.size, cv::Size(1024, 512));
  CHECK_EQ(model.overlap, 64);
  CHECK_EQ(ReadTiling("300x400", 7, input).size, cv::Size(400, 300));
  CHECK_EQ(ReadTiling("300X400", 299, input).overlap, 299);
  CHECK_EQ(ReadTiling("32", 0, input).size, cv::Size(32, 32));
  for (const char* tile : {"31", "32x31", "16385", "x32", "32x", "32x32x32", "-32", "32.5", "9999999999", "a"}) {
    CHECK_THROWS(UserError, ReadTiling(tile, 0, input), "--tile", tile, "32 to 16384");
  }
  for (const int overlap : {-1, 32})
    CHECK_THROWS(UserError, ReadTiling("32x64", overlap, input), "--overlap", "0 to 31");
}

// Every pixel has weights that sum to one, of at most two tiles, which hold it.
TEST(TilesCoverAnAxis) {
  for (const int length : {1, 5, 32, 33, 40, 100, 257}) {
    for (const int tile : {32, 40, 64}) {
      for (const int overlap : {0, 1, 8, 20, 31}) {
        for (const bool blend : {false, true}) {
          std::vector<float> sums(static_cast<size_t>(length));
          std::vector<int> holders(static_cast<size_t>(length));
          const std::vector<Span> spans = Spans(length, tile, overlap, blend);
          for (const Span& span : spans) {
            CHECK(span.start >= 0 && span.start + span.length <= length);
            CHECK(span.first >= span.start && span.end <= span.start + span.length);
            CHECK_EQ(span.weights.size(), static_cast<size_t>(span.end - span.first));
            for (int pixel = span.first; pixel < span.end; ++pixel) {
              sums[static_cast<size_t>(pixel)] += span.weights[static_cast<size_t>(pixel - span.first)];
              ++holders[static_cast<size_t>(pixel)];
            }
          }
          for (const float sum : sums) CHECK(std::abs(sum - 1) < 1e-6f);
          for (const int count : holders) CHECK(count >= 1 && count <= (blend ? 2 : 1));
          CHECK_EQ(spans.back().end, length);
        }
      }
    }
  }
}

TEST(SeamsLieInTheMiddleOfTheOverlap) {
  const std::vector<Span> spans = Spans(90, 40, 10, true);  // starts 0, 30 and, moved back, 50
  CHECK_EQ(spans.size(), size_t{3});
  CHECK_EQ(spans[2].start, 50);
  CHECK_EQ(spans[0].end, 40);  // the seam from 30 to 40
  CHECK_EQ(spans[1].first, 30);
  CHECK_EQ(spans[0].weights[29], 1.0f);
  CHECK(std::abs(spans[0].weights[30] - 0.95f) < 1e-6f);
  CHECK(std::abs(spans[1].weights[9] - 0.95f) < 1e-6f);
  CHECK_EQ(spans[1].end, 65);  // both hold 50 to 70: the seam is 55 to 65
  CHECK_EQ(spans[2].first, 55);
  const std::vector<Span> wide = Spans(450, 300, 150, true);  // a seam has 64 pixels at most, around 225
  CHECK_EQ(wide[0].end, 257);
  CHECK_EQ(wide[1].first, 193);
  const std::vector<Span> nearest = Spans(90, 40, 9, false);  // starts 0, 31 and 50
  CHECK_EQ(nearest[0].end, 36);                               // 35.5 is as near to both centres
  CHECK_EQ(nearest[1].first, 36);
}

TEST(PngsAreWrittenRowByRow) {
  const TemporaryFolder folder;
  OutputFolder output(folder.path() / "out", false);
  for (const int type : {CV_8UC1, CV_8UC3}) {
    cv::Mat image(700, 331, type);  // more than one chunk
    cv::randu(image, 0, 256);
    PngFile file(&output, "a.png", image.size(), image.channels());
    for (int row = 0; row < image.rows; row += 100) file.Write(image.rowRange(row, row + 100));
    const std::filesystem::path path = folder.path() / "out" / "a.png";
    CHECK_EQ(std::filesystem::exists(path), type == CV_8UC3);  // that of before
    file.Finish();
    const cv::Mat read = cv::imread(path.string(), cv::IMREAD_UNCHANGED);
    CHECK_EQ(read.type(), type);
    CHECK_EQ(cv::norm(read, image, cv::NORM_INF), 0.0);
  }
  {
    PngFile(&output, "b.png", {9, 9}, 3).Write(cv::Mat(5, 9, CV_8UC3, cv::Scalar::all(1)));
  }
  // The folder holds a.png and its record: what was not finished is gone.
  CHECK_EQ(std::distance(std::filesystem::directory_iterator(folder.path() / "out"), {}), 2);
}

TEST(OverlaysBlendColours) {
  const cv::Mat bgr(1, 3, CV_8UC3, cv::Scalar(10, 100, 200));
  const cv::Mat ids = (cv::Mat_<uint8_t>(1, 3) << 0, 1, 255);
  const cv::Mat mixed = Overlay(bgr, ids, {{0, 0, 0}, {255, 20, 40}});
  CHECK(mixed.at<cv::Vec3b>(0, 0) == cv::Vec3b(4, 45, 90) || mixed.at<cv::Vec3b>(0, 0) == cv::Vec3b(5, 45, 90));
  CHECK(mixed.at<cv::Vec3b>(0, 1) == cv::Vec3b(26, 56, 230) || mixed.at<cv::Vec3b>(0, 1) == cv::Vec3b(27, 56, 230));
  CHECK(mixed.at<cv::Vec3b>(0, 2) == cv::Vec3b(10, 100, 200));
}

}  // namespace
}  // namespace mindseg

int main() { return check::RunAll(); }
