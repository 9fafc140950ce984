// The manifests of tests/manifests, which this reader and the Python package's accept or refuse alike:
//   test_manifests tests/manifests
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <vector>

#include "inc/error.h"
#include "inc/manifest.h"

namespace {

namespace fs = std::filesystem;

std::vector<fs::path> FilesIn(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

// The message of the refusal; empty if the manifest is accepted.
std::string Refusal(const fs::path& path) {
  try {
    mindseg::LoadManifest(path);
    return "";
  } catch (const mindseg::UserError& error) {
    return error.what();
  }
}

// The first line of a refused file is `# KEY: reason`; the message must name file and key in one line.
bool NamesFileAndKey(const std::string& message, const fs::path& path) {
  std::string line;
  std::ifstream stream(path);
  std::getline(stream, line);
  const std::string key = line.substr(2, line.find(':') - 2);
  return message.rfind(path.string(), 0) == 0 && message.find(key, path.string().size()) != std::string::npos &&
         message.find('\n') == std::string::npos;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: test_manifests FOLDER\n";
    return 2;
  }
  const std::vector<fs::path> accepted = FilesIn(fs::path(argv[1]) / "accepted");
  const std::vector<fs::path> refused = FilesIn(fs::path(argv[1]) / "refused");
  int failures = 0;
  for (const fs::path& path : accepted) {
    const std::string message = Refusal(path);
    if (message.empty()) continue;
    std::cout << "FAIL accepted/" << path.filename().string() << ": " << message << "\n";
    ++failures;
  }
  for (const fs::path& path : refused) {
    const std::string message = Refusal(path);
    if (!message.empty() && NamesFileAndKey(message, path)) continue;
    std::cout << "FAIL refused/" << path.filename().string() << ": " << (message.empty() ? "accepted" : message)
              << "\n";
    ++failures;
  }
  std::cout << accepted.size() << " accepted and " << refused.size() << " refused manifests, " << failures
            << " failures\n";
  return failures == 0 && !accepted.empty() && !refused.empty() ? 0 : 1;
}
