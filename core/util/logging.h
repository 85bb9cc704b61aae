#pragma once

#include <optional>
#include <string>
#include <string_view>

// Log lines go to stderr as `WARNING: [Torch-TensorRT] - text`, each in one write, so that lines of several threads
// and processes do not mix. The default level is kWARNING. The environment variable TORCHTRT_LOG_LEVEL sets another
// one, by a name or number that parse_level() knows. It is read at the first use. All functions are thread-safe, and
// work until the last static destructor has run.
namespace torch_tensorrt::core::util::logging {

// Least verbose first. The values are upstream's; the first five equal those of nvinfer1::ILogger::Severity.
enum class LogLevel : int {
  kINTERNAL_ERROR = 0,
  kERROR = 1,
  kWARNING = 2,
  kINFO = 3,
  kDEBUG = 4,
  kGRAPH = 5,
};

void set_reportable_log_level(LogLevel level);
LogLevel get_reportable_log_level();
bool is_reported(LogLevel level);

// Returns the level for "internal_error", "error", "warning", "info", "debug" or "graph" in any case, or for its
// number. Returns nullopt for any other text.
std::optional<LogLevel> parse_level(std::string_view text);

// Writes `message`, whatever the reportable level is. The LOG_* macros call is_reported() first.
void log(LogLevel level, const std::string& message);

} // namespace torch_tensorrt::core::util::logging
