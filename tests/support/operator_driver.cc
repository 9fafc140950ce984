// Calls an operator of the CPU library, in the emulator of a machine that has no Python here:
//   operator_driver LIBRARY OPERATOR THREADS <arguments >results
// An argument is the name of its type (16 bytes), the bytes of a value, the number of axes, their lengths (int64 each)
// and the values. The results are the operator's status (int64) and the values of all arguments.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

namespace {

struct Argument {
  char type[16];
  std::vector<int64_t> shape;
  std::vector<char> values;
};

int64_t ReadNumber() {
  int64_t number = 0;
  std::cin.read(reinterpret_cast<char*>(&number), sizeof number);
  return number;
}

std::vector<Argument> ReadArguments() {
  std::vector<Argument> arguments;
  Argument next;
  while (std::cin.read(next.type, sizeof next.type)) {
    int64_t bytes = ReadNumber();
    next.shape.resize(static_cast<size_t>(ReadNumber()));
    for (int64_t& length : next.shape) bytes *= length = ReadNumber();
    next.values.resize(static_cast<size_t>(bytes));
    std::cin.read(next.values.data(), bytes);
    arguments.push_back(next);
  }
  return arguments;
}

void* Find(void* library, const char* name) {
  void* found = library != nullptr ? dlsym(library, name) : nullptr;
  if (found == nullptr) {
    std::cerr << dlerror() << "\n";
    std::exit(1);
  }
  return found;
}

}  // namespace

int main(int, char** words) {
  void* library = dlopen(words[1], RTLD_NOW);
  reinterpret_cast<void (*)(int)>(Find(library, "mindseg_set_threads"))(std::stoi(words[3]));
  std::vector<Argument> arguments = ReadArguments();
  std::vector<void*> data;
  std::vector<int> ranks;
  std::vector<int64_t*> shapes;
  std::vector<const char*> types;
  for (Argument& argument : arguments) {
    data.push_back(argument.values.data());
    ranks.push_back(static_cast<int>(argument.shape.size()));
    shapes.push_back(argument.shape.data());
    types.push_back(argument.type);
  }
  using Operator = int (*)(int, void**, int*, int64_t**, const char**, void*, void*);
  const auto run = reinterpret_cast<Operator>(Find(library, words[2]));
  const int64_t status =
      run(static_cast<int>(data.size()), data.data(), ranks.data(), shapes.data(), types.data(), nullptr, nullptr);
  std::cout.write(reinterpret_cast<const char*>(&status), sizeof status);
  for (const Argument& argument : arguments) {
    std::cout.write(argument.values.data(), static_cast<std::streamsize>(argument.values.size()));
  }
  return std::cout.flush() ? 0 : 1;
}
