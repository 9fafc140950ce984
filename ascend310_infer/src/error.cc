#include "inc/error.h"

namespace mindseg {

std::string OneLine(const std::string& text) {
  constexpr size_t kLongest = 600;
  std::string line;
  for (char c : text) {
    const bool blank = static_cast<unsigned char>(c) < 0x20 || c == ' ';
    if (!blank) {
      line.push_back(c);
    } else if (!line.empty() && line.back() != ' ') {
      line.push_back(' ');
    }
    if (line.size() >= kLongest) {
      line += "...";
      break;
    }
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

}  // namespace mindseg
