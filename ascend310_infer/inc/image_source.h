// The files of --input: images (a file, a folder, a Cityscapes tree) or preprocessed tensors (.bin).
#ifndef ASCEND310_INFER_INC_IMAGE_SOURCE_H_
#define ASCEND310_INFER_INC_IMAGE_SOURCE_H_

#include <filesystem>
#include <string>
#include <vector>

namespace mindseg {

struct InputItem {
  std::string name;  // of the results, without ending; no slash
  std::filesystem::path path;
  std::string problem;  // the reason why no result can have this name; empty: it can
};

struct ImageSource {
  bool bins = false;
  std::vector<InputItem> items;  // in order: as in files.txt, otherwise by path
};

// `aachen_000000_000019_leftImg8bit.png` -> `aachen_000000_000019`; otherwise the file name without its ending.
std::string SampleName(const std::filesystem::path& path);

// The items of a files.txt, whose content is `text`. Throws UserError for a name that would lead out of the folder.
std::vector<InputItem> ParseNames(const std::string& text, const std::filesystem::path& list);

// Lists without opening any image; what lies in the folder `output` is no input. Throws UserError: nothing found, two
// items of one name, a bad files.txt.
ImageSource ListInputs(const std::filesystem::path& input, const std::filesystem::path& output = {});

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_IMAGE_SOURCE_H_
