// A unit test frame in one header, so that the tests need nothing but the compiler.
#ifndef ASCEND310_INFER_TEST_CHECK_H_
#define ASCEND310_INFER_TEST_CHECK_H_

#include <exception>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace check {

using Test = std::pair<const char*, void (*)()>;

inline std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

struct Registration {
  Registration(const char* name, void (*body)()) { Tests().emplace_back(name, body); }
};

[[noreturn]] inline void Fail(const char* file, int line, const std::string& what) {
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <typename A, typename B>
void Equal(const char* file, int line, const char* text, const A& actual, const B& expected) {
  if (actual == expected) return;
  std::ostringstream message;
  message << text << " is " << actual << ", expected " << expected;
  Fail(file, line, message.str());
}

template <typename Error, typename Body>
void Throws(const char* file, int line, const std::vector<std::string>& words, Body body) {
  std::string message;
  try {
    body();
  } catch (const Error& error) {
    message = error.what();
    for (const std::string& word : words) {
      if (message.find(word) == std::string::npos) Fail(file, line, "'" + word + "' is not in: " + message);
    }
    if (message.find('\n') != std::string::npos) Fail(file, line, "more than one line: " + message);
    return;
  }
  Fail(file, line, "nothing was thrown");
}

inline int RunAll() {
  int failures = 0;
  for (const auto& [name, body] : Tests()) {
    try {
      body();
      std::cout << "ok   " << name << "\n";
    } catch (const std::exception& error) {
      ++failures;
      std::cout << "FAIL " << name << ": " << error.what() << "\n";
    }
  }
  std::cout << Tests().size() - static_cast<size_t>(failures) << " of " << Tests().size() << " passed\n";
  return failures == 0 && !Tests().empty() ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                     \
  static void Test##name();                                            \
  static const check::Registration kRegister##name(#name, Test##name); \
  static void Test##name()

#define CHECK(condition) \
  if (!(condition)) check::Fail(__FILE__, __LINE__, #condition)

#define CHECK_EQ(actual, expected) check::Equal(__FILE__, __LINE__, #actual, actual, expected)

#define CHECK_THROWS(error, expression, ...) \
  check::Throws<error>(__FILE__, __LINE__, {__VA_ARGS__}, [&] { expression; })

#endif  // ASCEND310_INFER_TEST_CHECK_H_
