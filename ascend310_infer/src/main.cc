// segment: runs an exported segmentation model as its deploy.yaml says. Dispatch only; see UsageText().
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "inc/commands.h"
#include "inc/error.h"
#include "inc/options.h"

namespace {

int Dispatch(const segment::Options& options) {
  if (options.command == "help") {
    std::cout << segment::UsageText();
    return segment::kExitOk;
  }
  if (options.command == "version") {
    std::cout << "segment " << SEGMENT_VERSION << ", backends: " << segment::BuiltBackendNames() << "\n";
    return segment::kExitOk;
  }
  if (options.command == "run") return segment::RunCommand(options);
  if (options.command == "bench") return segment::BenchCommand(options);
  return segment::InfoCommand(options);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Dispatch(segment::ParseOptions(std::vector<std::string>(argv + 1, argv + argc)));
  } catch (const segment::UserError& error) {
    std::cerr << "error: " << error.what() << std::endl;
  } catch (const std::bad_alloc&) {
    std::cerr << "error: not enough memory for this model; use a smaller --batch or fewer --streams" << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "error: " << segment::OneLine(error.what()) << std::endl;
  }
  return segment::kExitError;
}
