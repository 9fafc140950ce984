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
constexpr uint64_t kLong = 4;  // a type of numbers, of 4 bytes

// Bytes of a value by the type of the entry; 0: unknown.
uint64_t TypeBytes(uint64_t type) {
  static constexpr std::array<uint8_t, 19> kBytes = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8};
  return type < kBytes.size() ? kBytes[type] : 0;
}

// BYTE, SHORT, LONG, LONG8.
bool IsUnsigned(uint64_t type) { return type == 1 || type == 3 || type == kLong || type == 16; }

// What decoding needs of the tags that an image and a part of it have in common: besides the kind of the pixels, those
// of FAX, of the predictor, palette, JPEG and YCbCr.
bool IsNeeded(int tag, bool tiled) {
  static const std::set<int> kNeeded = {kBits, kCompression, kPhotometric, 266, kSamples, kPlanes, 292,
                                        293,   317,          320,          347, 529,      530,     532};
  return kNeeded.count(tag) > 0 || (tiled && (tag == kTileWidth || tag == kTileHeight));
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

// The directory of a new file behind the bytes it points to.
class DirectoryWriter {
 public:
  DirectoryWriter(Order order, bool big, std::vector<uint8_t>* file) : order_(order), big_(big), file_(file) {}

  void Add(int tag, uint64_t type, uint64_t count, std::vector<uint8_t> value) {
    const size_t room = big_ ? 8 : 4;
    if (value.size() > room) {
      file_->resize(file_->size() + file_->size() % 2);
      const uint64_t place = file_->size();
      file_->insert(file_->end(), value.begin(), value.end());
      value.clear();
      Append(&value, place, room, order_);
    }
    value.resize(room);
    std::vector<uint8_t>& entry = entries_[tag];
    Append(&entry, static_cast<uint64_t>(tag), 2, order_);
    Append(&entry, type, 2, order_);
    Append(&entry, count, room, order_);
    entry.insert(entry.end(), value.begin(), value.end());
  }

  void AddNumbers(int tag, const std::vector<uint64_t>& numbers) {
    std::vector<uint8_t> value;
    for (const uint64_t number : numbers) Append(&value, number, 4, order_);
    Add(tag, kLong, numbers.size(), std::move(value));
  }

  // Ends the file; its header is overwritten.
  void Finish() {
    const size_t room = big_ ? 8 : 4;
    file_->resize(file_->size() + file_->size() % 2);
    std::vector<uint8_t> place;
    Append(&place, file_->size(), room, order_);
    std::copy(place.begin(), place.end(), file_->begin() + static_cast<std::ptrdiff_t>(room));
    Append(file_, entries_.size(), big_ ? 8 : 2, order_);
    for (const auto& [tag, entry] : entries_) file_->insert(file_->end(), entry.begin(), entry.end());
    Append(file_, 0, room, order_);  // no further directory
  }

 private:
  const Order order_;
  const bool big_;
  std::vector<uint8_t>* file_;
  std::map<int, std::vector<uint8_t>> entries_;
};

}  // namespace

std::optional<TiffDirectory> TiffDirectory::Read(const ByteSource& source) {
  constexpr uint64_t kMostEntries = 1000;  // files have below 100
  TiffDirectory directory(source);
  const std::vector<uint8_t> start = source.Read(0, 16);
  const bool intel = Holds(start, 0, "II");
  if (!intel && !Holds(start, 0, "MM")) return std::nullopt;
  const Order order = directory.order_ = intel ? Order::kLittle : Order::kBig;
  const uint64_t version = Unsigned(start, 2, 2, order);
  const bool big = directory.big_ = version == 43;
  if (version != 42 && version != 43) return std::nullopt;
  if (big && (Unsigned(start, 4, 2, order) != 8 || Unsigned(start, 6, 2, order) != 0)) return std::nullopt;
  const uint64_t at = Unsigned(start, directory.Room(), directory.Room(), order);
  const uint64_t head = big ? 8 : 2;
  const uint64_t size = big ? 20 : 12;
  const uint64_t count = Unsigned(source.Read(at, head), 0, head, order);
  if (count == 0 || count > kMostEntries) return std::nullopt;
  const std::vector<uint8_t> entries = source.Read(at + head, count * size);
  for (uint64_t place = 0; place < entries.size(); place += size) {
    Entry entry{Unsigned(entries, place + 2, 2, order), Unsigned(entries, place + 4, directory.Room(), order), {}};
    std::copy_n(entries.begin() + static_cast<std::ptrdiff_t>(place + size - directory.Room()), directory.Room(),
                entry.value.begin());
    // The first one of a tag counts.
    directory.entries_.emplace(static_cast<int>(Unsigned(entries, place, 2, order)), entry);
  }
  if (entries.empty()) return std::nullopt;
  return directory;
}

