#include "core/runtime/RuntimeCacheFile.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/util/Exception.h"
#include "core/util/file_lock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_cache_testing.h"
#include "tests/util/processes/child_process.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {
namespace {

namespace fs = std::filesystem;
using core::runtime::RuntimeCacheFile;
using core::util::FileLock;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAre;
using Bytes = RuntimeCacheFile::Bytes;
using View = RuntimeCacheFile::View;

constexpr std::chrono::milliseconds kShortTimeout{20};

Bytes not_expected(View, View) {
  throw std::logic_error("merge was called");
}

Bytes concatenate(View disk, View ours) {
  return owned(text(disk) + text(ours));
}

class RuntimeCacheFileTest : public ::testing::Test {
 protected:
  RuntimeCacheFile file() const {
    return RuntimeCacheFile(path_, kShortTimeout);
  }

  // As another process would.
  void save_as_other(const std::string& bytes) const {
    RuntimeCacheFile other(path_);
    ASSERT_EQ(
        other.save(view(bytes), [](View, View ours) { return Bytes{.view = ours, .owner = nullptr}; }), bytes.size());
  }

  mode_t mode() const {
    struct stat status{};
    EXPECT_EQ(::stat(path_.c_str(), &status), 0);
    return status.st_mode & 07777;
  }

  ino_t inode() const {
    struct stat status{};
    EXPECT_EQ(::stat(path_.c_str(), &status), 0);
    return status.st_ino;
  }

  const TemporaryDirectory directory_;
  const std::string path_ = directory_.file("cache.bin");
  const std::string lock_path_ = path_ + ".lock";
};

TEST_F(RuntimeCacheFileTest, MissingFileIsNoErrorAndCreatesNothing) {
  RuntimeCacheFile missing = file();
  EXPECT_EQ(load(missing), std::nullopt);
  RuntimeCacheFile in_missing_directory(directory_.file("no/such/cache.bin"));
  EXPECT_EQ(load(in_missing_directory), std::nullopt);
  EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre());
}

TEST_F(RuntimeCacheFileTest, EmptyFileIsAMissingOne) {
  write_file(path_, "");
  RuntimeCacheFile empty = file();
  EXPECT_EQ(load(empty), std::nullopt);
  EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre("cache.bin"));
  EXPECT_EQ(empty.save(view("ours"), not_expected), 4U);
  EXPECT_EQ(read_file(path_), "ours");
}

TEST_F(RuntimeCacheFileTest, SavingNothingWritesNothing) {
  EXPECT_EQ(file().save({}, not_expected), 0U);
  EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre());
  write_file(path_, "theirs");
  EXPECT_EQ(file().save({}, not_expected), 0U);
  EXPECT_EQ(read_file(path_), "theirs");
}

class RoundTripTest : public RuntimeCacheFileTest, public ::testing::WithParamInterface<size_t> {};

TEST_P(RoundTripTest, GivesBackTheBytes) {
  std::string bytes(GetParam(), '\0');
  for (size_t i = 0; i < bytes.size(); i += 1021) { // a prime, so that no page or piece looks like another
    bytes[i] = static_cast<char>(i / 1021 + 1);
  }
  RuntimeCacheFile writer = file();
  EXPECT_EQ(writer.save(view(bytes), not_expected), bytes.size());
  RuntimeCacheFile reader = file();
  const auto loaded = load(reader);
  ASSERT_TRUE(loaded);
  EXPECT_TRUE(*loaded == bytes); // not EXPECT_EQ, which would print them
  EXPECT_EQ(reader.save(view(bytes), not_expected), 0U);
  EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre("cache.bin", "cache.bin.lock"));
}

INSTANTIATE_TEST_SUITE_P(
    Sizes,
    RoundTripTest,
    ::testing::Values(1, 4095, 4096, 256 * 1024, 256 * 1024 + 1, 64 * 1024 * 1024 - 1, 512 * 1024 * 1024));

TEST_F(RuntimeCacheFileTest, SavingTheSameBytesTouchesNothing) {
  save_as_other("kernels");
  const ino_t before = inode();
  EXPECT_EQ(file().save(view("kernels"), not_expected), 0U);
  EXPECT_EQ(inode(), before);
}

