#include "inc/tiff.h"

#include <algorithm>
#include <set>

namespace mindseg {
namespace {

constexpr int kWidth = 256;
constexpr int kHeight = 257;
constexpr int kBits = 258;
constexpr int kCompression = 259;
constexpr int kPhotometric = 262;
constexpr int kOrientation = 274;
constexpr int kSamples = 277;
constexpr int kStripRows = 278;
constexpr int kPlanes = 284;
constexpr int kTileWidth = 322;
constexpr int kTileHeight = 323;
constexpr int kExtra = 338;
constexpr int kFormat = 339;
constexpr int kStripPlaces = 273;
constexpr int kStripLengths = 279;
constexpr int kTilePlaces = 324;
constexpr int kTileLengths = 325;
constexpr uint64_t kNone = ~uint64_t{0};
constexpr uint64_t kUncompressed = 1;
constexpr uint64_t kRgb = 2;
constexpr uint64_t kYcbcr = 6;

// Of a number, by the type of the entry: BYTE, SHORT, LONG, LONG8.
uint64_t TypeBytes(uint64_t type) {
  switch (type) {
    case 1:
      return 1;
    case 3:
      return 2;
    case 4:
      return 4;
    case 16:
      return 8;
    default:
      return 0;
  }
}

// What decoding needs, besides the tag of the fourth channel: of FAX, of the predictor, palette, JPEG and YCbCr, too.
bool IsNeeded(int tag, bool tiled) {
  static const std::set<int> kNeeded = {kWidth, kHeight, kBits, kCompression, kPhotometric, 266, kSamples, kPlanes,
                                        292,    293,     317,   320,          347,          529, 530,      532};
  static const std::set<int> kStripTags = {kStripPlaces, kStripLengths};
  static const std::set<int> kTileTags = {kTileWidth, kTileHeight, kTilePlaces, kTileLengths};
  return kNeeded.count(tag) > 0 || (tiled ? kTileTags : kStripTags).count(tag) > 0;
}

// Kind by photometric interpretation and number of channels, empty for what cannot be read.
std::string KindName(uint64_t photometric, uint64_t samples) {
  static const std::map<std::pair<uint64_t, uint64_t>, std::string> kKinds = {{{0, 1}, "grey"},
                                                                              {{1, 1}, "grey"},
                                                                              {{0, 2}, "grey with alpha"},
                                                                              {{1, 2}, "grey with alpha"},
                                                                              {{2, 3}, "colour"},
                                                                              {{2, 4}, "colour with alpha"},
                                                                              {{3, 1}, "palette"},
                                                                              {{5, 4}, "CMYK"},
                                                                              {{6, 3}, "colour"}};
  const auto found = kKinds.find({photometric, samples});
  return found == kKinds.end() ? "" : found->second;
}

bool IsReadableDepth(uint64_t depth, const std::string& kind, uint64_t photometric) {
  if (depth == 8) return true;
  if (depth == 16) return kind == "grey" || (photometric == kRgb);
  return depth == 1 && kind == "grey";
}

bool IsReadableCompression(uint64_t compression, uint64_t depth) {
  static const std::set<uint64_t> kKnown = {kUncompressed, 5, 7, 8, 32773, 32946};  // LZW, JPEG, Deflate, PackBits
  return kKnown.count(compression) > 0 || (compression >= 2 && compression <= 4 && depth == 1);  // or FAX
}

void Append(std::vector<uint8_t>* bytes, uint64_t number, size_t count, Order order) {
  for (size_t i = 0; i < count; ++i) {
    bytes->push_back(static_cast<uint8_t>(number >> 8 * (order == Order::kBig ? count - 1 - i : i)));
  }
}

}  // namespace

std::optional<TiffDirectory> TiffDirectory::Read(const ByteView& bytes) {
  constexpr uint64_t kMostEntries = 1000;           // files have below 100
  constexpr size_t kLargestFile = size_t{1} << 31;  // OpenCV's
  TiffDirectory directory(bytes);
  const bool intel = Holds(bytes, 0, "II");
  if ((!intel && !Holds(bytes, 0, "MM")) || bytes.size() < 16 || bytes.size() >= kLargestFile) return std::nullopt;
  const Order order = directory.order_ = intel ? Order::kLittle : Order::kBig;
  const uint64_t version = Unsigned(bytes, 2, 2, order);
  const bool big = directory.big_ = version == 43;
  if (version != 42 && version != 43) return std::nullopt;
  if (big && (Unsigned(bytes, 4, 2, order) != 8 || Unsigned(bytes, 6, 2, order) != 0)) return std::nullopt;
  const uint64_t at = big ? Unsigned(bytes, 8, 8, order) : Unsigned(bytes, 4, 4, order);
  const uint64_t head = big ? 8 : 2;
  const uint64_t size = big ? 20 : 12;
  if (!bytes.Has(at, head)) return std::nullopt;
  const uint64_t count = Unsigned(bytes, at, head, order);
  if (count == 0 || count > kMostEntries || !bytes.Has(at, head + count * size)) return std::nullopt;
  for (uint64_t place = at + head; place < at + head + count * size; place += size) {
    const auto tag = static_cast<int>(Unsigned(bytes, place, 2, order));
    const uint64_t value = place + (big ? 12 : 8);
    const Entry entry{Unsigned(bytes, place + 2, 2, order), Unsigned(bytes, place + 4, big ? 8 : 4, order), value};
    directory.entries_.emplace(tag, entry);  // the first one of a tag counts
  }
  return directory;
}

std::vector<uint64_t> TiffDirectory::Numbers(int tag, uint64_t most) const {
  const auto found = entries_.find(tag);
  if (found == entries_.end()) return {};
  const Entry& entry = found->second;
  const uint64_t size = TypeBytes(entry.type);
  if (size == 0 || entry.count == 0 || entry.count > bytes_.size()) return {};
  uint64_t place = entry.place;
  if (entry.count * size > (big_ ? 8 : 4)) place = Unsigned(bytes_, place, big_ ? 8 : 4, order_);
  if (!bytes_.Has(place, entry.count * size)) return {};
  std::vector<uint64_t> numbers(std::min(entry.count, most));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = Unsigned(bytes_, place + i * size, size, order_);
  return numbers;
}

uint64_t TiffDirectory::First(int tag, uint64_t missing) const {
  const std::vector<uint64_t> numbers = Numbers(tag, 1);
  return numbers.empty() ? missing : numbers[0];
}

int64_t TiffDirectory::Width() const { return static_cast<int64_t>(First(kWidth, 0)); }

int64_t TiffDirectory::Height() const { return static_cast<int64_t>(First(kHeight, 0)); }

int TiffDirectory::Orientation() const {
  const uint64_t value = First(kOrientation, 1);
  return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
}

bool TiffDirectory::WhiteIsZero() const { return First(kPhotometric, kNone) == 0; }

bool TiffDirectory::InPlanes() const { return First(kSamples, 1) > 1 && First(kPlanes, 1) == 2; }

std::optional<std::pair<std::string, int64_t>> TiffDirectory::PixelKind() const {
  constexpr uint64_t kMostSamples = 16;
  constexpr uint64_t kTileBytes = 1024;  // OpenCV decodes 8-bit tiles without compression in multiples of this only
  const uint64_t samples = First(kSamples, 1);
  const std::vector<uint64_t> bits = Has(kBits) ? Numbers(kBits, kMostSamples) : std::vector<uint64_t>{1};
  if (samples == 0 || samples > bits.size()) return std::nullopt;
  const auto depth = static_cast<int64_t>(bits[0]);
  const uint64_t compression = First(kCompression, kUncompressed);
  const uint64_t photometric = First(kPhotometric, kNone);
  const auto is = [depth](const std::string& kind) { return std::make_pair(kind, depth); };
  for (const uint64_t format : Numbers(kFormat, samples)) {
    if (format == 2) return is("of signed integers");
    if (format == 3) return is("of floating-point numbers, which have no known range");
    if (format != 1) return is("of numbers of an unknown format");
  }
  if (std::count(bits.begin(), bits.begin() + static_cast<std::ptrdiff_t>(samples), bits[0]) !=
      static_cast<std::ptrdiff_t>(samples)) {
    return std::make_pair(std::string("a TIFF with channels of different bits"), int64_t{0});
  }
  const std::string kind = KindName(photometric, samples);
  if (kind.empty()) {
    return is("a TIFF of " + std::to_string(samples) + " channels with the photometric interpretation " +
              (photometric == kNone ? "-1" : std::to_string(photometric)));
  }
  if (!IsReadableCompression(compression, bits[0])) {
    return is("a TIFF compressed by method " + std::to_string(compression));
  }
  if (!IsReadableDepth(bits[0], kind, photometric)) return is("a " + kind + " TIFF");
  const uint64_t channels = InPlanes() ? 1 : samples;
  const uint64_t tile = First(kTileWidth, 0) * First(kTileHeight, 0) * channels * bits[0] / 8;
  if (compression == kUncompressed && tile % kTileBytes != 0 && (depth < 16 || InPlanes())) {
    return is("a TIFF with tiles of " + std::to_string(tile) + " bytes, no multiple of " + std::to_string(kTileBytes));
  }
  return is(kind);
}

bool TiffDirectory::IsWhole() const {
  constexpr uint64_t kLongestSide = uint64_t{1} << 20;  // OpenCV's
  constexpr uint64_t kMostTilePixels = uint64_t{1} << 24;
  const uint64_t width = First(kWidth, 0);
  const uint64_t height = First(kHeight, 0);
  if (width == 0 || width > kLongestSide || height == 0 || height > kLongestSide) return false;
  const uint64_t samples = First(kSamples, 1);
  const uint64_t depth = First(kBits, 1);
  if (samples > 4 || depth > 64) return true;  // refused for its kind
  const bool tiled = Has(kTileWidth);
  const uint64_t columns = tiled ? First(kTileWidth, 0) : width;
  const uint64_t rows = tiled ? First(kTileHeight, 0) : std::min(First(kStripRows, height), height);
  if (columns == 0 || rows == 0) return false;
  if (tiled && (columns > kMostTilePixels || rows > kMostTilePixels / columns)) return false;
  const uint64_t down = (height + rows - 1) / rows;
  const uint64_t pieces = tiled ? (width + columns - 1) / columns * down : down;
  const uint64_t last_rows = tiled ? rows : height - (pieces - 1) * rows;
  const uint64_t planes = InPlanes() ? samples : 1;
  const std::vector<uint64_t> places = Numbers(tiled ? kTilePlaces : kStripPlaces, pieces * planes);
  const std::vector<uint64_t> lengths = Numbers(tiled ? kTileLengths : kStripLengths, pieces * planes);
  if (std::min(places.size(), lengths.size()) < pieces * planes) return false;
  const bool exact = First(kCompression, kUncompressed) == kUncompressed && First(kPhotometric, kNone) != kYcbcr;
  const uint64_t row = exact ? (columns * (samples / planes) * depth + 7) / 8 : 0;
  for (size_t i = 0; i < places.size(); ++i) {
    const uint64_t needed = row * ((i + 1) % pieces == 0 ? last_rows : rows);
    if (lengths[i] == 0 || lengths[i] < needed || !bytes_.Has(places[i], lengths[i])) return false;
  }
  return true;
}

// OpenCV's versions differ in turning a TIFF by its orientation, multiply colours by the alpha channel unless it is
// marked as already multiplied, and refuse strips that are much higher than the image; so the orientation is left out,
// alpha is marked, and the height of a strip is that of the image at most.
std::vector<uint8_t> TiffDirectory::PlainCopy() const {
  constexpr uint64_t kLong = 4;
  const size_t head = big_ ? 12 : 8;
  const size_t room = big_ ? 8 : 4;
  std::map<int, std::vector<uint8_t>> chosen;
  const auto choose = [&](int tag, uint64_t number) {
    std::vector<uint8_t>& entry = chosen[tag];
    Append(&entry, static_cast<uint64_t>(tag), 2, order_);
    Append(&entry, kLong, 2, order_);
    Append(&entry, 1, head - 4, order_);
    Append(&entry, number, 4, order_);
    entry.resize(head + room);
  };
  for (const auto& [tag, entry] : entries_) {
    if (!IsNeeded(tag, Has(kTileWidth))) continue;
    const uint8_t* begin = bytes_.data() + entry.place - head;
    chosen[tag] = std::vector<uint8_t>(begin, begin + head + room);
  }
  const uint64_t samples = First(kSamples, 1);
  const uint64_t photometric = First(kPhotometric, kNone);
  if ((samples == 2 && photometric <= 1) || (samples == 4 && photometric == kRgb)) choose(kExtra, 1);
  const uint64_t height = First(kHeight, 0);
  if (!Has(kTileWidth)) choose(kStripRows, std::min(First(kStripRows, height), height));
  std::vector<uint8_t> start(bytes_.data(), bytes_.data() + (big_ ? 8 : 4));
  const uint64_t at = bytes_.size() + bytes_.size() % 2;
  Append(&start, at, room, order_);
  std::vector<uint8_t> copy(bytes_.data(), bytes_.data() + bytes_.size());
  std::copy(start.begin(), start.end(), copy.begin());
  copy.resize(at);
  Append(&copy, chosen.size(), big_ ? 8 : 2, order_);
  for (const auto& [tag, entry] : chosen) copy.insert(copy.end(), entry.begin(), entry.end());
  Append(&copy, 0, room, order_);  // no further directory
  return copy;
}

}  // namespace mindseg
