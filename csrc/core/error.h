// The exceptions of the native code and the check that throws it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

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

template <typename Exception = Error, typename... Parts>
[[noreturn]] void fail(const char* file, int line, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  const std::string path(file);
  message << " (" << path.substr(path.find_last_of('/') + 1) << ":" << line << ")";
  throw Exception(message.str());
}

}  // namespace gptoss

// CHECK(condition, parts...): throws Error with the parts joined, then file and line. The parts name what
// was checked, the value found, the value expected and the fix.
#define CHECK(condition, ...)                                          \
  do {                                                                 \
    if (!(condition)) ::gptoss::fail(__FILE__, __LINE__, __VA_ARGS__); \
  } while (false)
