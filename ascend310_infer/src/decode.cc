#include "inc/decode.h"

#include <algorithm>
#include <iostream>
#include <map>
#include <new>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <optional>
#include <utility>

#include "inc/error.h"
#include "inc/files.h"

namespace mindseg {
namespace {

constexpr int64_t kLongestSide = int64_t{1} << 20;  // OpenCV's
constexpr int64_t kMostDecoded = int64_t{1} << 30;  // pixels at once; OpenCV's

// Throws ItemError for what src/mindseg/data/decode.py refuses too: OpenCV would decode a dozen other formats, and a
// small file that claims a huge size would take all memory. `remedy` is for images of more than `max_pixels`.
void CheckHeader(const ImageHeader& header, const std::filesystem::path& path, int64_t max_pixels,
                 const std::string& remedy) {
  const std::string size = std::to_string(header.height) + "x" + std::to_string(header.width);
  if (header.width < 1 || header.height < 1) throw ItemError(path.string() + ": claims a size of " + size);
  if (header.width > max_pixels / header.height || std::max(header.width, header.height) > kLongestSide) {
    throw ItemError(path.string() + ": image of " + size + " is above the limit of " + std::to_string(max_pixels) +
                    " pixels and sides of " + std::to_string(kLongestSide) + "; make it smaller or " + remedy);
  }
  static const std::set<std::string> kKinds = {
      "", "colour", "palette", "grey", "grey with alpha", "colour with alpha", "CMYK"};
  if (header.whole && (kKinds.count(header.kind) == 0 || header.bits > 16)) {
    throw ItemError(path.string() + ": image is " + header.kind +
                    (header.bits ? ", " + std::to_string(header.bits) + "-bit" : "") +
                    "; it cannot be decoded: convert it to an 8-bit PNG");
  }
}

// 16-bit values v become (v + 128) / 257.
cv::Mat ToBytes(const cv::Mat& image, const ImageHeader& header) {
  if (image.depth() != CV_16U) return image;
  cv::Mat bytes;
  image.convertTo(bytes, CV_8U, 1.0 / 257);
  if (header.directory && header.directory->WhiteIsZero()) cv::bitwise_not(bytes, bytes);
  return bytes;
}

// The flip, as cv::flip counts them, that ends the turn of an image; orientations 5 to 8 begin with a transposition.
std::optional<int> FlipOf(int orientation) {
  constexpr int kBoth = -1;
  constexpr int kTopAndBottom = 0;
  constexpr int kLeftAndRight = 1;
  static const std::map<int, int> kFlips = {{2, kLeftAndRight}, {3, kBoth}, {4, kTopAndBottom},
                                            {6, kLeftAndRight}, {7, kBoth}, {8, kTopAndBottom}};
  const auto flip = kFlips.find(orientation);
  return flip == kFlips.end() ? std::nullopt : std::optional<int>(flip->second);
}

// EXIF 2.32, tag 274.
cv::Mat Turn(const cv::Mat& image, int orientation) {
  cv::Mat turned = image;
  if (orientation >= 5) cv::transpose(image, turned);
  const std::optional<int> flip = FlipOf(orientation);
  if (!flip) return turned;
  cv::Mat flipped;
  cv::flip(turned, flipped, *flip);
  return flipped;
}

// The part of an image as it is stored, of size `stored`, that Turn makes `part` of.
cv::Rect Unturned(cv::Rect part, int orientation, const cv::Size& stored) {
  const bool transposed = orientation >= 5;
  const std::optional<int> flip = FlipOf(orientation);
  if (flip && *flip != 0) part.x = (transposed ? stored.height : stored.width) - part.br().x;
  if (flip && *flip != 1) part.y = (transposed ? stored.width : stored.height) - part.br().y;
  return transposed ? cv::Rect(part.y, part.x, part.height, part.width) : part;
}

ItemError NotWhole(const std::filesystem::path& path, uint64_t size) {
  return ItemError(path.string() + ": not a whole image (" + std::to_string(size) +
                   " bytes: truncated, damaged or no PNG, JPEG, WebP, BMP or TIFF); replace the file");
}

// Decodes a part of a TIFF, as TiffDirectory::Cover gives it, or all of the `bytes` of another file, without turning.
cv::Mat Decode(const ImageHeader& header, const std::vector<uint8_t>& bytes, const cv::Rect& part,
               const std::filesystem::path& path) {
  constexpr int kColour = cv::IMREAD_COLOR | cv::IMREAD_IGNORE_ORIENTATION;
  // OpenCV mixes up planes of 16 bits unless it rounds.
  const bool deep = !header.directory || !header.directory->InPlanes();
  cv::Mat bgr;
  try {
    const std::vector<uint8_t> tiff = header.directory ? header.directory->Copy(part) : std::vector<uint8_t>{};
    bgr = cv::imdecode(header.directory ? tiff : bytes, kColour | (deep ? cv::IMREAD_ANYDEPTH : 0));
  } catch (const cv::Exception& error) {
    throw ItemError(path.string() + ": cannot decode: " + error.err);
  } catch (const std::bad_alloc&) {
    throw ItemError(path.string() + ": cannot decode: it claims a size that does not fit into memory");
  }
  if (bgr.empty() || bgr.size() != part.size()) {
    throw NotWhole(path, header.directory ? header.directory->FileSize() : bytes.size());
  }
  bgr = ToBytes(bgr, header);
  if (bgr.type() != CV_8UC3) {
    throw ItemError(path.string() + ": image cannot be decoded to 8-bit colour: convert it to an 8-bit PNG");
  }
  return bgr;
}

cv::Size StoredSize(const ImageHeader& header) {
  return {static_cast<int>(header.width), static_cast<int>(header.height)};
}

// Decodes a whole image without turning.
cv::Mat DecodeStored(const std::vector<uint8_t>& bytes, const std::filesystem::path& path, int64_t max_pixels,
                     const std::string& remedy, ConversionNotes* notes, ImageHeader* header) {
  const std::optional<ImageHeader> found = ReadImageHeader(bytes);
  if (found) CheckHeader(*found, path, max_pixels, remedy);
  if (!found || !found->whole) throw NotWhole(path, bytes.size());
  const cv::Mat bgr = Decode(*found, bytes, cv::Rect(cv::Point(), StoredSize(*found)), path);
  if (notes != nullptr) notes->Say(*found, path);
  *header = *found;
  return bgr;
}

}  // namespace

void ConversionNotes::Say(const ImageHeader& header, const std::filesystem::path& path) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto say = [&](bool needed, const char* conversion, const std::string& words) {
    if (!needed || !said_.insert(conversion).second) return;
    std::cerr << "note: " + OneLine(path.string() + ": " + words + "; further ones are not named") + "\n";
  };
  say(header.orientation != 1, "orientation",
      "turned by its EXIF orientation (" + std::to_string(header.orientation) + ")");
  say(header.kind.compare(0, 4, "grey") == 0, "grey", "grey, repeated in three channels");
  say(header.alpha, "alpha", "its transparency is left out");
  say(header.bits == 16, "bits", "16-bit, rounded to 8 bits");
  say(header.kind == "CMYK", "CMYK", "CMYK, converted to RGB without a colour profile");
}

