#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "core/util/prelude.h"

namespace torch_tensorrt::tests {

// Numbers in this machine's byte order, strings as a uint64 length and their bytes.
class ByteWriter {
 public:
  explicit ByteWriter(size_t expected_size = 0) {
    bytes_.reserve(expected_size);
  }

  template <class T>
  void number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    bytes_.append(raw, sizeof(T));
  }

  void text(std::string_view text) {
    number(static_cast<uint64_t>(text.size()));
    bytes_.append(text);
  }

  const std::string& bytes() const {
    return bytes_;
  }

  std::string take() {
    return std::move(bytes_);
  }

 private:
  std::string bytes_;
};

// Reads what ByteWriter wrote. Throws torch_tensorrt::Error if fewer bytes are left than requested.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : rest_(bytes) {}

  template <class T>
  T number() {
    static_assert(std::is_arithmetic_v<T>);
    T value;
    std::memcpy(&value, raw(sizeof(T)).data(), sizeof(T));
    return value;
  }

  std::string_view text() {
    return raw(number<uint64_t>());
  }

  std::string_view raw(uint64_t size) {
    TORCHTRT_CHECK(size <= rest_.size(), "It ends early: " << size << " bytes wanted, " << rest_.size() << " left");
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  bool at_end() const {
    return rest_.empty();
  }

 private:
  std::string_view rest_;
};

// Detects accidents, not attacks. Reads eight bytes per step, because the blobs of a benchmark are many megabytes.
inline uint64_t checksum(std::string_view bytes) {
  constexpr uint64_t kOddConstant = 0x9E3779B97F4A7C15U;
  uint64_t sum = bytes.size();
  for (; !bytes.empty(); bytes.remove_prefix(std::min(bytes.size(), sizeof(uint64_t)))) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), std::min(bytes.size(), sizeof(word)));
    sum = (sum ^ word) * kOddConstant;
    sum ^= sum >> 32U;
  }
  return sum;
}

} // namespace torch_tensorrt::tests
