// The exceptions of the native code and the check that throws it.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace gptoss {

// Bad input from outside. `assert` is for our own mistakes; this is for everything a user can mend.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The values in a checkpoint are at fault, not how it was handed over.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

// A part of a message: text, a number with up to six digits if it is no integer, a truth value as 0 or 1. No stream:
// each .cu that includes this would pay for it.
template <typename Part>
void append(std::string& message, const Part& part) {
  if constexpr (std::is_convertible_v<const Part&, std::string_view>) {
    message += std::string_view(part);
  } else if constexpr (std::is_same_v<Part, char>) {
    message += part;
  } else if constexpr (std::is_floating_point_v<Part>) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%g", static_cast<double>(part));
    message += digits;
  } else {
    message += std::to_string(part);
  }
}

template <typename Exception = Error, typename... Parts>
[[noreturn]] void fail(const char* file, int line, const Parts&... parts) {
  std::string message;
  (append(message, parts), ...);
  const std::string_view path(file);
  append(message, " (");
  append(message, path.substr(path.find_last_of('/') + 1));
  append(message, ":");
  append(message, line);
  append(message, ")");
  throw Exception(message);
}

}  // namespace gptoss

// CHECK(condition, parts...): throws Error with the parts joined, then file and line. The parts name what
// was checked, the value found, the value expected and the fix.
#define CHECK(condition, ...)                                          \
  do {                                                                 \
    if (!(condition)) ::gptoss::fail(__FILE__, __LINE__, __VA_ARGS__); \
  } while (false)