TEST_F(RuntimeCacheFileTest, OneByteIsDifferenceEnough) {
  std::string bytes(200'000, 'x');
  RuntimeCacheFile ours = file();
  ours.save(view(bytes), not_expected);
  for (const size_t at : {0U, 65'535U, 65'536U, 100'000U, 131'072U, 199'999U}) {
    bytes[at] = 'y';
    EXPECT_EQ(ours.save(view(bytes), not_expected), bytes.size()) << at;
    EXPECT_TRUE(read_file(path_) == bytes) << at;
  }
}

TEST_F(RuntimeCacheFileTest, SavesOverWhatItLoadedOrSavedWithoutMerging) {
  save_as_other("theirs");
  RuntimeCacheFile ours = file();
  load(ours);
  EXPECT_EQ(ours.save(view("theirs and ours"), not_expected), 15U);
  EXPECT_EQ(ours.save(view("ours"), not_expected), 4U);
  EXPECT_EQ(read_file(path_), "ours");
}

TEST_F(RuntimeCacheFileTest, MergesWithWhatItHasNotRead) {
  save_as_other("theirs,");
  RuntimeCacheFile ours = file();
  EXPECT_EQ(ours.save(view("ours"), concatenate), 11U);
  EXPECT_EQ(read_file(path_), "theirs,ours");
}

TEST_F(RuntimeCacheFileTest, AFileThatChangedSinceTheLoadIsMerged) {
  save_as_other("old,");
  RuntimeCacheFile ours = file();
  load(ours);
  save_as_other("new,");
  EXPECT_EQ(ours.save(view("ours"), concatenate), 8U);
  EXPECT_EQ(read_file(path_), "new,ours");
}

// What a merge added is not in the caller's next bytes.
TEST_F(RuntimeCacheFileTest, TheSaveAfterAMergeLosesNothing) {
  save_as_other("theirs,");
  RuntimeCacheFile ours = file();
  ours.save(view("a"), concatenate);
  ours.save(view("b"), concatenate);
  EXPECT_EQ(read_file(path_), "theirs,ab");
}

TEST_F(RuntimeCacheFileTest, TheSaveAfterAMergeThatFoundNothingToAddLosesNothing) {
  save_as_other("theirs");
  RuntimeCacheFile ours = file();
  EXPECT_EQ(ours.save(view("a"), [](View disk, View) { return owned(text(disk)); }), 0U);
  EXPECT_EQ(ours.save(view("b"), concatenate), 7U);
  EXPECT_EQ(read_file(path_), "theirsb");
}

TEST_F(RuntimeCacheFileTest, TheSaveAfterAFailedOneLosesNothing) {
  save_as_other("theirs,");
  RuntimeCacheFile ours = file();
  EXPECT_THROW(
      ours.save(view("ours"), [](View, View) -> Bytes { throw std::runtime_error("no device"); }), std::runtime_error);
  EXPECT_EQ(ours.save(view("ours"), concatenate), 11U);
  EXPECT_EQ(read_file(path_), "theirs,ours");
}

TEST_F(RuntimeCacheFileTest, AMergeMayReturnItsArgumentsOrNothing) {
  save_as_other("theirs");
  RuntimeCacheFile ours = file();
  EXPECT_EQ(ours.save(view("ours"), [](View disk, View) { return Bytes{.view = disk, .owner = nullptr}; }), 0U);
  EXPECT_EQ(ours.save(view("ours"), [](View, View) { return Bytes{}; }), 0U);
  EXPECT_EQ(
      ours.save(view("ours"), [](View disk, View) { return Bytes{.view = disk.first(3), .owner = nullptr}; }), 3U);
  EXPECT_EQ(read_file(path_), "the");
  EXPECT_EQ(ours.save(view("ours"), [](View, View own) { return Bytes{.view = own, .owner = nullptr}; }), 4U);
  EXPECT_EQ(ours.save(view("ours again"), not_expected), 10U) << "what it wrote as it was is what it has";
}

TEST_F(RuntimeCacheFileTest, AFileThatIsGoneIsWrittenAnew) {
  RuntimeCacheFile ours = file();
  ours.save(view("ours"), not_expected);
  fs::remove(path_);
  EXPECT_EQ(ours.save(view("ours"), not_expected), 4U);
  EXPECT_EQ(read_file(path_), "ours");
}

TEST_F(RuntimeCacheFileTest, OthersMaySaveDuringTheFirstMergeAndWaitForTheSecond) {
  save_as_other("0");
  int merges = 0;
  int saves_of_others = 0;
  RuntimeCacheFile ours = file();
  ours.save(view("ours"), [&](View disk, View own) {
    RuntimeCacheFile other = file();
    const std::string theirs = text(disk) + std::to_string(++merges);
    try {
      other.save(view(theirs), [](View, View bytes) { return Bytes{.view = bytes, .owner = nullptr}; });
      ++saves_of_others;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(lock_path_));
    }
    return concatenate(disk, own);
  });
  EXPECT_EQ(merges, 2);
  EXPECT_EQ(saves_of_others, 1);
  EXPECT_EQ(read_file(path_), "01ours");
}

// Equal sizes, the same tick of the clock, and a file system that gives the freed inode out again at once.
TEST_F(RuntimeCacheFileTest, NoTwoGenerationsLookAlike) {
  for (int i = 0; i < 50; ++i) {
    fs::remove(path_);
    RuntimeCacheFile ours = file();
    ours.save(view("1"), not_expected);
    save_as_other("2");
    save_as_other("3");
    ours.save(view("4"), concatenate);
    ASSERT_EQ(read_file(path_), "34");
  }
}

TEST_F(RuntimeCacheFileTest, ANewGenerationIsLaterThoughTheClockWasSetBack) {
  RuntimeCacheFile ours = file();
  ours.save(view("1"), not_expected);
  const auto future = fs::last_write_time(path_) + std::chrono::hours(24);
  fs::last_write_time(path_, future);
  save_as_other("2");
  EXPECT_GT(fs::last_write_time(path_), future);
}

TEST_F(RuntimeCacheFileTest, AHeldLockMakesSaveAndLoadTimeOut) {
  save_as_other("theirs");
  FileLock held(lock_path_);
  held.lock();
  const auto names_all = AllOf(HasSubstr("'" + path_ + "'"), HasSubstr("'" + lock_path_ + "'"), HasSubstr("20 ms"));
  RuntimeCacheFile ours = file();
  EXPECT_THAT(error_of([&] { ours.save(view("ours"), not_expected); }), AllOf(HasSubstr("save"), names_all));
  EXPECT_THAT(error_of([&] { load(ours); }), AllOf(HasSubstr("load"), names_all));
  EXPECT_EQ(read_file(path_), "theirs");
  held.unlock();
  EXPECT_EQ(load(ours), "theirs");
}

TEST_F(RuntimeCacheFileTest, LoadsTogetherWithOtherReaders) {
  save_as_other("theirs");
  FileLock held(lock_path_, FileLock::Mode::kShared);
  held.lock();
  RuntimeCacheFile ours = file();
  EXPECT_EQ(load(ours), "theirs");
  EXPECT_THROW(ours.save(view("ours"), not_expected), Error);
}

TEST_F(RuntimeCacheFileTest, LoadHoldsTheSharedLockWhileItReads) {
  save_as_other("theirs");
  std::string bytes;
  file().load([&](size_t size) {
    FileLock writer(lock_path_);
    EXPECT_FALSE(writer.try_lock());
    bytes.resize(size);
    return reinterpret_cast<std::byte*>(bytes.data());
  });
  EXPECT_EQ(bytes, "theirs");
}

TEST_F(RuntimeCacheFileTest, AFileThatShrinksOrGrowsWhileItIsReadIsReadAgain) {
  write_file(path_, "0123456789");
  std::vector<size_t> sizes;
  std::string bytes;
  const auto allocate_and_write = [&](const std::string& contents) {
    return [&, contents](size_t size) {
      if (sizes.empty()) {
        write_file(path_, contents);
      }
      sizes.push_back(size);
      bytes.resize(size);
      return reinterpret_cast<std::byte*>(bytes.data());
    };
  };
  EXPECT_EQ(file().load(allocate_and_write("short")), 5U);
  EXPECT_EQ(bytes, "short");
  EXPECT_EQ(sizes, (std::vector<size_t>{10, 5}));
  sizes.clear();
  EXPECT_EQ(file().load(allocate_and_write("much longer")), 11U);
  EXPECT_EQ(bytes, "much longer");
  EXPECT_EQ(sizes, (std::vector<size_t>{5, 11}));
}

TEST_F(RuntimeCacheFileTest, AFileThatNeverStopsChangingIsAnError) {
  write_file(path_, "0123456789");
  std::string bytes;
  RuntimeCacheFile ours = file();
  const auto load_while_it_grows = [&] {
    ours.load([&](size_t size) {
      bytes.resize(size);
      write_file(path_, bytes + "more");
      return reinterpret_cast<std::byte*>(bytes.data());
    });
  };
  EXPECT_THAT(error_of(load_while_it_grows), AllOf(HasSubstr("load"), HasSubstr(path_), HasSubstr("kept changing")));
}

TEST_F(RuntimeCacheFileTest, RefusesAnythingButARegularFileAndCreatesNoLock) {
  fs::create_directory(directory_.file("folder"));
  ASSERT_EQ(::mkfifo(directory_.file("fifo").c_str(), 0666), 0);
  fs::create_symlink("loop", directory_.file("loop"));
  fs::create_symlink("folder", directory_.file("link"));
  const auto before = names_in(directory_.path());
  for (const std::string& path :
       {directory_.file("folder"),
        directory_.file("fifo"),
        directory_.file("loop"),
        directory_.file("link"),
        directory_.file("folder/"),
        std::string("/dev/null")}) {
    RuntimeCacheFile ours(path, kShortTimeout);
    EXPECT_THAT(error_of([&] { load(ours); }), AllOf(HasSubstr("load"), HasSubstr(path)));
    EXPECT_THAT(error_of([&] { ours.save(view("ours"), not_expected); }), AllOf(HasSubstr("save"), HasSubstr(path)));
  }
  EXPECT_EQ(names_in(directory_.path()), before);
  EXPECT_THAT(names_in(directory_.path() / "folder"), UnorderedElementsAre());
}

TEST_F(RuntimeCacheFileTest, RefusesImpossiblePaths) {
  EXPECT_THROW(RuntimeCacheFile(""), Error);
  EXPECT_THROW(RuntimeCacheFile(std::string("a\0b", 3)), Error);
  write_file(path_, "theirs");
  RuntimeCacheFile below_a_file(path_ + "/cache.bin");
  EXPECT_THAT(error_of([&] { load(below_a_file); }), HasSubstr("Not a directory"));
}

TEST_F(RuntimeCacheFileTest, AVanishedDirectoryIsAnErrorOfSave) {
  const std::string path = directory_.file("gone/cache.bin");
  RuntimeCacheFile ours(path);
  EXPECT_THAT(
      error_of([&] { ours.save(view("ours"), not_expected); }),
      AllOf(HasSubstr("save"), HasSubstr(path), HasSubstr("No such file or directory")));
}

TEST_F(RuntimeCacheFileTest, AFirstFileHasTheModeOfAnyOther) {
  const mode_t old_mask = ::umask(0027);
  file().save(view("ours"), not_expected);
  ::umask(old_mask);
  EXPECT_EQ(mode(), 0640U);
}

TEST_F(RuntimeCacheFileTest, KeepsTheModeOfTheFileThatIsThere) {
  for (const mode_t kept : {0600U, 0664U, 0606U, 0640U}) {
    save_as_other("mode " + std::to_string(kept));
    ASSERT_EQ(::chmod(path_.c_str(), kept), 0);
    const ino_t before = inode();
    file().save(view("ours"), concatenate);
    EXPECT_NE(inode(), before);
    EXPECT_EQ(mode(), kept);
  }
}

TEST_F(RuntimeCacheFileTest, KeepsOwnerAndGroupWhereItMay) {
  save_as_other("theirs");
  if (::chown(path_.c_str(), 4711, 4712) != 0) {
    GTEST_SKIP() << "this user may not give files away: " << std::strerror(errno);
  }
  file().save(view("ours"), concatenate);
  struct stat status{};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, 4711U);
  EXPECT_EQ(status.st_gid, 4712U);
}

