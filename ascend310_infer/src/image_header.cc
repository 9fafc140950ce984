#include "inc/image_header.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <tuple>

#include "inc/bytes.h"

namespace mindseg {
namespace {

using Bytes = std::vector<uint8_t>;

// Reads the orientation from the EXIF data in bytes `begin` to `end` of a file.
int ReadOrientation(const Bytes& bytes, uint64_t begin, uint64_t end) {
  constexpr char kStart[] = "Exif";  // and two zeros; only some files have it
  ByteView exif = ByteView(bytes).Part(begin, end);
  if (Holds(exif, 0, kStart) && Number(exif, 4, 2, Order::kBig) == 0) exif = exif.Part(6, exif.size());
  const std::optional<TiffDirectory> directory = TiffDirectory::Read(exif);
  return directory ? directory->Orientation() : 1;
}

std::optional<ImageHeader> ReadPng(const Bytes& bytes) {
  constexpr size_t kFirstChunk = 8;
  constexpr size_t kAroundContent = 12;  // length, type and checksum
  if (bytes.size() < 26 || Number(bytes, kFirstChunk, 4, Order::kBig) != 13 || !Holds(bytes, 12, "IHDR")) {
    return std::nullopt;
  }
  ImageHeader header;
  header.width = Number(bytes, 16, 4, Order::kBig);
  header.height = Number(bytes, 20, 4, Order::kBig);
  header.bits = bytes[24];
  switch (bytes[25]) {
    case 0:
      header.kind = "grey";
      break;
    case 2:
      header.kind = "colour";
      break;
    case 3:
      header.kind = "palette";
      break;
    case 4:
      header.kind = "grey with alpha";
      break;
    case 6:
      header.kind = "colour with alpha";
      break;
    default:
      header.kind = "unknown";
  }
  header.alpha = bytes[25] == 4 || bytes[25] == 6;
  bool exif = false;
  for (size_t at = kFirstChunk; !header.whole && at + kAroundContent <= bytes.size();) {
    const size_t end = at + kAroundContent + static_cast<size_t>(Number(bytes, at, 4, Order::kBig));
    if (end > bytes.size()) break;
    header.whole = Holds(bytes, at + 4, "IEND");
    header.alpha = header.alpha || Holds(bytes, at + 4, "tRNS");
    if (!exif && Holds(bytes, at + 4, "eXIf")) {
      exif = true;
      header.orientation = ReadOrientation(bytes, at + 8, end - 4);
    }
    at = end;
  }
  return header;
}

// The JPEG decoder fills the missing part of a file that ends early with grey and reports success, so look for the end
// mark behind the header of the first scan, at `at`. A byte 0xff is followed there by one that belongs to the pixels,
// or begins a segment, or the end mark; any other mark belongs to what follows an image that is cut off. The rule of
// src/mindseg/data/jpeg.py.
bool HasEndMark(const Bytes& bytes, size_t at) {
  while (at + 1 < bytes.size()) {
    const void* found = std::memchr(bytes.data() + at, 0xff, bytes.size() - 1 - at);
    if (found == nullptr) return false;
    at = static_cast<size_t>(static_cast<const uint8_t*>(found) - bytes.data());
    const uint8_t kind = bytes[at + 1];
    const bool segment = kind == 0xc4 || kind == 0xcc || (kind >= 0xda && kind <= 0xdd) ||
                         (kind >= 0xe0 && kind <= 0xef) || kind == 0xfe;
    if (kind == 0x00 || kind == 0xff || (kind & 0xf8) == 0xd0) {
      ++at;
    } else if (kind == 0xd9) {
      return true;
    } else if (segment && at + 4 <= bytes.size()) {
      at += 2 + static_cast<size_t>(Number(bytes, at + 2, 2, Order::kBig));
    } else {
      return false;
    }
  }
  return false;
}

std::string JpegKind(uint8_t channels) {
  if (channels == 1) return "grey";
  if (channels == 3) return "colour";
  return channels == 4 ? "CMYK" : "of " + std::to_string(channels) + " channels";
}

// A thumbnail in the EXIF segment has a frame and an end mark of its own, so segments are skipped as a whole.
std::optional<ImageHeader> ReadJpeg(const Bytes& bytes) {
  std::optional<ImageHeader> header;
  bool exif = false;
  int orientation = 1;
  for (size_t at = 2; at + 4 <= bytes.size();) {
    const uint8_t kind = bytes[at + 1];
    if (bytes[at] != 0xff || kind == 0x00 || kind == 0xff) {
      ++at;  // no mark, or a byte that fills up
    } else if (kind == 0x01 || (kind >= 0xd0 && kind <= 0xd8)) {
      at += 2;  // marks without a segment
    } else if (kind == 0xd9) {
      return header;
    } else {
      const bool frame = kind >= 0xc0 && kind <= 0xcf && kind != 0xc4 && kind != 0xc8 && kind != 0xcc;
      if (frame && !header && at + 10 <= bytes.size()) {
        header.emplace();
        header->height = Number(bytes, at + 5, 2, Order::kBig);
        header->width = Number(bytes, at + 7, 2, Order::kBig);
        header->kind = JpegKind(bytes[at + 9]);
        header->bits = bytes[at + 4];
      }
      const size_t end = at + 2 + static_cast<size_t>(Number(bytes, at + 2, 2, Order::kBig));
      if (kind == 0xe1 && !exif && end <= bytes.size() && Holds(bytes, at + 4, "Exif") &&
          Number(bytes, at + 8, 2, Order::kBig) == 0) {
        exif = true;
        orientation = ReadOrientation(bytes, at + 4, end);
      }
      at = end;
      if (kind == 0xda) {
        if (header) header->whole = HasEndMark(bytes, at);
        if (header) header->orientation = orientation;
        return header;
      }
    }
  }
  return header;
}

int FindWebpOrientation(const Bytes& bytes) {
  constexpr int kMostChunks = 1000;
  uint64_t at = 12;
  for (int i = 0; i < kMostChunks && ByteView(bytes).Has(at, 8); ++i) {
    const uint64_t length = Unsigned(bytes, at + 4, 4, Order::kLittle);
    if (Holds(bytes, at, "EXIF")) return ReadOrientation(bytes, at + 8, at + 8 + length);
    at += 8 + length + length % 2;
  }
  return 1;
}

std::optional<ImageHeader> ReadWebp(const Bytes& bytes) {
  if (bytes.size() < 30) return std::nullopt;
  ImageHeader header;
  header.whole = 8 + Number(bytes, 4, 4, Order::kLittle) <= static_cast<int64_t>(bytes.size());
  if (Holds(bytes, 12, "VP8 ")) {
    header.width = Number(bytes, 26, 2, Order::kLittle) & 0x3fff;
    header.height = Number(bytes, 28, 2, Order::kLittle) & 0x3fff;
  } else if (Holds(bytes, 12, "VP8L")) {
    const int64_t sides = Number(bytes, 21, 4, Order::kLittle);
    header.width = (sides & 0x3fff) + 1;
    header.height = (sides >> 14 & 0x3fff) + 1;
    header.alpha = (sides >> 28 & 1) != 0;
  } else if (Holds(bytes, 12, "VP8X")) {
    header.width = Number(bytes, 24, 3, Order::kLittle) + 1;
    header.height = Number(bytes, 27, 3, Order::kLittle) + 1;
    header.alpha = (bytes[20] & 16) != 0;
    header.orientation = FindWebpOrientation(bytes);
    if (bytes[20] & 2) header.kind = "an animation";
  } else {
    return std::nullopt;
  }
  return header;
}

std::optional<ImageHeader> ReadBmp(const Bytes& bytes) {
  if (bytes.size() < 34) return std::nullopt;
  ImageHeader header;
  int64_t pixel_bits = 0;
  if (Number(bytes, 14, 4, Order::kLittle) == 12) {  // the oldest form of the header
    header.width = Number(bytes, 18, 2, Order::kLittle);
    header.height = Number(bytes, 20, 2, Order::kLittle);
    pixel_bits = Number(bytes, 24, 2, Order::kLittle);
  } else {
    header.width = static_cast<int32_t>(Number(bytes, 18, 4, Order::kLittle));
    // Negative: the rows stand from top to bottom.
    header.height = std::abs(int64_t{static_cast<int32_t>(Number(bytes, 22, 4, Order::kLittle))});
    pixel_bits = Number(bytes, 28, 2, Order::kLittle);
    const int64_t packing = Number(bytes, 30, 4, Order::kLittle);
    if (packing != 0 && packing != 3) header.kind = "packed";
  }
  // Divided rather than multiplied: a size that is made up must not overflow.
  const int64_t row = std::max<int64_t>(1, (header.width * pixel_bits + 31) / 32 * 4);
  const int64_t room = static_cast<int64_t>(bytes.size()) - Number(bytes, 10, 4, Order::kLittle);
  header.whole = room >= 0 && header.height <= room / row;
  return header;
}

}  // namespace

std::optional<ImageHeader> ReadImageHeader(const Bytes& bytes) {
  if (Holds(bytes, 0, "\x89PNG\r\n\x1a\n")) return ReadPng(bytes);
  if (Holds(bytes, 0, "\xff\xd8\xff")) return ReadJpeg(bytes);
  if (Holds(bytes, 0, "RIFF") && Holds(bytes, 8, "WEBP")) return ReadWebp(bytes);
  if (Holds(bytes, 0, "BM")) return ReadBmp(bytes);
  return ReadTiffHeader(ByteView(bytes));
}

std::optional<ImageHeader> ReadTiffHeader(const ByteSource& source) {
  ImageHeader header;
  header.directory = TiffDirectory::Read(source);
  const auto pixels = header.directory ? header.directory->PixelKind() : std::nullopt;
  if (!pixels) return std::nullopt;
  header.width = header.directory->Width();
  header.height = header.directory->Height();
  std::tie(header.kind, header.bits) = *pixels;
  header.whole = header.directory->IsWhole();
  header.alpha = header.kind.find("alpha") != std::string::npos;
  header.orientation = header.directory->Orientation();
  return header;
}

}  // namespace mindseg
