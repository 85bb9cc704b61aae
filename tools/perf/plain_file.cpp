#include "tools/perf/plain_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/util/macros.h"

namespace torch_tensorrt::perf {

void check(bool condition, const char* call) {
  TORCHTRT_CHECK(condition, call << ": " << std::strerror(errno));
}

Buffer read_plainly(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(file >= 0, "open");
  struct stat status{};
  check(::fstat(file, &status) == 0, "fstat");
  const auto size = static_cast<size_t>(status.st_size);
  auto buffer = std::make_unique_for_overwrite<std::byte[]>(size);
  for (size_t done = 0; done < size;) {
    const ssize_t n = ::read(file, buffer.get() + done, size - done);
    check(n > 0, "read");
    done += static_cast<size_t>(n);
  }
  ::close(file);
  return buffer;
}

void write_plainly(const std::string& path, std::span<const std::byte> bytes) {
  const std::string temporary = path + ".new";
  const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  check(file >= 0, "open");
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(file, bytes.data() + done, bytes.size() - done);
    check(n > 0, "write");
    done += static_cast<size_t>(n);
  }
  check(::fsync(file) == 0, "fsync");
  check(::rename(temporary.c_str(), path.c_str()) == 0, "rename");
  const int directory = ::open(std::filesystem::path(path).parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check(directory >= 0, "open");
  check(::fsync(directory) == 0, "fsync");
  ::close(directory);
  ::close(file);
}

} // namespace torch_tensorrt::perf
