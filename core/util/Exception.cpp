#include "core/util/Exception.h"

namespace torch_tensorrt {

Error::Error(const char* file, uint32_t line, const std::string& msg)
    : msg_(msg), what_("[Error thrown at " + std::string(file) + ":" + std::to_string(line) + "] " + msg) {}

std::string message_of(const std::exception& error) {
  const auto* ours = dynamic_cast<const Error*>(&error);
  return ours != nullptr ? ours->msg() : error.what();
}

} // namespace torch_tensorrt
