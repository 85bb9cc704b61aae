// Tests what FileLock promises on every platform. test_file_lock_posix.cpp tests what it promises only on POSIX
// systems.

#include "core/util/file_lock.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/util/Exception.h"
#include "tests/util/processes/run_program.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::core::util {
namespace {

using namespace std::chrono_literals;
using Mode = FileLock::Mode;

// This program is also the other process that tries to take a lock: `program --try-lock exclusive|shared PATH`.
constexpr const char* kTryLockFlag = "--try-lock";
constexpr int kAcquired = 10;
constexpr int kBusy = 11;
std::string this_program;

int try_lock_here(const std::string& mode, const std::string& path) {
  FileLock lock(path, mode == "shared" ? Mode::kShared : Mode::kExclusive);
  return lock.try_lock() ? kAcquired : kBusy;
}

int try_lock_in_another_process(Mode mode, const std::string& path) {
  const char* mode_name = mode == Mode::kShared ? "shared" : "exclusive";
  return tests::run_program({this_program, kTryLockFlag, mode_name, path});
}

class FileLockTest : public ::testing::Test {
 protected:
  const tests::TemporaryDirectory directory_;
  const std::string path_ = directory_.file("cache.lock");
};

bool is_free(const std::string& path) {
  return FileLock(path).try_lock();
}

// Returns the text of the Error that `action` throws. Fails the test if it throws none.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return "";
}

bool says(const std::string& error, const std::string& sentence) {
  return error.find("] " + sentence) != std::string::npos; // after the location in the source
}

TEST_F(FileLockTest, ConstructionTouchesNoDisk) {
  const FileLock lock(path_);
  EXPECT_FALSE(lock.owns_lock());
  EXPECT_EQ(lock.path(), path_);
  EXPECT_FALSE(std::filesystem::exists(path_));
  const FileLock nowhere(directory_.file("missing/cache.lock"), Mode::kShared);
  EXPECT_FALSE(nowhere.owns_lock());
}

TEST_F(FileLockTest, LockPathFollowsTheConvention) {
  EXPECT_EQ(FileLock::lock_path("/a/engine.cache"), "/a/engine.cache.lock");
}

TEST_F(FileLockTest, CreatesTheFileAndLeavesIt) {
  FileLock lock(path_);
  lock.lock();
  EXPECT_TRUE(lock.owns_lock());
  EXPECT_TRUE(std::filesystem::exists(path_));
  lock.unlock();
  EXPECT_FALSE(lock.owns_lock());
  EXPECT_TRUE(std::filesystem::exists(path_));
  EXPECT_EQ(std::filesystem::file_size(path_), 0U);
}

TEST_F(FileLockTest, KeepsTheContentsOfTheFile) {
  std::ofstream(path_) << "somebody's note";
  {
    FileLock lock(path_);
    lock.lock();
  }
  std::ifstream file(path_);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "somebody's note");
}

TEST_F(FileLockTest, CanBeTakenAgainAndAgain) {
  FileLock lock(path_);
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(lock.try_lock());
    ASSERT_FALSE(is_free(path_));
    lock.unlock();
    ASSERT_TRUE(is_free(path_));
  }
}

// The lock is held in the first mode and tried in the second, both by another object of this process and by another
// process.
class FileLockModesTest : public FileLockTest, public ::testing::WithParamInterface<std::tuple<Mode, Mode>> {};

TEST_P(FileLockModesTest, OnlySharedAndSharedGoTogether) {
  const auto [held, tried] = GetParam();
  const bool go_together = held == Mode::kShared && tried == Mode::kShared;
  FileLock holder(path_, held);
  FileLock other(path_, tried);
  holder.lock();

  EXPECT_EQ(other.try_lock(), go_together);
  EXPECT_EQ(other.owns_lock(), go_together);
  if (go_together) {
    other.unlock();
  }
  EXPECT_EQ(try_lock_in_another_process(tried, path_), go_together ? kAcquired : kBusy);

  holder.unlock();
  EXPECT_EQ(try_lock_in_another_process(tried, path_), kAcquired);
  EXPECT_TRUE(other.try_lock());
}

INSTANTIATE_TEST_SUITE_P(
    AllPairs,
    FileLockModesTest,
    ::testing::Combine(
        ::testing::Values(Mode::kShared, Mode::kExclusive),
        ::testing::Values(Mode::kShared, Mode::kExclusive)),
    [](const auto& pair) {
      const auto name = [](Mode mode) { return mode == Mode::kShared ? "Shared" : "Exclusive"; };
      return std::string(name(std::get<0>(pair.param))) + "Then" + name(std::get<1>(pair.param));
    });

TEST_F(FileLockTest, ExclusiveWaitsForEverySharedHolder) {
  FileLock first(path_, Mode::kShared);
  FileLock second(path_, Mode::kShared);
  first.lock();
  second.lock();
  EXPECT_FALSE(is_free(path_));
  first.unlock();
  EXPECT_FALSE(is_free(path_));
  second.unlock();
  EXPECT_TRUE(is_free(path_));
}

