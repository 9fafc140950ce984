#include "inc/png_file.h"

#include <zlib.h>

#include <cstring>
#include <new>

namespace mindseg {
namespace {

constexpr size_t kChunk = size_t{1} << 16;

void AppendBig(uint64_t number, std::vector<uint8_t>* bytes) {
  for (const int shift : {24, 16, 8, 0}) bytes->push_back(static_cast<uint8_t>(number >> shift));
}

void EndStream(z_stream* stream) {
  deflateEnd(stream);
  delete stream;
}

// A row behind the number of its filter: class ids unfiltered, since equal ones lie side by side; colours in RGB order,
// as differences to the pixel on the left, since photographs are smooth.
void FillRow(const cv::Mat& rows, int y, std::vector<uint8_t>* line) {
  constexpr uint8_t kNone = 0;
  constexpr uint8_t kSub = 1;
  const uint8_t* row = rows.ptr<uint8_t>(y);
  line->resize(1 + static_cast<size_t>(rows.cols) * rows.elemSize());
  if (rows.channels() == 1) {
    line->front() = kNone;
    std::memcpy(line->data() + 1, row, line->size() - 1);
    return;
  }
  line->front() = kSub;
  for (int x = 0; x < rows.cols; ++x) {
    for (int c = 0; c < 3; ++c) {
      const int left = x > 0 ? row[3 * (x - 1) + 2 - c] : 0;
      (*line)[static_cast<size_t>(1 + 3 * x + c)] = static_cast<uint8_t>(row[3 * x + 2 - c] - left);
    }
  }
}

}  // namespace

PngFile::PngFile(OutputFolder* output, const std::string& name, const cv::Size& size, int channels)
    : file_(output->Begin(name)), compressed_(kChunk), stream_(new z_stream{}, EndStream) {
  constexpr uint8_t kSignature[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  constexpr uint8_t kGrey = 0;
  constexpr uint8_t kColour = 2;
  // Masks compress well anyway, and higher levels cost more time than the network on fast devices.
  constexpr int kLevel = 1;
  if (deflateInit(stream_.get(), kLevel) != Z_OK) throw std::bad_alloc();
  stream_->next_out = compressed_.data();
  stream_->avail_out = kChunk;
  file_.Write(kSignature, sizeof(kSignature));
  std::vector<uint8_t> header;
  AppendBig(static_cast<uint64_t>(size.width), &header);
  AppendBig(static_cast<uint64_t>(size.height), &header);
  for (const uint8_t byte : {uint8_t{8}, channels == 1 ? kGrey : kColour, uint8_t{0}, uint8_t{0}, uint8_t{0}}) {
    header.push_back(byte);
  }
  WriteChunk("IHDR", header.data(), header.size());
}

void PngFile::Write(const cv::Mat& rows) {
  std::vector<uint8_t> line;
  for (int y = 0; y < rows.rows; ++y) {
    FillRow(rows, y, &line);
    Compress(line.data(), line.size(), Z_NO_FLUSH);
  }
}

void PngFile::Finish() {
  Compress(nullptr, 0, Z_FINISH);
  WriteChunk("IDAT", compressed_.data(), kChunk - stream_->avail_out);
  WriteChunk("IEND", nullptr, 0);
  file_.Finish();
}

void PngFile::Compress(const uint8_t* bytes, size_t size, int flush) {
  stream_->next_in = const_cast<uint8_t*>(bytes);  // only read
  stream_->avail_in = static_cast<uInt>(size);
  while (true) {
    const int status = deflate(stream_.get(), flush);
    if (stream_->avail_out > 0 || status == Z_STREAM_END) return;
    WriteChunk("IDAT", compressed_.data(), kChunk);
    stream_->next_out = compressed_.data();
    stream_->avail_out = kChunk;
  }
}

void PngFile::WriteChunk(const char* type, const uint8_t* bytes, size_t size) {
  std::vector<uint8_t> chunk;
  AppendBig(size, &chunk);
  chunk.insert(chunk.end(), type, type + 4);
  if (size > 0) chunk.insert(chunk.end(), bytes, bytes + size);
  AppendBig(crc32(0, chunk.data() + 4, static_cast<uInt>(size + 4)), &chunk);
  file_.Write(chunk.data(), chunk.size());
}

}  // namespace mindseg