std::vector<uint8_t> TiffDirectory::Value(const Entry& entry, uint64_t most) const {
  const uint64_t size = TypeBytes(entry.type);
  if (size == 0 || entry.count == 0 || entry.count > source_.size()) return {};
  const std::vector<uint8_t> value(entry.value.begin(), entry.value.end());
  const uint64_t kept = std::min(entry.count, most) * size;
  if (entry.count * size <= Room()) return {value.begin(), value.begin() + static_cast<std::ptrdiff_t>(kept)};
  const uint64_t place = Unsigned(value, 0, Room(), order_);
  return source_.Has(place, entry.count * size) ? source_.Read(place, kept) : std::vector<uint8_t>{};
}

std::vector<uint64_t> TiffDirectory::Numbers(int tag, uint64_t most) const {
  const auto found = entries_.find(tag);
  if (found == entries_.end() || !IsUnsigned(found->second.type)) return {};
  const uint64_t size = TypeBytes(found->second.type);
  const std::vector<uint8_t> value = Value(found->second, most);
  std::vector<uint64_t> numbers(value.size() / size);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = Unsigned(value, i * size, size, order_);
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
  if (samples > 4 || First(kBits, 1) > 64) return true;  // refused for its kind
  const bool tiled = Has(kTileWidth);
  const auto [columns, rows] = PieceSize();
  if (columns == 0 || rows == 0) return false;
  if (tiled && (columns > kMostTilePixels || rows > kMostTilePixels / columns)) return false;
  const uint64_t down = (height + rows - 1) / rows;
  const uint64_t pieces = tiled ? (width + columns - 1) / columns * down : down;
  const uint64_t last_rows = tiled ? rows : height - (pieces - 1) * rows;
  const uint64_t planes = InPlanes() ? samples : 1;
  const std::vector<uint64_t> places = Numbers(tiled ? kTilePlaces : kStripPlaces, pieces * planes);
  const std::vector<uint64_t> lengths = Numbers(tiled ? kTileLengths : kStripLengths, pieces * planes);
  if (std::min(places.size(), lengths.size()) < pieces * planes) return false;
  const uint64_t row = IsPlain() ? RowBytes() : 0;
  for (size_t i = 0; i < places.size(); ++i) {
    const uint64_t needed = row * ((i + 1) % pieces == 0 ? last_rows : rows);
    if (lengths[i] == 0 || lengths[i] < needed || !source_.Has(places[i], lengths[i])) return false;
  }
  return true;
}

std::pair<uint64_t, uint64_t> TiffDirectory::PieceSize() const {
  if (Has(kTileWidth)) return {First(kTileWidth, 0), First(kTileHeight, 0)};
  const uint64_t height = First(kHeight, 0);
  return {First(kWidth, 0), std::min(First(kStripRows, height), height)};
}

bool TiffDirectory::IsPlain() const {
  return First(kCompression, kUncompressed) == kUncompressed && First(kPhotometric, kNone) != kYcbcr;
}

uint64_t TiffDirectory::RowBytes() const {
  const uint64_t samples = InPlanes() ? 1 : First(kSamples, 1);
  return (PieceSize().first * samples * First(kBits, 1) + 7) / 8;
}

cv::Rect TiffDirectory::Cover(const cv::Rect& part) const {
  const auto columns = static_cast<int64_t>(PieceSize().first);
  // Rows of strips that are not compressed can be copied one by one.
  const auto rows = !Has(kTileWidth) && IsPlain() ? 1 : static_cast<int64_t>(PieceSize().second);
  const auto down = [](int64_t place, int64_t step) { return static_cast<int>(place / step * step); };
  const auto up = [](int64_t place, int64_t step, int64_t most) {
    return static_cast<int>(std::min((place + step - 1) / step * step, most));
  };
  return {cv::Point(down(part.x, columns), down(part.y, rows)),
          cv::Point(up(part.br().x, columns, Width()), up(part.br().y, rows, Height()))};
}

