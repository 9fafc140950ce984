#include "inc/tiles.h"

#include <algorithm>
#include <cmath>
#include <regex>
#include <utility>

#include "inc/error.h"
#include "inc/restore.h"

namespace mindseg {
namespace {

constexpr int kSmallestSide = 32;
constexpr int kLargestSide = 16384;

// Multiplies rows, then columns, as the Python package does, so that both round alike.
cv::Mat Weighted(const cv::Mat& logits, const Span& row, const Span& column) {
  cv::Mat part = logits(cv::Range(row.first - row.start, row.end - row.start),
                        cv::Range(column.first - column.start, column.end - column.start))
                     .clone();
  for (int y = 0; y < part.rows; ++y) {
    auto* values = part.ptr<float>(y);
    const float weight = row.weights[static_cast<size_t>(y)];
    for (int x = 0; x < part.cols; ++x) values[x] = values[x] * weight * column.weights[static_cast<size_t>(x)];
  }
  return part;
}

}  // namespace

Tiling ReadTiling(const std::string& tile, std::optional<int> overlap, const InputSpec& input) {
  Tiling tiling{{input.width, input.height}, 0};
  static const std::regex kSize("([0-9]{1,5})([xX]([0-9]{1,5}))?");
  std::smatch words;
  if (!tile.empty()) {
    if (!std::regex_match(tile, words, kSize)) words = {};
    const int height = words.empty() ? 0 : std::stoi(words[1]);
    const int width = words.empty() || !words[3].matched ? height : std::stoi(words[3]);
    if (std::min(height, width) < kSmallestSide || std::max(height, width) > kLargestSide) {
      throw UserError("--tile " + tile + ": must be HxW or one number, each side " + std::to_string(kSmallestSide) +
                      " to " + std::to_string(kLargestSide) + " pixels");
    }
    tiling.size = {width, height};
  }
  const int shorter = std::min(tiling.size.width, tiling.size.height);
  tiling.overlap = overlap.value_or(shorter / 8);
  if (tiling.overlap < 0 || tiling.overlap >= shorter) {
    throw UserError("--overlap " + std::to_string(tiling.overlap) + ": must be 0 to " + std::to_string(shorter - 1) +
                    ", below the shorter side of a tile");
  }
  return tiling;
}

std::vector<Span> Spans(int length, int tile, int overlap, bool blend) {
  constexpr int kWidestSeam = 64;
  tile = std::min(tile, length);
  const int step = std::max(tile - overlap, 1);
  const int count = (length - tile + step - 1) / step + 1;
  const auto start = [&](int number) { return std::min(number * step, length - tile); };
  const int seam = blend ? std::min({kWidestSeam, overlap, step / 2}) : 0;
  // The share of the tiles behind `number` in a pixel: from 0 to 1 across the seam, the middle of what both tiles hold.
  const auto share = [&](int number, int pixel) {
    if (number < 0) return 1.0;
    if (number + 1 == count) return 0.0;
    const double distance = pixel + 0.5 - (start(number) + tile + start(number + 1)) / 2.0;
    return seam > 0 ? std::clamp(distance / seam + 0.5, 0.0, 1.0) : distance > 0 ? 1.0 : 0.0;
  };
  std::vector<Span> spans;
  for (int number = 0; number < count; ++number) {
    Span span{start(number), tile, start(number), start(number) + tile, {}};
    const auto weight = [&](int pixel) { return static_cast<float>(share(number - 1, pixel) - share(number, pixel)); };
    while (weight(span.first) == 0) ++span.first;
    while (weight(span.end - 1) == 0) --span.end;
    for (int pixel = span.first; pixel < span.end; ++pixel) span.weights.push_back(weight(pixel));
    spans.push_back(std::move(span));
  }
  return spans;
}

TileJoiner::TileJoiner(const cv::Size& image, const Tiling& tiling, const OutputSpec& output, const ResizeSpec& resize,
                       DType dtype)
    : output_(output),
      resize_(resize),
      dtype_(dtype),
      rows_(Spans(image.height, tiling.size.height, tiling.overlap, output.logits)),
      columns_(Spans(image.width, tiling.size.width, tiling.overlap, output.logits)),
      left_(static_cast<size_t>(output.classes)),
      above_(left_),
      below_(left_) {}

void TileJoiner::Add(const uint8_t* tensor, const uint8_t* confidence) {
  const Span& row = rows_[row_];
  const Span& column = columns_[column_];
  if (column_ == 0) {
    end_ = row_ + 1 < rows_.size() ? rows_[row_ + 1].first : rows_.back().end;
    ids_ = cv::Mat(end_ - row.first, columns_.back().end, CV_8UC1);
    if (confidence != nullptr) confidence_ = cv::Mat(ids_.size(), CV_8UC1);
  }
  const int right = column_ + 1 < columns_.size() ? columns_[column_ + 1].first : columns_.back().end;
  cv::Mat finished = ids_.colRange(column.first, right);
  if (output_.logits) {
    AddLogits(tensor, right, &finished);
  } else {
    const cv::Size tile(column.length, row.length);
    const cv::Rect used(cv::Point(column.first - column.start, row.first - row.start), finished.size());
    RestoreIds(tensor, dtype_, output_, resize_, tile)(used).copyTo(finished);
    if (confidence != nullptr) {
      const cv::Mat plane(output_.height, output_.width, CV_8UC1, const_cast<uint8_t*>(confidence));  // only read
      RestoreNearest(plane, resize_, tile)(used).copyTo(confidence_.colRange(column.first, right));
    }
  }
  ++column_;
}

void TileJoiner::AddLogits(const uint8_t* tensor, int right, cv::Mat* finished) {
  const Span& row = rows_[row_];
  const Span& column = columns_[column_];
  const std::vector<float> logits = ReadLogits(tensor, dtype_, output_);
  const int rows = end_ - row.first;
  const int columns = right - column.first;
  cv::Mat largest;
  cv::Mat ids;
  for (int label = 0; label < output_.classes; ++label) {
    const auto index = static_cast<size_t>(label);
    cv::Mat part = Weighted(RestoreLogits(logits, label, output_, resize_, {column.length, row.length}), row, column);
    if (column_ > 0 && !left_[index].empty()) part.colRange(0, left_[index].cols) += left_[index];
    left_[index] = part.colRange(columns, part.cols).clone();
    part = part.colRange(0, columns);
    if (row_ > 0 && !above_[index].empty()) {
      part.rowRange(0, above_[index].rows) += above_[index].colRange(column.first, right);
    }
    if (column_ == 0) below_[index] = cv::Mat(part.rows - rows, columns_.back().end, CV_32FC1);
    if (part.rows > rows) part.rowRange(rows, part.rows).copyTo(below_[index].colRange(column.first, right));
    TakeLarger(part.rowRange(0, rows), label, &largest, &ids);
  }
  ids.copyTo(*finished);
}

cv::Mat TileJoiner::NextRows() {
  ++row_;
  column_ = 0;
  std::swap(above_, below_);
  return ids_;
}

}  // namespace mindseg
