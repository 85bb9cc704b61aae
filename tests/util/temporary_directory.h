#pragma once

#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <system_error>

namespace torch_tensorrt::tests {

// A new, empty directory, removed at the end with everything in it. It is created in $TEST_TMPDIR, which Bazel sets, or
// else in the system's directory for temporary files.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    const char* named = std::getenv("TEST_TMPDIR");
    const std::filesystem::path parent = named != nullptr ? named : std::filesystem::temp_directory_path();
    std::random_device random;
    do {
      path_ = parent / ("torchtrt_test_" + std::to_string(random()));
    } while (!std::filesystem::create_directory(path_));
  }

  ~TemporaryDirectory() {
    std::error_code ignored; // if a test closed the directory to itself, its own failure says so
    std::filesystem::remove_all(path_, ignored);
  }

  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const {
    return path_;
  }

  // The path of the file `name` in the directory.
  std::string file(const std::string& name) const {
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

} // namespace torch_tensorrt::tests
