#include "inc/image_source.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <map>
#include <set>
#include <sstream>

#include "inc/error.h"
#include "inc/files.h"

namespace mindseg {
namespace fs = std::filesystem;
namespace {

constexpr char kCityscapesSuffix[] = "_leftImg8bit";
constexpr char kNamesFile[] = "files.txt";

std::string LowerExtension(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension;
}

bool IsImage(const fs::path& path) {
  static const std::set<std::string> kExtensions = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"};
  return kExtensions.count(LowerExtension(path)) > 0;
}

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool IsCityscapesImage(const fs::path& path) { return EndsWith(path.stem().string(), kCityscapesSuffix); }

// All visible files below `folder`. Linked folders are followed, each once.
void Collect(const fs::path& folder, std::set<fs::path>* visited, std::vector<fs::path>* files) {
  std::error_code error;
  const fs::path canonical = fs::canonical(folder, error);
  if (error || !visited->insert(canonical).second) return;
  fs::directory_iterator entries(folder, error);
  if (error) throw UserError("--input " + folder.string() + ": cannot list the folder: " + error.message());
  for (const fs::directory_entry& entry : entries) {
    if (entry.path().filename().string().front() == '.') continue;
    if (entry.is_directory(error)) {
      Collect(entry.path(), visited, files);
    } else if (entry.is_regular_file(error)) {
      files->push_back(entry.path());
    }
  }
}

void CheckUnique(const fs::path& input, const std::vector<InputItem>& items) {
  std::map<std::string, const InputItem*> seen;
  for (const InputItem& item : items) {
    const auto [place, is_new] = seen.emplace(item.name, &item);
    if (is_new) continue;
    throw UserError("--input " + input.string() + ": " + place->second->path.string() + " and " + item.path.string() +
                    " would both give results named '" + item.name +
                    "'; rename one, or give a folder that holds the images only");
  }
}

std::vector<InputItem> ReadNames(const fs::path& list) {
  constexpr size_t kLargestList = size_t{1} << 28;
  const std::vector<uint8_t> bytes = ReadFile(list, kLargestList);
  return ParseNames(std::string(bytes.begin(), bytes.end()), list);
}

std::string NameProblem(const std::string& name) {
  // The temporary name, which has the process number too, has to fit into the 255 bytes of most file systems.
  constexpr size_t kLongestName = 220;
  if (name.size() > kLongestName) {
    return "its name has " + std::to_string(name.size()) + " bytes, over " + std::to_string(kLongestName) +
           "; rename it";
  }
  return IsPlainName(name) ? "" : "its name holds a control character, backslash or drive; rename it";
}

std::vector<InputItem> NameAll(std::vector<fs::path> files) {
  std::sort(files.begin(), files.end());
  std::vector<InputItem> items;
  items.reserve(files.size());
  for (const fs::path& path : files) items.push_back({SampleName(path), path, NameProblem(SampleName(path))});
  return items;
}

ImageSource ListFolder(const fs::path& input, const fs::path& output) {
  std::vector<fs::path> files;
  std::set<fs::path> visited;
  std::error_code error;  // of an output folder that does not exist yet
  visited.insert(fs::canonical(output, error));
  Collect(input, &visited, &files);
  std::vector<fs::path> images;
  std::vector<fs::path> city_images;
  std::vector<fs::path> bins;
  for (const fs::path& path : files) {
    if (IsImage(path)) (IsCityscapesImage(path) ? city_images : images).push_back(path);
    if (LowerExtension(path) == ".bin") bins.push_back(path);
  }
  // In a Cityscapes tree the label images lie beside the photographs.
  std::vector<fs::path>& chosen = city_images.empty() ? images : city_images;
  ImageSource source;
  const bool listed = fs::exists(input / kNamesFile, error);
  source.bins = listed || (chosen.empty() && !bins.empty());
  if (source.bins && !chosen.empty()) {
    throw UserError("--input " + input.string() + ": holds both images and " + kNamesFile +
                    " of preprocessed bins; give a folder with one kind");
  }
  if (!source.bins) {
    source.items = NameAll(chosen);
  } else {
    source.items = listed ? ReadNames(input / kNamesFile) : NameAll(bins);
  }
  return source;
}

}  // namespace

std::string SampleName(const fs::path& path) {
  const std::string stem = path.stem().string();
  if (EndsWith(stem, kCityscapesSuffix) && stem.size() + 1 > sizeof(kCityscapesSuffix)) {
    return stem.substr(0, stem.size() + 1 - sizeof(kCityscapesSuffix));
  }
  return stem;
}

std::vector<InputItem> ParseNames(const std::string& text, const fs::path& list) {
  std::istringstream stream(text);
  std::vector<InputItem> items;
  std::string line;
  for (int number = 1; std::getline(stream, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    if (line.find('/') != std::string::npos || line.front() == '.' || !NameProblem(line).empty()) {
      throw UserError(list.string() + ":" + std::to_string(number) + ": '" + line +
                      "' is not a sample name; run preprocess.py again");
    }
    items.push_back({line, list.parent_path() / (line + ".bin"), ""});
  }
  return items;
}

ImageSource ListInputs(const fs::path& input, const fs::path& output) {
  ImageSource source;
  std::error_code error;  // of a path that leads nowhere
  if (fs::is_directory(input, error)) {
    source = ListFolder(input, output);
  } else if (fs::exists(input, error)) {
    source.bins = LowerExtension(input) == ".bin";
    if (!fs::is_regular_file(input, error) || (!source.bins && !IsImage(input))) {
      throw UserError("--input " + input.string() + ": is neither an image nor a .bin nor a folder of them");
    }
    source.items = NameAll({input});
  } else {
    throw UserError("--input " + input.string() + ": no such file or folder");
  }
  if (source.items.empty()) {
    throw UserError("--input " + input.string() +
                    ": no images (png, jpg, jpeg, webp, bmp, tif, tiff) and no .bin files in it");
  }
  CheckUnique(input, source.items);
  return source;
}

}  // namespace mindseg
