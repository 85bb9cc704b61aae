#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace torch_tensorrt {

// Thrown by TORCHTRT_THROW_ERROR and by a failed TORCHTRT_CHECK. Python sees it as a RuntimeError with the text of
// what(). Thread-safe, because it is immutable.
class Error : public std::exception {
 public:
  Error(const char* file, uint32_t line, const std::string& msg);

  // Returns the message without the source location.
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

// Returns what() without the source location.
std::string message_of(const std::exception& error);

} // namespace torch_tensorrt