TEST_F(RuntimeCacheFileTest, FollowsSymbolicLinksToTheFileThatItReplaces) {
  fs::create_directory(directory_.file("real"));
  const std::string real = directory_.file("real/kernels");
  fs::create_symlink(real, directory_.file("absolute"));
  fs::create_symlink("absolute", path_); // relative, and dangling so far

  RuntimeCacheFile ours = file();
  EXPECT_EQ(load(ours), std::nullopt);
  EXPECT_EQ(ours.save(view("first"), not_expected), 5U);
  EXPECT_EQ(ours.save(view("second"), not_expected), 6U);
  EXPECT_EQ(read_file(real), "second");
  EXPECT_EQ(load(ours), "second");
  EXPECT_TRUE(fs::is_symlink(path_));
  EXPECT_TRUE(fs::is_symlink(directory_.file("absolute")));
  EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre("absolute", "cache.bin", "cache.bin.lock", "real"));
  EXPECT_THAT(names_in(directory_.path() / "real"), UnorderedElementsAre("kernels"));
}

TEST_F(RuntimeCacheFileTest, SweepsTheTemporaryFilesOfDeadWritersAlone) {
  const std::string stale = path_ + ".1-0123456789abcdef.tmp";
  const std::string held = path_ + ".1-fedcba9876543210.tmp";
  const std::vector<std::string> others = {
      path_ + ".1-0123456789abcde.tmp",
      path_ + ".1-0123456789abcdef.tmp2",
      path_ + ".-0123456789abcdef.tmp",
      path_ + "..1-0123456789abcdef.tmp",
      path_ + ".x.1-0123456789abcdef.tmp",
      path_ + ".tmp",
  };
  write_file(stale, "torn");
  write_file(held, "being written");
  for (const std::string& other : others) {
    write_file(other, "not ours");
  }
  const int writer = ::open(held.c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_EQ(::flock(writer, LOCK_EX), 0);
  file().save(view("ours"), not_expected);
  EXPECT_FALSE(fs::exists(stale));
  EXPECT_TRUE(fs::exists(held)) << "its writer lives";
  ::close(writer);
  file().save(view("ours"), not_expected);
  EXPECT_FALSE(fs::exists(held)) << "its writer died";
  for (const std::string& other : others) {
    EXPECT_TRUE(fs::exists(other)) << other;
  }
}

TEST_F(RuntimeCacheFileTest, AFileTooLargeForItsLimitLeavesTheOldOne) {
  save_as_other("theirs");
  ChildProcess child([this](Channel&) {
    // At the limit the system would rather kill.
    require(std::signal(SIGXFSZ, SIG_IGN) != SIG_ERR, "signal failed");
    const rlimit limit{.rlim_cur = 64 * 1024, .rlim_max = 64 * 1024};
    require(::setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit failed");
    RuntimeCacheFile ours = file();
    load(ours);
    const std::string message = error_of([&] { ours.save(view(std::string(1024 * 1024, 'x')), not_expected); });
    require(message.find("File too large") != std::string::npos, message);
    require(message.find(path_) != std::string::npos, message);
  });
  EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(read_file(path_), "theirs");
  EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre("cache.bin", "cache.bin.lock"));
}

// For the thread sanitizer: each thread has its object, and readers take no lock.
TEST_F(RuntimeCacheFileTest, ThreadsWithTheirOwnObjectsSeeWholeFiles) {
  constexpr int kSaves = 20;
  constexpr size_t kSize = 300'000;
  std::atomic<bool> done = false;
  const auto is_whole = [](const std::string& bytes) {
    return bytes.size() == kSize && bytes.find_first_not_of(bytes[0]) == std::string::npos;
  };
  std::thread reader([&] {
    while (!done) {
      RuntimeCacheFile ours(path_);
      const auto loaded = load(ours);
      EXPECT_TRUE(!loaded || is_whole(*loaded));
    }
  });
  std::thread lockless_reader([&] {
    while (!done) {
      const std::string bytes = read_file(path_);
      EXPECT_TRUE(bytes.empty() || is_whole(bytes));
    }
  });
  RuntimeCacheFile writer(path_);
  for (int i = 0; i < kSaves; ++i) {
    EXPECT_EQ(writer.save(view(std::string(kSize, static_cast<char>('a' + i))), not_expected), kSize);
  }
  done = true;
  reader.join();
  lockless_reader.join();
}

} // namespace
} // namespace torch_tensorrt::tests