std::vector<TiffDirectory::Range> TiffDirectory::Pieces(const cv::Rect& cover, uint64_t rows) const {
  const bool tiled = Has(kTileWidth);
  const auto [piece_columns, piece_rows] = PieceSize();
  const uint64_t across = (First(kWidth, 0) + piece_columns - 1) / piece_columns;
  const uint64_t pieces = across * ((First(kHeight, 0) + piece_rows - 1) / piece_rows);
  const uint64_t planes = InPlanes() ? First(kSamples, 1) : 1;
  const std::vector<uint64_t> places = Numbers(tiled ? kTilePlaces : kStripPlaces, pieces * planes);
  const std::vector<uint64_t> lengths = Numbers(tiled ? kTileLengths : kStripLengths, pieces * planes);
  const uint64_t row_bytes = RowBytes();
  // A length may be wrong, but no compression makes pixels much longer.
  const uint64_t most = rows < piece_rows ? rows * row_bytes : 8 * rows * row_bytes + 4096;
  std::vector<Range> found;
  for (uint64_t plane = 0; plane < planes; ++plane) {
    for (auto y = static_cast<uint64_t>(cover.y); y < static_cast<uint64_t>(cover.br().y); y += rows) {
      for (auto x = static_cast<uint64_t>(cover.x); x < static_cast<uint64_t>(cover.br().x); x += piece_columns) {
        const size_t piece = plane * pieces + y / piece_rows * across + x / piece_columns;
        const uint64_t place = places[piece] + y % piece_rows * row_bytes;
        found.push_back({place, place + std::min(lengths[piece], most)});
      }
    }
  }
  return found;
}

// Bytes that several pieces share are copied once, so that a copy is never longer than the file.
std::vector<uint64_t> TiffDirectory::CopyRanges(const std::vector<Range>& ranges, std::vector<uint8_t>* copy) const {
  std::vector<Range> sorted = ranges;
  std::sort(sorted.begin(), sorted.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> joined;
  for (const Range& range : sorted) {
    if (joined.empty() || range.begin > joined.back().end) joined.push_back({range.begin, range.begin});
    joined.back().end = std::max(joined.back().end, range.end);
  }
  std::map<uint64_t, uint64_t> targets;  // by the places of joined ranges
  uint64_t size = copy->size();
  for (const Range& range : joined) {
    targets[range.begin] = size;
    size += range.end - range.begin;
  }
  copy->resize(size);
  for (const Range& range : joined) {
    source_.Read(range.begin, range.end - range.begin, copy->data() + targets[range.begin]);
  }
  std::vector<uint64_t> places;
  for (const Range& range : ranges) {
    const auto target = std::prev(targets.upper_bound(range.begin));
    places.push_back(target->second + range.begin - target->first);
  }
  return places;
}

// OpenCV's versions differ in turning a TIFF by its orientation, multiply colours by the alpha channel unless it is
// marked as already multiplied, and refuse strips that are much higher than the image; so the orientation is left out,
// alpha is marked, and the height of a strip is that of the image at most.
std::vector<uint8_t> TiffDirectory::Copy(const cv::Rect& cover) const {
  constexpr uint64_t kLongestValue = uint64_t{1} << 20;
  std::vector<uint8_t> copy = source_.Read(0, 2 * Room());
  const bool tiled = Has(kTileWidth);
  const auto width = static_cast<uint64_t>(cover.width);
  const auto height = static_cast<uint64_t>(cover.height);
  const bool whole = cover.width == Width() && cover.height == Height();
  const uint64_t rows = !whole && !tiled && IsPlain() ? 1 : PieceSize().second;
  const std::vector<Range> ranges = Pieces(cover, rows);
  const std::vector<uint64_t> places = CopyRanges(ranges, &copy);
  std::vector<uint64_t> lengths;
  for (const Range& range : ranges) lengths.push_back(range.end - range.begin);
  DirectoryWriter directory(order_, big_, &copy);
  for (const auto& [tag, entry] : entries_) {
    const bool size = tag == kWidth || tag == kHeight;
    if (!IsNeeded(tag, tiled) && !(size && whole)) continue;
    std::vector<uint8_t> value = entry.count > kLongestValue ? std::vector<uint8_t>{} : Value(entry, entry.count);
    // What cannot be read is the decoder's to judge.
    if (value.empty()) value.assign(entry.value.begin(), entry.value.begin() + static_cast<std::ptrdiff_t>(Room()));
    directory.Add(tag, entry.type, entry.count, std::move(value));
  }
  if (!whole) directory.AddNumbers(kWidth, {width});
  if (!whole) directory.AddNumbers(kHeight, {height});
  directory.AddNumbers(tiled ? kTilePlaces : kStripPlaces, places);
  directory.AddNumbers(tiled ? kTileLengths : kStripLengths, lengths);
  if (!tiled) directory.AddNumbers(kStripRows, {std::min(rows, height)});
  const uint64_t samples = First(kSamples, 1);
  const uint64_t photometric = First(kPhotometric, kNone);
  if ((samples == 2 && photometric <= 1) || (samples == 4 && photometric == kRgb)) directory.AddNumbers(kExtra, {1});
  directory.Finish();
  return copy;
}

}  // namespace mindseg
