// Checks of arguments: the message is what the caller wrote, as the reference ops' is.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace sigeo_ext {

template <class... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace sigeo_ext

// A macro, so that the parts of a message are made only where it is needed.
#define SIGEO_CHECK(condition, ...)                             \
  do {                                                          \
    if (__builtin_expect(!(condition), 0))                      \
      throw std::runtime_error(sigeo_ext::joined(__VA_ARGS__)); \
  } while (false)