cv::Mat DecodeImage(const std::vector<uint8_t>& bytes, const std::filesystem::path& path, int64_t max_pixels,
                    ConversionNotes* notes) {
  ImageHeader header;
  const cv::Mat bgr = DecodeStored(bytes, path, max_pixels, "raise --max_pixels", notes, &header);
  return Turn(bgr, header.orientation);
}

ImageRows::ImageRows(const std::filesystem::path& path, int64_t max_pixels, ConversionNotes* notes)
    : path_(path), max_pixels_(max_pixels) {
  constexpr size_t kLargestFile = (size_t{1} << 31) - 1;  // OpenCV's
  constexpr char kRemedy[] = "store it as a TIFF in tiles";
  if (const std::optional<ImageHeader> tiff = ReadTiffHeader(OpenFile(path))) {
    CheckHeader(*tiff, path, kLongestSide * kLongestSide, "cut it into pieces");
    if (!tiff->whole) throw NotWhole(path, tiff->directory->FileSize());
    if (notes != nullptr) notes->Say(*tiff, path);
    header_ = *tiff;
    return;
  }
  pixels_ = DecodeStored(ReadFile(path, kLargestFile), path, kMostDecoded, kRemedy, notes, &header_);
  cover_ = cv::Rect(cv::Point(), pixels_.size());
}

cv::Size ImageRows::size() const {
  const cv::Size stored = StoredSize(header_);
  return header_.orientation < 5 ? stored : cv::Size(stored.height, stored.width);
}

cv::Mat ImageRows::Read(int begin, int end) {
  const std::string rows = "rows " + std::to_string(begin) + " to " + std::to_string(end);
  if (end - begin > max_pixels_ / size().width) {
    throw ItemError(path_.string() + ": " + rows + " have more than " + std::to_string(max_pixels_) +
                    " pixels; raise --max_pixels or cut the image into pieces");
  }
  const cv::Rect part =
      Unturned(cv::Rect(0, begin, size().width, end - begin), header_.orientation, StoredSize(header_));
  if ((part & cover_) != part) {
    const cv::Rect cover = header_.directory->Cover(part);
    if (cover.height > kMostDecoded / cover.width) {
      throw ItemError(path_.string() + ": " + rows + " lie in tiles or strips of more than " +
                      std::to_string(kMostDecoded) + " pixels; store the TIFF in smaller tiles");
    }
    pixels_ = Decode(header_, {}, cover, path_);
    cover_ = cover;
  }
  return Turn(pixels_(part - cover_.tl()), header_.orientation);
}

}  // namespace mindseg
