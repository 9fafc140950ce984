// A PNG in the output folder that is written row by row, so that a large image is never in memory as a whole.
#ifndef ASCEND310_INFER_INC_PNG_FILE_H_
#define ASCEND310_INFER_INC_PNG_FILE_H_

#include <cstdint>
#include <memory>
#include <opencv2/core.hpp>
#include <string>
#include <vector>

#include "inc/output_folder.h"

struct z_stream_s;  // of zlib

namespace mindseg {

// Its methods throw UserError. A file that is not finished is removed.
class PngFile {
 public:
  // An image of `size` with 8 bits a channel: 1 channel (class ids) or 3.
  PngFile(OutputFolder* output, const std::string& name, const cv::Size& size, int channels);

  // Adds the next rows: CV_8UC1, or CV_8UC3 in BGR order.
  void Write(const cv::Mat& rows);

  // Gives the file its name; all rows have been written.
  void Finish();

 private:
  void Compress(const uint8_t* bytes, size_t size, int flush);
  void WriteChunk(const char* type, const uint8_t* bytes, size_t size);

  AtomicFile file_;
  std::vector<uint8_t> compressed_;
  std::unique_ptr<z_stream_s, void (*)(z_stream_s*)> stream_;
};

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_PNG_FILE_H_
