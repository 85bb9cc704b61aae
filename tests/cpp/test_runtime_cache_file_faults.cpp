// Every system call that a load or save makes fails in turn. This program defines the calls itself, which takes
// precedence over the C library's, and passes them on unless one is to fail.

#undef _FORTIFY_SOURCE // its inline functions would stand in for the ones defined here

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>

#include "core/runtime/RuntimeCacheFile.h"
#include "core/util/Exception.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_cache_testing.h"
#include "tests/util/temporary_directory.h"

namespace {

// Which call of the armed thread fails, and how.
struct Faults {
  int calls_until_failure = 0; // 0: none fails
  int error = 0;
  std::string only;             // if not empty, other calls are not counted
  std::string failed;           // the call that did fail
  size_t most_bytes = SIZE_MAX; // that one read or write moves
  bool no_rename = false;       // as if the file were a mount point
};

thread_local Faults* faults = nullptr;

bool fails(const char* call) {
  if (faults == nullptr || (!faults->only.empty() && faults->only != call)) {
    return false;
  }
  if (faults->calls_until_failure == 0 || --faults->calls_until_failure > 0) {
    return false;
  }
  faults->failed = call;
  errno = faults->error;
  return true;
}

size_t limited(size_t size) {
  return faults == nullptr ? size : std::min(size, faults->most_bytes);
}

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

} // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  mode_t mode = 0;
  if ((flags & O_CREAT) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
  }
  static auto* const real = next<int(const char*, int, ...)>("open");
  return fails("open") ? -1 : real(path, flags, mode);
}

ssize_t pread(int fd, void* buffer, size_t size, off_t offset) {
  static auto* const real = next<ssize_t(int, void*, size_t, off_t)>("pread");
  return fails("pread") ? -1 : real(fd, buffer, limited(size), offset);
}

ssize_t pwrite(int fd, const void* buffer, size_t size, off_t offset) {
  static auto* const real = next<ssize_t(int, const void*, size_t, off_t)>("pwrite");
  return fails("pwrite") ? -1 : real(fd, buffer, limited(size), offset);
}

int fsync(int fd) {
  static auto* const real = next<int(int)>("fsync");
  return fails("fsync") ? -1 : real(fd);
}

int rename(const char* from, const char* to) noexcept {
  static auto* const real = next<int(const char*, const char*)>("rename");
  if (faults != nullptr && faults->no_rename) {
    errno = EBUSY;
    return -1;
  }
  return fails("rename") ? -1 : real(from, to);
}

int ftruncate(int fd, off_t size) noexcept {
  static auto* const real = next<int(int, off_t)>("ftruncate");
  return fails("ftruncate") ? -1 : real(fd, size);
}

int fchmod(int fd, mode_t mode) noexcept {
  static auto* const real = next<int(int, mode_t)>("fchmod");
  return fails("fchmod") ? -1 : real(fd, mode);
}

int fchown(int fd, uid_t owner, gid_t group) noexcept {
  static auto* const real = next<int(int, uid_t, gid_t)>("fchown");
  return fails("fchown") ? -1 : real(fd, owner, group);
}

int futimens(int fd, const struct timespec times[2]) noexcept {
  static auto* const real = next<int(int, const struct timespec*)>("futimens");
  return fails("futimens") ? -1 : real(fd, times);
}

int flock(int fd, int operation) noexcept {
  static auto* const real = next<int(int, int)>("flock");
  return fails("flock") ? -1 : real(fd, operation);
}

} // extern "C"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::RuntimeCacheFile;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
using Bytes = RuntimeCacheFile::Bytes;
using View = RuntimeCacheFile::View;

class Armed {
 public:
  explicit Armed(Faults& what) {
    faults = &what;
  }
  ~Armed() {
    faults = nullptr;
  }
  Armed(const Armed&) = delete;
  Armed& operator=(const Armed&) = delete;
};

class RuntimeCacheFileFaults : public ::testing::Test {
 protected:
  static Bytes concatenate(View disk, View ours) {
    return owned(text(disk) + text(ours));
  }

