// Tiles that an image is cut into, and their answers joined again. docs/deployment.md has the rule, which
// src/mindseg/inference/tiles.py follows, too.
#ifndef ASCEND310_INFER_INC_TILES_H_
#define ASCEND310_INFER_INC_TILES_H_

#include <cstdint>
#include <opencv2/core.hpp>
#include <optional>
#include <string>
#include <vector>

#include "inc/manifest.h"
#include "inc/tensor.h"

namespace mindseg {

struct Tiling {
  cv::Size size;    // of a tile
  int overlap = 0;  // rows or columns that neighbours share at least
};

// `tile` is HxW or one number; empty: the size of the model's input. Without `overlap` it is an eighth of the shorter
// side. Throws UserError.
Tiling ReadTiling(const std::string& tile, std::optional<int> overlap, const InputSpec& input);

// Rows or columns of a tile.
struct Span {
  int start = 0;               // first pixel of the tile in the image
  int length = 0;              // pixels of the tile
  int first = 0;               // first pixel that it gives to the result
  int end = 0;                 // the one behind the last
  std::vector<float> weights;  // of these, 0 to 1
};

// The tiles along an axis of `length` pixels; the weights of a pixel sum to one. `blend`: tiles fade into each other;
// otherwise a pixel belongs to the tile whose centre is nearest.
std::vector<Span> Spans(int length, int tile, int overlap, bool blend);

// Joins the answers of tiles, row of tiles after row of tiles. Of the rows above, only those of the seam are kept.
class TileJoiner {
 public:
  TileJoiner(const cv::Size& image, const Tiling& tiling, const OutputSpec& output, const ResizeSpec& resize,
             DType dtype);

  const std::vector<Span>& rows() const { return rows_; }
  const std::vector<Span>& columns() const { return columns_; }

  // Takes the model's output for the next tile of the current row of tiles, from the left to the right, and unless it
  // is null the confidence of its ids. Throws ItemError for ids outside 0..255.
  void Add(const uint8_t* tensor, const uint8_t* confidence);

  // Ends the row of tiles. Class ids (CV_8UC1) of the rows of the image that no further tile changes, from the first
  // row of its span on.
  cv::Mat NextRows();

  // The confidence (CV_8UC1) of what NextRows gave last.
  const cv::Mat& Confidence() const { return confidence_; }

 private:
  void AddLogits(const uint8_t* tensor, int right, cv::Mat* finished);

  const OutputSpec& output_;
  const ResizeSpec& resize_;
  const DType dtype_;
  const std::vector<Span> rows_;
  const std::vector<Span> columns_;
  size_t row_ = 0;
  size_t column_ = 0;
  int end_ = 0;                 // row of the image behind those that the current row of tiles finishes
  cv::Mat ids_;                 // of these
  cv::Mat confidence_;          // of these
  std::vector<cv::Mat> left_;   // by class: weighted logits for the first columns of the next tile
  std::vector<cv::Mat> above_;  // by class: the same for the first rows of the current row of tiles
  std::vector<cv::Mat> below_;  // by class: the same for those of the next one
};

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_TILES_H_
