// Directories and mounts where a cache file can't be locked, replaced or written as usual. They are made in children,
// which give up root's power over permissions, or get a mount namespace of their own.

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>

#include "core/runtime/RuntimeCacheFile.h"
#include "core/util/Exception.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_cache_testing.h"
#include "tests/util/processes/child_process.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {
namespace {

namespace fs = std::filesystem;
using core::runtime::RuntimeCacheFile;
using ::testing::UnorderedElementsAre;
using Bytes = RuntimeCacheFile::Bytes;
using View = RuntimeCacheFile::View;

Bytes concatenate(View disk, View ours) {
  return owned(text(disk) + text(ours));
}

void require_system(bool condition, const std::string& what) {
  require(condition, what + ": " + std::strerror(errno));
}

void require_contains(const std::string& text, const std::string& part) {
  require(text.find(part) != std::string::npos, "no '" + part + "' in: " + text);
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++n;
  }
  return n;
}

// From here on permissions count for this process, as they do for everybody but root.
void give_up_capabilities() {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  require_system(::syscall(SYS_capset, &header, none) == 0, "capset");
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  require(false, "nothing was thrown");
  return "";
}

constexpr int kNotPermitted = 77;

// False if this user may have no mount namespace here. Nothing that is mounted in it is seen outside.
bool enter_mount_namespace() {
  if (::unshare(CLONE_NEWNS) != 0) {
    const std::string user = std::to_string(::geteuid());
    const std::string group = std::to_string(::getegid());
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
      return false;
    }
    // Without a name in the new namespace this user could create no file there. A group may be named only where
    // setgroups is given up.
    write_file("/proc/self/setgroups", "deny");
    write_file("/proc/self/uid_map", user + " " + user + " 1");
    write_file("/proc/self/gid_map", group + " " + group + " 1");
  }
  return ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
}

class RuntimeCacheFilePlaces : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(folder_);
  }

  void TearDown() override {
    ::chmod(folder_.c_str(), 0755);
  }

  void close_folder() const {
    ASSERT_EQ(::chmod(folder_.c_str(), 0555), 0);
  }

  static void in_child(const std::function<void()>& body) {
    ChildProcess child([&body](Channel&) { body(); });
    ASSERT_EQ(child.wait(), 0);
  }

  static void in_mount_namespace(const std::function<void()>& body) {
    ChildProcess child([&body](Channel&) {
      if (!enter_mount_namespace()) {
        ::_exit(kNotPermitted);
      }
      body();
    });
    const int status = child.wait();
    if (status == kNotPermitted) {
      GTEST_SKIP() << "this user may not make a mount namespace here";
    }
    ASSERT_EQ(status, 0);
  }

  const TemporaryDirectory directory_;
  const std::string folder_ = directory_.file("folder");
  const std::string path_ = folder_ + "/cache.bin";
};

TEST_F(RuntimeCacheFilePlaces, AReadOnlyDirectoryLoadsWithoutALock) {
  write_file(path_, "baked in");
  close_folder();
  in_child([this] {
    give_up_capabilities();
    RuntimeCacheFile file(path_);
    require(load(file) == "baked in", "not loaded");
    const std::string message = error_of([&] { file.save(view("ours"), concatenate); });
    require_contains(message, "Can't save the runtime cache '" + path_ + "'");
    require_contains(message, "Permission denied");
  });
  EXPECT_THAT(names_in(folder_), UnorderedElementsAre("cache.bin"));
}

TEST_F(RuntimeCacheFilePlaces, AReadOnlyMountLoadsWithAndWithoutALockFile) {
  write_file(path_, "baked in");
  write_file(folder_ + "/locked.bin", "baked in too");
  write_file(folder_ + "/locked.bin.lock", "");
  in_mount_namespace([this] {
    require_system(::mount(folder_.c_str(), folder_.c_str(), nullptr, MS_BIND, nullptr) == 0, "mount");
    require_system(
        ::mount(nullptr, folder_.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr) == 0, "remount");
    RuntimeCacheFile file(path_);
    require(load(file) == "baked in", "not loaded");
    RuntimeCacheFile locked(folder_ + "/locked.bin");
    require(load(locked) == "baked in too", "not loaded");
    require_contains(error_of([&] { file.save(view("ours"), concatenate); }), "Read-only file system");
    require_contains(error_of([&] { locked.save(view("ours"), concatenate); }), "Read-only file system");
  });
}

// Somebody else may hold a lock that we can't see, so this is not a read-only directory.
TEST_F(RuntimeCacheFilePlaces, ALockFileClosedToUsIsAnError) {
  write_file(path_, "theirs");
  write_file(path_ + ".lock", "");
  ASSERT_EQ(::chmod((path_ + ".lock").c_str(), 0), 0);
  close_folder();
  in_child([this] {
    give_up_capabilities();
    RuntimeCacheFile file(path_);
    require_contains(error_of([&] { load(file); }), "Permission denied");
  });
}

TEST_F(RuntimeCacheFilePlaces, AFileOrDirectoryThatMayNotBeReadIsAnError) {
  write_file(path_, "theirs");
  ASSERT_EQ(::chmod(path_.c_str(), 0), 0);
  in_child([this] {
    give_up_capabilities();
    RuntimeCacheFile file(path_);
    require_contains(error_of([&] { load(file); }), "Can't load the runtime cache '" + path_ + "': open");
    require_contains(error_of([&] { file.save(view("ours"), concatenate); }), "Permission denied");
    require_system(::chmod(folder_.c_str(), 0) == 0, "chmod");
    require_contains(error_of([&] { load(file); }), "Permission denied");
    require_contains(error_of([&] { file.save(view("ours"), concatenate); }), "Permission denied");
  });
}

