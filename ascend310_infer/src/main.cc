// segment: runs an exported segmentation model as its deploy.yaml says. See segment --help.
#include <exception>
#include <iostream>
#include <new>
#include <string>
#include <vector>

#include "inc/commands.h"
#include "inc/error.h"
#include "inc/options.h"

namespace {

int Dispatch(const mindseg::Options& options) {
  if (options.command == "run") return mindseg::RunCommand(options);
  if (options.command == "bench") return mindseg::BenchCommand(options);
  if (options.command == "info") return mindseg::InfoCommand(options);
  std::cout << options.text;
  return mindseg::kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Dispatch(mindseg::ParseOptions(std::vector<std::string>(argv + 1, argv + argc)));
  } catch (const mindseg::UserError& error) {
    std::cerr << "error: " << error.what() << std::endl;
  } catch (const std::bad_alloc&) {
    std::cerr << "error: not enough memory for this model; use a smaller --batch or fewer --streams" << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "error: " << mindseg::OneLine(error.what()) << std::endl;
  }
  return mindseg::kExitError;
}
