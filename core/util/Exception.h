#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace torch_tensorrt {

// What every failed TORCHTRT_CHECK throws. Python sees it as a RuntimeError with the text of what().
// Immutable, so it may be shared between threads.
class Error : public std::exception {
 public:
  Error(const char* file, uint32_t line, const std::string& msg);

  // The message alone, without the place in the source.
  const std::string& msg() const noexcept {
    return msg_;
  }

  const char* what() const noexcept override {
    return what_.c_str();
  }

 private:
  std::string msg_;
  std::string what_;
};

} // namespace torch_tensorrt
