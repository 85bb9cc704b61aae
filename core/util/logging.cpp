#include "core/util/logging.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>

namespace torch_tensorrt::core::util::logging {
namespace {

constexpr std::array<std::string_view, 6> kLevelNames =
    {"INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "DEBUG", "GRAPH"};

constexpr std::string_view kEnvironmentVariable = "TORCHTRT_LOG_LEVEL";

char to_upper(char c) {
  return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
}

bool equals_ignoring_case(std::string_view text, std::string_view upper) {
  if (text.size() != upper.size()) {
    return false;
  }
  for (size_t i = 0; i < text.size(); ++i) {
    if (to_upper(text[i]) != upper[i]) {
      return false;
    }
  }
  return true;
}

LogLevel level_from_environment() {
  const char* text = std::getenv(kEnvironmentVariable.data());
  if (text == nullptr || *text == '\0') {
    return LogLevel::kWARNING;
  }
  if (const auto level = parse_level(text)) {
    return *level;
  }
  log(LogLevel::kWARNING,
      std::string(kEnvironmentVariable) + " is '" + text +
          "', expected internal_error, error, warning, info, debug, graph or 0 to 5; using warning");
  return LogLevel::kWARNING;
}

// A LogLevel, or kUnknown until the environment variable is read. Not a static with an initializer: if another thread
// were running that during a fork, the child would wait for it forever.
constexpr int kUnknown = -1;
std::atomic<int> reportable_level = kUnknown;

} // namespace

void set_reportable_log_level(LogLevel level) {
  reportable_level = static_cast<int>(level);
}

LogLevel get_reportable_log_level() {
  int level = reportable_level;
  if (level == kUnknown) {
    const LogLevel first = level_from_environment();
    return reportable_level.compare_exchange_strong(level, static_cast<int>(first)) ? first
                                                                                    : static_cast<LogLevel>(level);
  }
  return static_cast<LogLevel>(level);
}

bool is_reported(LogLevel level) {
  return level <= get_reportable_log_level();
}

std::optional<LogLevel> parse_level(std::string_view text) {
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    const bool is_number = text.size() == 1 && text[0] == static_cast<char>('0' + i);
    if (is_number || equals_ignoring_case(text, kLevelNames[i])) {
      return static_cast<LogLevel>(i);
    }
  }
  return std::nullopt;
}

void log(LogLevel level, const std::string& message) {
  std::string line(kLevelNames.at(static_cast<size_t>(level)));
  line += ": [Torch-TensorRT] - ";
  line += message;
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stderr);
}

} // namespace torch_tensorrt::core::util::logging
