#include "core/util/Exception.h"

namespace torch_tensorrt {

Error::Error(const char* file, uint32_t line, const std::string& msg)
    : msg_(msg), what_("[Error thrown at " + std::string(file) + ":" + std::to_string(line) + "] " + msg) {}

} // namespace torch_tensorrt