  // What save() threw; empty if it succeeded.
  std::string save_with(Faults& planned) {
    RuntimeCacheFile file(path_, std::chrono::milliseconds(0));
    const Armed armed(planned);
    try {
      file.save(view("ours"), &concatenate);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  // The time lies ahead, so that each save has to set the time of the new file, whatever the clock says.
  void reset() {
    write_file(path_, "theirs,");
    std::filesystem::last_write_time(path_, std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  }

  // As the next process finds it.
  std::string loaded() {
    RuntimeCacheFile file(path_, std::chrono::milliseconds(0));
    return load(file).value_or("");
  }

  // Fails the calls of a save in turn until there is none left, and answers which failed.
  std::set<std::string> fail_each_call_of_a_save(int error) {
    std::set<std::string> failed;
    for (int n = 1;; ++n) {
      reset();
      Faults planned{.calls_until_failure = n, .error = error, .only = "", .failed = ""};
      const std::string message = save_with(planned);
      if (planned.failed.empty()) {
        return failed;
      }
      failed.insert(planned.failed);
      SCOPED_TRACE(std::to_string(n) + ", a call of " + planned.failed);
      if (message.empty()) {
        EXPECT_EQ(loaded(), "theirs,ours");
      } else {
        EXPECT_THAT(message, HasSubstr("Can't save the runtime cache '" + path_ + "'"));
        EXPECT_THAT(message, HasSubstr(std::strerror(error)));
        const bool was_last_step = message.find("'" + directory_.path().string() + "'") != std::string::npos;
        EXPECT_EQ(loaded(), was_last_step ? "theirs,ours" : "theirs,");
      }
      EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre("cache.bin", "cache.bin.lock"));
    }
  }

  const TemporaryDirectory directory_;
  const std::string path_ = directory_.file("cache.bin");
};

TEST_F(RuntimeCacheFileFaults, ASaveThatFailsAnywhereLeavesTheOldFileAndNoLitter) {
  for (const int error : {EIO, ENOSPC, EDQUOT}) {
    EXPECT_THAT(
        fail_each_call_of_a_save(error),
        UnorderedElementsAre("open", "pread", "pwrite", "fsync", "rename", "fchmod", "fchown", "futimens", "flock"));
  }
}

TEST_F(RuntimeCacheFileFaults, ALoadThatFailsAnywhereSaysSo) {
  for (int n = 1;; ++n) {
    reset();
    RuntimeCacheFile file(path_, std::chrono::milliseconds(0));
    Faults planned{.calls_until_failure = n, .error = EIO, .only = "", .failed = ""};
    try {
      const Armed armed(planned);
      load(file);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("Can't load the runtime cache '" + path_ + "'"));
      EXPECT_THAT(error.what(), HasSubstr(std::strerror(EIO)));
    }
    if (planned.failed.empty()) {
      break;
    }
    EXPECT_EQ(loaded(), "theirs,");
  }
}

TEST_F(RuntimeCacheFileFaults, AnInterruptedCallIsMadeAgain) {
  for (const char* call : {"open", "pread", "pwrite", "fsync"}) {
    for (int n = 1;; ++n) {
      reset();
      Faults planned{.calls_until_failure = n, .error = EINTR, .only = call, .failed = ""};
      EXPECT_EQ(save_with(planned), "") << call << ' ' << n;
      EXPECT_EQ(read_file(path_), "theirs,ours");
      if (planned.failed.empty()) {
        break;
      }
    }
  }
}

TEST_F(RuntimeCacheFileFaults, ReadsAndWritesThatStopShortAreContinued) {
  reset();
  Faults planned;
  planned.most_bytes = 2;
  EXPECT_EQ(save_with(planned), "");
  EXPECT_EQ(read_file(path_), "theirs,ours");
  const Armed armed(planned);
  RuntimeCacheFile file(path_);
  EXPECT_EQ(load(file), "theirs,ours");
}

TEST_F(RuntimeCacheFileFaults, ADirectoryThatCanNotBeSyncedByNatureIsNoError) {
  reset();
  Faults planned{.calls_until_failure = 2, .error = EINVAL, .only = "fsync", .failed = ""};
  EXPECT_EQ(save_with(planned), "");
  EXPECT_EQ(planned.failed, "fsync");
}

TEST_F(RuntimeCacheFileFaults, WhereARenameIsImpossibleTheFileIsWrittenInPlace) {
  for (const int error : {EBUSY, EPERM, EACCES}) {
    reset();
    struct stat before{};
    ASSERT_EQ(::stat(path_.c_str(), &before), 0);
    Faults planned{.calls_until_failure = 1, .error = error, .only = "rename", .failed = ""};
    EXPECT_EQ(save_with(planned), "");
    EXPECT_EQ(planned.failed, "rename");
    EXPECT_EQ(read_file(path_), "theirs,ours");
    struct stat after{};
    ASSERT_EQ(::stat(path_.c_str(), &after), 0);
    EXPECT_EQ(after.st_ino, before.st_ino);
    EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre("cache.bin", "cache.bin.lock"));
  }
}

TEST_F(RuntimeCacheFileFaults, AWriteInPlaceThatFindsNoSpaceLeavesTheOldContents) {
  reset();
  // The first write goes to the temporary file, the second puts the longer end behind the old contents.
  Faults no_space{.calls_until_failure = 2, .error = ENOSPC, .only = "pwrite", .failed = ""};
  no_space.no_rename = true;
  EXPECT_THAT(save_with(no_space), HasSubstr(std::strerror(ENOSPC)));
  EXPECT_EQ(no_space.failed, "pwrite");
  EXPECT_EQ(read_file(path_), "theirs,");
}

} // namespace
} // namespace torch_tensorrt::tests