TEST_F(FileLockTest, NoTimeStillTriesOnce) {
  FileLock lock(path_);
  EXPECT_TRUE(lock.try_lock_for(0s));
  FileLock other(path_);
  EXPECT_FALSE(other.try_lock_for(0s));
  EXPECT_FALSE(other.try_lock_for(-1h));
  EXPECT_FALSE(other.try_lock_for(std::chrono::milliseconds::min()));
  EXPECT_FALSE(other.try_lock_for(std::chrono::duration<double>(std::numeric_limits<double>::quiet_NaN())));
  EXPECT_FALSE(other.try_lock_until(std::chrono::system_clock::time_point{}));
  EXPECT_FALSE(other.try_lock_until(std::chrono::steady_clock::time_point::min()));
  lock.unlock();
  EXPECT_TRUE(other.try_lock_for(-1h));
}

TEST_F(FileLockTest, WaitsAsLongAsTold) {
  FileLock holder(path_);
  holder.lock();
  FileLock waiter(path_);
  const auto elapsed = [&waiter](auto timeout) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_FALSE(waiter.try_lock_for(timeout));
    return std::chrono::steady_clock::now() - start;
  };
  EXPECT_GE(elapsed(30ms), 30ms);
  EXPECT_GE(elapsed(std::chrono::duration<float, std::milli>(20.5F)), 20ms);
  const auto deadline = std::chrono::steady_clock::now() + 30ms;
  EXPECT_FALSE(waiter.try_lock_until(deadline));
  EXPECT_GE(std::chrono::steady_clock::now(), deadline);
  EXPECT_FALSE(waiter.owns_lock());
}

// Calls `take` in another thread while the lock is held here, and then releases the lock.
template <class Take>
bool is_handed_over(const std::string& path, const Take& take) {
  FileLock holder(path);
  holder.lock();
  std::atomic<bool> has_begun = false;
  bool is_taken = false;
  std::thread waiter([&] {
    FileLock lock(path);
    has_begun = true;
    is_taken = take(lock) && lock.owns_lock();
  });
  while (!has_begun) {
    std::this_thread::yield();
  }
  std::this_thread::sleep_for(20ms); // so that it usually waits by now; it must succeed in any case
  holder.unlock();
  waiter.join();
  return is_taken;
}

TEST_F(FileLockTest, AWaiterGetsTheLockWhenItIsReleased) {
  EXPECT_TRUE(is_handed_over(path_, [](FileLock& lock) {
    lock.lock();
    return true;
  }));
  EXPECT_TRUE(is_handed_over(path_, [](FileLock& lock) { return lock.try_lock_for(); }));
  EXPECT_TRUE(is_handed_over(path_, [](FileLock& lock) { return lock.try_lock_for(std::chrono::hours::max()); }));
  EXPECT_TRUE(is_handed_over(path_, [](FileLock& lock) {
    return lock.try_lock_for(std::chrono::duration<double>(std::numeric_limits<double>::infinity()));
  }));
  EXPECT_TRUE(is_handed_over(
      path_, [](FileLock& lock) { return lock.try_lock_until(std::chrono::steady_clock::time_point::max()); }));
}

TEST_F(FileLockTest, DestructorReleases) {
  {
    FileLock lock(path_);
    lock.lock();
    EXPECT_FALSE(is_free(path_));
  }
  EXPECT_TRUE(is_free(path_));
}

TEST_F(FileLockTest, MoveConstructionTakesTheLockAlong) {
  static_assert(std::is_nothrow_move_constructible_v<FileLock> && std::is_nothrow_move_assignable_v<FileLock>);
  static_assert(!std::is_copy_constructible_v<FileLock> && !std::is_copy_assignable_v<FileLock>);
  FileLock source(path_, Mode::kShared);
  source.lock();
  FileLock target(std::move(source));
  EXPECT_TRUE(target.owns_lock());
  EXPECT_EQ(target.path(), path_);
  EXPECT_FALSE(source.owns_lock()); // NOLINT(bugprone-use-after-move): its state is part of the contract
  EXPECT_EQ(source.path(), "");
  EXPECT_THROW(source.unlock(), Error);
  EXPECT_FALSE(is_free(path_));
  EXPECT_TRUE(FileLock(path_, Mode::kShared).try_lock()) << "the mode was not moved";
  target.unlock();
  EXPECT_TRUE(is_free(path_));
}

TEST_F(FileLockTest, MoveAssignmentReleasesWhatWasHeld) {
  const std::string other_path = directory_.file("other.lock");
  FileLock target(path_);
  FileLock source(other_path);
  target.lock();
  source.lock();
  target = std::move(source);
  EXPECT_TRUE(is_free(path_));
  EXPECT_FALSE(is_free(other_path));
  EXPECT_TRUE(target.owns_lock());
  EXPECT_EQ(target.path(), other_path);

  source = FileLock(path_); // a moved-from lock can be assigned to
  EXPECT_TRUE(source.try_lock());
}

