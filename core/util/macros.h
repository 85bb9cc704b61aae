#pragma once

#include <sstream>

#include "core/util/Exception.h"
#include "core/util/logging.h"

// The `...` of every macro here is a stream expression: TORCHTRT_CHECK(n > 0, "got " << n << " bytes").
// It is evaluated only if the message is needed.

#define TORCHTRT_LOG(level, ...)                                                    \
  do {                                                                              \
    if (::torch_tensorrt::core::util::logging::is_reported(level)) {                \
      std::ostringstream torchtrt_log_stream;                                       \
      torchtrt_log_stream << __VA_ARGS__;                                           \
      ::torch_tensorrt::core::util::logging::log(level, torchtrt_log_stream.str()); \
    }                                                                               \
  } while (false)

#define LOG_DEBUG(...) TORCHTRT_LOG(::torch_tensorrt::core::util::logging::LogLevel::kDEBUG, __VA_ARGS__)
#define LOG_INFO(...) TORCHTRT_LOG(::torch_tensorrt::core::util::logging::LogLevel::kINFO, __VA_ARGS__)
#define LOG_WARNING(...) TORCHTRT_LOG(::torch_tensorrt::core::util::logging::LogLevel::kWARNING, __VA_ARGS__)
#define LOG_ERROR(...) TORCHTRT_LOG(::torch_tensorrt::core::util::logging::LogLevel::kERROR, __VA_ARGS__)

#define TORCHTRT_THROW_ERROR(...)                                                                          \
  do {                                                                                                     \
    std::ostringstream torchtrt_error_stream;                                                              \
    torchtrt_error_stream << __VA_ARGS__;                                                                  \
    throw ::torch_tensorrt::Error(__FILE__, static_cast<uint32_t>(__LINE__), torchtrt_error_stream.str()); \
  } while (false)

// Throws torch_tensorrt::Error unless `cond` holds. Its message begins with the text of `cond`, so TORCHTRT_THROW_ERROR
// is better where a user can cause the failure.
#define TORCHTRT_CHECK(cond, ...)                                                           \
  do {                                                                                      \
    if (!(cond)) {                                                                          \
      TORCHTRT_THROW_ERROR("Expected " #cond " to be true but got false\n" << __VA_ARGS__); \
    }                                                                                       \
  } while (false)