TEST_F(RuntimeCacheFilePlaces, ADirectoryThatMayNotBeListedIsSavedTo) {
  ASSERT_EQ(::chmod(folder_.c_str(), 0333), 0);
  in_child([this] {
    give_up_capabilities();
    require(RuntimeCacheFile(path_).save(view("ours"), concatenate) == 4, "not saved");
  });
  EXPECT_EQ(read_file(path_), "ours");
}

TEST_F(RuntimeCacheFilePlaces, AnOpenFileInAClosedDirectoryIsWrittenInPlaceWithOneWarning) {
  write_file(path_, "theirs,");
  write_file(path_ + ".lock", "");
  close_folder();
  in_child([this] {
    give_up_capabilities();
    struct stat before{};
    require_system(::stat(path_.c_str(), &before) == 0, "stat");
    ::testing::internal::CaptureStderr();
    RuntimeCacheFile file(path_);
    require(file.save(view("and ours"), concatenate) == 15, "not saved");
    require(read_file(path_) == "theirs,and ours", "longer: " + read_file(path_));
    require(file.save(view("ours"), [](View, View ours) { return Bytes{ours, nullptr}; }) == 4, "not saved");
    require(read_file(path_) == "ours", "shorter: " + read_file(path_));
    const std::string log = ::testing::internal::GetCapturedStderr();
    require(count(log, "WARNING") == 1 && count(log, "is written in place") == 1, log);
    struct stat after{};
    require_system(::stat(path_.c_str(), &after) == 0, "stat");
    require(after.st_ino == before.st_ino, "replaced");
  });
  EXPECT_THAT(names_in(folder_), UnorderedElementsAre("cache.bin", "cache.bin.lock"));
}

TEST_F(RuntimeCacheFilePlaces, AClosedFileInAClosedDirectoryIsAnError) {
  write_file(path_, "theirs");
  write_file(path_ + ".lock", "");
  ASSERT_EQ(::chmod(path_.c_str(), 0444), 0);
  close_folder();
  in_child([this] {
    give_up_capabilities();
    RuntimeCacheFile file(path_);
    load(file);
    require_contains(error_of([&] { file.save(view("ours"), concatenate); }), "Permission denied");
  });
  EXPECT_EQ(read_file(path_), "theirs");
}

TEST_F(RuntimeCacheFilePlaces, AFileMountedByItselfIsWrittenInPlace) {
  write_file(path_, "");
  const std::string source = directory_.file("source");
  write_file(source, "");
  in_mount_namespace([&] {
    require_system(::mount(source.c_str(), path_.c_str(), nullptr, MS_BIND, nullptr) == 0, "mount");
    RuntimeCacheFile file(path_);
    require(file.save(view("first"), concatenate) == 5, "not saved");
    require(file.save(view("1st"), concatenate) == 3, "not saved");
    require(names_in(folder_).size() == 2, "litter");
    RuntimeCacheFile other(path_);
    require(other.save(view(",2nd"), concatenate) == 7, "not saved");
    require(file.save(view(",3rd"), concatenate) == 11, "not saved");
  });
  if (!IsSkipped()) {
    EXPECT_EQ(read_file(source), "1st,2nd,3rd");
    EXPECT_EQ(read_file(path_), "");
  }
}

TEST_F(RuntimeCacheFilePlaces, AFullDiskLeavesTheOldFile) {
  in_mount_namespace([this] {
    require_system(::mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=1m") == 0, "mount");
    RuntimeCacheFile file(path_);
    file.save(view("theirs"), concatenate);
    const std::string message = error_of([&] { file.save(view(std::string(2 << 20, 'x')), concatenate); });
    require_contains(message, "Can't save the runtime cache '" + path_ + "'");
    require_contains(message, "No space left on device");
    require(read_file(path_) == "theirs", "the old file is gone");
    require(names_in(folder_) == std::set<std::string>{"cache.bin", "cache.bin.lock"}, "litter");
    require(file.save(view("ours"), concatenate) == 4, "the space is not free again");
  });
}

TEST_F(RuntimeCacheFilePlaces, AFullDiskLeavesAFileThatIsWrittenInPlace) {
  in_mount_namespace([this] {
    require_system(::mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=1m") == 0, "mount");
    write_file(folder_ + "/source", "theirs");
    write_file(path_, "");
    require_system(::mount((folder_ + "/source").c_str(), path_.c_str(), nullptr, MS_BIND, nullptr) == 0, "mount");
    write_file(folder_ + "/filler", std::string(400 << 10, 'x'));
    RuntimeCacheFile file(path_);
    load(file);
    // The temporary file fits, but is in the way of the bytes in place.
    const std::string large(500 << 10, 'x');
    require(file.save(view(large), concatenate) == large.size(), "not saved");
    require(read_file(path_) == large, "not written");
    const std::string message = error_of([&] { file.save(view(std::string(700 << 10, 'y')), concatenate); });
    require_contains(message, "No space left on device");
    require(read_file(path_) == large, "the old contents are gone");
  });
}

} // namespace
} // namespace torch_tensorrt::tests