TEST_F(FileLockTest, SelfMoveKeepsTheLock) {
  FileLock lock(path_);
  lock.lock();
  FileLock& itself = lock;
  lock = std::move(itself);
  EXPECT_TRUE(lock.owns_lock());
  EXPECT_EQ(lock.path(), path_);
  EXPECT_FALSE(is_free(path_));
}

TEST_F(FileLockTest, MisuseThrows) {
  FileLock lock(path_);
  EXPECT_THROW(lock.unlock(), Error);
  lock.lock();
  const std::string locked_twice = error_of([&] { lock.lock(); });
  EXPECT_TRUE(says(locked_twice, "Can't lock lock file '" + path_ + "': this object already owns its lock"))
      << locked_twice;
  EXPECT_THROW(std::ignore = lock.try_lock(), Error);
  EXPECT_THROW(std::ignore = lock.try_lock_for(0s), Error);
  EXPECT_TRUE(lock.owns_lock());
  lock.unlock();
  const std::string unlocked_twice = error_of([&] { lock.unlock(); });
  EXPECT_TRUE(says(unlocked_twice, "Can't unlock lock file '" + path_ + "': this object does not own its lock"))
      << unlocked_twice;
}

TEST_F(FileLockTest, FailureToOpenThrowsAndNamesThePath) {
  const std::string nowhere = directory_.file("missing/cache.lock");
  for (const std::string& path : {nowhere, directory_.path().string()}) {
    FileLock lock(path);
    EXPECT_NE(error_of([&] { lock.lock(); }).find("'" + path + "'"), std::string::npos);
    EXPECT_THROW(std::ignore = lock.try_lock(), Error);
    EXPECT_THROW(std::ignore = lock.try_lock_for(1h), Error);
    EXPECT_FALSE(lock.owns_lock());
  }
  EXPECT_THROW(FileLock("").lock(), Error);
}

TEST_F(FileLockTest, APathWithANulIsRefused) {
  const std::string error = error_of([&] { FileLock(path_ + std::string(1, '\0') + "tail"); });
  EXPECT_TRUE(says(error, "The path of a lock file has a NUL in it, after '" + path_ + "'")) << error;
}

TEST_F(FileLockTest, ThePathMayHaveAnyLetters) {
  const std::filesystem::path path = directory_.path() / u8"кэш é 核.lock";
  const std::u8string utf8 = path.u8string();
  FileLock lock(std::string(utf8.begin(), utf8.end()));
  lock.lock();
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(FileLockTest, WorksWithTheStandardGuards) {
  FileLock lock(path_);
  {
    const std::lock_guard<FileLock> guard(lock);
    EXPECT_FALSE(is_free(path_));
  }
  EXPECT_TRUE(is_free(path_));
  {
    std::unique_lock<FileLock> guard(lock, 1h);
    EXPECT_TRUE(guard.owns_lock());
    EXPECT_FALSE(is_free(path_));
    FileLock other(path_);
    EXPECT_FALSE(std::unique_lock<FileLock>(other, std::try_to_lock).owns_lock());
    EXPECT_FALSE(std::unique_lock<FileLock>(other, 1ms).owns_lock());
    EXPECT_FALSE(std::unique_lock<FileLock>(other, std::chrono::steady_clock::now()).owns_lock());
    guard.unlock();
    EXPECT_TRUE(is_free(path_));
    guard.lock();
    EXPECT_FALSE(is_free(path_));
  }
  EXPECT_TRUE(is_free(path_));
  FileLock second(directory_.file("second.lock"));
  {
    const std::scoped_lock both(lock, second);
    EXPECT_FALSE(is_free(path_));
    EXPECT_FALSE(is_free(second.path()));
  }
  EXPECT_TRUE(is_free(path_));
  EXPECT_TRUE(is_free(second.path()));
}

TEST_F(FileLockTest, ThreadsOfOneProcessExcludeEachOther) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 25;
  std::atomic<int> holders = 0;
  std::atomic<int> rounds = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, waits_by_polling = i % 2 == 0] {
      FileLock lock(path_);
      for (int round = 0; round < kRounds; ++round) {
        if (waits_by_polling) {
          ASSERT_TRUE(lock.try_lock_for(60s));
        } else {
          lock.lock();
        }
        EXPECT_EQ(holders.fetch_add(1, std::memory_order_relaxed), 0);
        rounds.fetch_add(1, std::memory_order_relaxed);
        std::this_thread::yield();
        holders.fetch_sub(1, std::memory_order_relaxed);
        lock.unlock();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(rounds, kThreads * kRounds);
}

} // namespace
} // namespace torch_tensorrt::core::util

int main(int argc, char** argv) {
  using namespace torch_tensorrt::core::util;
  if (argc == 4 && std::string(argv[1]) == kTryLockFlag) {
    return try_lock_here(argv[2], argv[3]);
  }
  this_program = argv[0];
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
