// Tests what FileLock promises only on POSIX systems: flock(2) itself, the lock file as a file, other processes, fork,
// exec and signals.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#ifdef __linux__
#include <linux/capability.h>
#include <sys/syscall.h>
#endif

#include "core/util/Exception.h"
#include "core/util/file_lock.h"
#include "tests/util/processes/child_process.h"
#include "tests/util/temporary_directory.h"

#ifdef __linux__
namespace {

// The next `count` calls of flock(2) return -1 with errno `code` and do nothing else.
struct FlockFault {
  int code = 0;
  int count = 0;
};
FlockFault flock_fault;

} // namespace

// Replaces the C library's flock in this program.
extern "C" int flock(int file, int operation) noexcept {
  if (flock_fault.count > 0) {
    --flock_fault.count;
    errno = flock_fault.code;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_flock, file, operation));
}
#endif

namespace torch_tensorrt::core::util {
namespace {

using namespace std::chrono_literals;
using Mode = FileLock::Mode;
using tests::Channel;
using tests::ChildProcess;
using tests::require;

class FileLockPosixTest : public ::testing::Test {
 protected:
  const tests::TemporaryDirectory directory_;
  const std::string path_ = directory_.file("cache.lock");
};

bool is_free(const std::string& path) {
  return FileLock(path).try_lock();
}

std::string error_of_lock(const std::string& path) {
  try {
    FileLock(path).lock();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

ino_t inode_at(const std::string& path) {
  struct stat status = {};
  require(::stat(path.c_str(), &status) == 0, "no file at " + path);
  return status.st_ino;
}

int open_descriptors() {
  int count = 0;
  for (int file = 0; file < 1024; ++file) {
    count += ::fcntl(file, F_GETFD) != -1 ? 1 : 0;
  }
  return count;
}

// Drops the capabilities that let root open anything. Must be called in a child process, since it can't be undone.
void obey_permissions() {
#ifdef __linux__
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[2] = {};
  require(::syscall(SYS_capset, &header, none) == 0, "can't drop the capabilities");
#else
  require(::geteuid() != 0, "this test can't run as root here");
#endif
}

// --- flock(2) itself ---

TEST_F(FileLockPosixTest, ExcludesRawFlockBothWays) {
  const int file = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_GE(file, 0);
  ASSERT_EQ(::flock(file, LOCK_EX | LOCK_NB), 0);
  EXPECT_FALSE(is_free(path_));
  EXPECT_FALSE(FileLock(path_, Mode::kShared).try_lock());

  ASSERT_EQ(::flock(file, LOCK_SH | LOCK_NB), 0);
  EXPECT_FALSE(is_free(path_));
  EXPECT_TRUE(FileLock(path_, Mode::kShared).try_lock());

  ASSERT_EQ(::flock(file, LOCK_UN), 0);
  FileLock lock(path_);
  EXPECT_TRUE(lock.try_lock());
  EXPECT_EQ(::flock(file, LOCK_SH | LOCK_NB), -1);
  EXPECT_EQ(errno, EWOULDBLOCK);
  lock.unlock();
  EXPECT_EQ(::flock(file, LOCK_EX | LOCK_NB), 0);
  ::close(file);
}

TEST_F(FileLockPosixTest, LeavesNoDescriptorBehind) {
  const int before = open_descriptors();
  FileLock holder(path_);
  holder.lock();
  EXPECT_EQ(open_descriptors(), before + 1);
  FileLock other(path_);
  EXPECT_FALSE(other.try_lock());
  EXPECT_FALSE(other.try_lock_for(5ms));
  EXPECT_EQ(open_descriptors(), before + 1);
  holder.unlock();
  EXPECT_EQ(open_descriptors(), before);
  EXPECT_THROW(FileLock("/dev/null").lock(), Error);
  EXPECT_EQ(open_descriptors(), before);
}

#ifdef __linux__

TEST_F(FileLockPosixTest, InterruptedFlockIsTriedAgain) {
  FileLock lock(path_);
  flock_fault = {EINTR, 3};
  EXPECT_NO_THROW(lock.lock());
  EXPECT_EQ(flock_fault.count, 0);
  flock_fault = {EINTR, 3};
  lock.unlock();
  EXPECT_TRUE(is_free(path_));
  flock_fault = {EINTR, 3};
  EXPECT_TRUE(lock.try_lock());
}

TEST_F(FileLockPosixTest, AFileSystemWithoutLocksIsAnErrorThatSaysSo) {
  for (const int code : {ENOSYS, ENOTSUP, ENOLCK}) {
    flock_fault = {code, 1};
    const std::string error = error_of_lock(path_);
    EXPECT_TRUE(contains(error, path_) && contains(error, "no flock")) << error;
    flock_fault = {code, 1};
    EXPECT_THROW(std::ignore = FileLock(path_).try_lock_for(1h), Error);
  }
  flock_fault = {EIO, 1};
  const std::string error = error_of_lock(path_);
  EXPECT_TRUE(contains(error, "Input/output error") && !contains(error, "no flock")) << error;
}

TEST_F(FileLockPosixTest, EaccesOfFlockIsContention) {
  flock_fault = {EACCES, 1};
  EXPECT_FALSE(is_free(path_));
  flock_fault = {EACCES, 2};
  EXPECT_TRUE(FileLock(path_).try_lock_for(60s));
}

TEST_F(FileLockPosixTest, AFileSystemThatWantsAWritableFileGetsOne) {
  flock_fault = {EBADF, 1};
  FileLock lock(path_);
  lock.lock();
  EXPECT_TRUE(lock.owns_lock());
  EXPECT_FALSE(is_free(path_));
  lock.unlock();
  flock_fault = {EBADF, 2};
  EXPECT_TRUE(contains(error_of_lock(path_), path_));
}

TEST_F(FileLockPosixTest, ALeaseOnTheFileIsContention) {
  ChildProcess lessee([this](Channel& parent) {
    ::signal(SIGIO, SIG_IGN); // the kernel sends SIGIO to ask for the lease
    const int file = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    const bool is_leased = ::fcntl(file, F_SETLEASE, F_WRLCK) == 0;
    parent.say(is_leased ? "leased" : "impossible");
    parent.expect("give it back");
    require(!is_leased || ::fcntl(file, F_SETLEASE, F_UNLCK) == 0, "can't give the lease back");
    parent.say("given back");
  });
  if (lessee.channel().hear() == "impossible") {
    GTEST_SKIP() << "the file system of the temporary directory has no leases";
  }
  FileLock lock(path_);
  EXPECT_FALSE(lock.try_lock());
  EXPECT_FALSE(lock.try_lock_for(5ms));
  lessee.channel().say("give it back");
  lock.lock();
  EXPECT_TRUE(lock.owns_lock());
  lessee.channel().expect("given back");
  EXPECT_EQ(lessee.wait(), 0);
}

#endif

// --- The lock file as a file ---

TEST_F(FileLockPosixTest, ANewFileObeysTheUmaskAndAnOldOneKeepsItsMode) {
  const auto mode_of = [](const std::string& path) {
    struct stat status = {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0);
    return status.st_mode & 07777U;
  };
  const mode_t before = ::umask(0027);
  EXPECT_TRUE(is_free(path_));
  ::umask(before);
  EXPECT_EQ(mode_of(path_), 0640U);
  ASSERT_EQ(::chmod(path_.c_str(), 0666), 0);
  EXPECT_TRUE(is_free(path_));
  EXPECT_EQ(mode_of(path_), 0666U);
}

TEST_F(FileLockPosixTest, AFileThatMayOnlyBeReadIsLockedAllTheSame) {
  ASSERT_TRUE(is_free(path_));
  ASSERT_EQ(::chmod(path_.c_str(), 0444), 0);
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0555), 0);
  ChildProcess holder([this](Channel& parent) {
    obey_permissions();
    require(::open(path_.c_str(), O_RDWR) == -1, "the file is writable");
    FileLock lock(path_);
    lock.lock();
    parent.say("held");
    parent.expect("release");
    lock.unlock();
    parent.say("released");
  });
  holder.channel().expect("held");
  EXPECT_EQ(
      ChildProcess([this](Channel&) {
        obey_permissions();
        require(!is_free(path_), "two processes hold the lock");
        require(!FileLock(path_, Mode::kShared).try_lock(), "the lock is held in shared and in exclusive mode");
      }).wait(),
      0);
  holder.channel().say("release");
  holder.channel().expect("released");
  EXPECT_TRUE(is_free(path_));
  EXPECT_EQ(holder.wait(), 0);
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
}

TEST_F(FileLockPosixTest, NoPermissionIsAnError) {
  ASSERT_TRUE(is_free(path_));
  ASSERT_EQ(::chmod(path_.c_str(), 0), 0);
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0555), 0);
  EXPECT_EQ(
      ChildProcess([this](Channel&) {
        obey_permissions();
        for (const std::string& path : {path_, directory_.file("new.lock")}) {
          const std::string error = error_of_lock(path);
          require(contains(error, "'" + path + "': Permission denied"), error);
        }
      }).wait(),
      0);
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
}

TEST_F(FileLockPosixTest, ASymbolicLinkIsRefused) {
  const std::string target = directory_.file("target");
  ASSERT_EQ(::symlink(target.c_str(), path_.c_str()), 0);
  const std::string error = error_of_lock(path_);
  EXPECT_TRUE(contains(error, path_) && contains(error, "a symbolic link is refused")) << error;
  EXPECT_FALSE(std::filesystem::exists(target));

  std::ofstream(target) << "precious";
  EXPECT_THROW(std::ignore = is_free(path_), Error);
  EXPECT_EQ(std::filesystem::file_size(target), 8U);
}

TEST_F(FileLockPosixTest, ALinkedDirectoryOnTheWayIsFollowed) {
  ASSERT_EQ(::symlink(directory_.path().c_str(), directory_.file("link").c_str()), 0);
  FileLock lock(directory_.file("link/cache.lock"));
  EXPECT_TRUE(lock.try_lock());
  EXPECT_FALSE(is_free(path_));
}

TEST_F(FileLockPosixTest, AnythingButARegularFileIsRefused) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  const std::string error = error_of_lock(path_);
  EXPECT_TRUE(contains(error, "] Can't use '" + path_ + "' as a lock file: not a regular file")) << error;
  EXPECT_THROW(std::ignore = is_free("/dev/null"), Error);
}

// --- A lock file that loses its name ---

TEST_F(FileLockPosixTest, UnlinkedWhileHeld) {
  FileLock lock(path_);
  lock.lock();
  ASSERT_EQ(::unlink(path_.c_str()), 0);
  EXPECT_TRUE(lock.owns_lock());
  FileLock next(path_);
  EXPECT_TRUE(next.try_lock());
  lock.unlock();
  EXPECT_FALSE(is_free(path_)) << "the release of the nameless file released the one at the path";
}

enum class Loss { kUnlinked, kReplaced, kUnlinkedAndMadeAnew };

// A child waits for a lock that is held here while its file loses its name. The child must get a lock on another file.
class LostLockFileTest : public FileLockPosixTest, public ::testing::WithParamInterface<std::tuple<Loss, bool>> {};

TEST_P(LostLockFileTest, WhileWaiting) {
  const auto [loss, waits_by_polling] = GetParam();
  FileLock holder(path_);
  holder.lock();
  const int old_file = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC); // keeps its inode number from being reused
  const ino_t old_inode = inode_at(path_);
  ChildProcess waiter([this, polls = waits_by_polling](Channel& parent) {
    FileLock lock(path_);
    parent.say("waiting");
    if (polls) {
      require(lock.try_lock_for(60s), "the child got no lock");
    } else {
      lock.lock();
    }
    parent.say("held");
    parent.expect("release");
  });
  waiter.channel().expect("waiting");
  waiter.wait_until_asleep();

  std::optional<FileLock> third;
  if (loss == Loss::kReplaced) {
    const std::string other = directory_.file("other");
    std::ofstream{other};
    ASSERT_EQ(::rename(other.c_str(), path_.c_str()), 0);
  } else {
    ASSERT_EQ(::unlink(path_.c_str()), 0);
    if (loss == Loss::kUnlinkedAndMadeAnew) {
      third.emplace(path_).lock();
    }
  }
  holder.unlock();
  if (third) {
    third->unlock();
  }

  waiter.channel().expect("held");
  EXPECT_NE(inode_at(path_), old_inode);
  EXPECT_FALSE(is_free(path_));
  waiter.channel().say("release");
  EXPECT_EQ(waiter.wait(), 0);
  EXPECT_TRUE(is_free(path_));
  ::close(old_file);
}

INSTANTIATE_TEST_SUITE_P(
    AllWays,
    LostLockFileTest,
    ::testing::Combine(
        ::testing::Values(Loss::kUnlinked, Loss::kReplaced, Loss::kUnlinkedAndMadeAnew),
        ::testing::Bool()));

TEST_F(FileLockPosixTest, SurvivesHoldersThatUnlinkAtEveryRelease) {
  constexpr int kProcesses = 4;
  constexpr int kRounds = 50;
  const std::string counter = directory_.file("counter");
  std::ofstream(counter) << 0;
  const auto count = [&](Channel&) {
    for (int round = 0; round < kRounds; ++round) {
      FileLock lock(path_);
      require(lock.try_lock_for(60s), "the child got no lock");
      int value = -1;
      std::ifstream(counter) >> value;
      std::ofstream(counter) << value + 1;
      if (round % 2 == 0) {
        ::unlink(path_.c_str());
      }
    }
  };
  {
    std::vector<std::unique_ptr<ChildProcess>> children;
    for (int i = 0; i < kProcesses; ++i) {
      children.push_back(std::make_unique<ChildProcess>(count));
    }
    for (const auto& child : children) {
      EXPECT_EQ(child->wait(), 0);
    }
  }
  int value = -1;
  std::ifstream(counter) >> value;
  EXPECT_EQ(value, kProcesses * kRounds);
}

// --- Processes ---

TEST_F(FileLockPosixTest, AKilledHolderFreesTheLock) {
  ChildProcess holder([this](Channel& parent) {
    FileLock lock(path_);
    lock.lock();
    parent.say("held");
    parent.hear();
  });
  holder.channel().expect("held");
  EXPECT_FALSE(is_free(path_));
  FileLock waiter(path_);
  EXPECT_FALSE(waiter.try_lock_for(5ms));
  holder.kill();
  EXPECT_TRUE(waiter.try_lock());
}

TEST_F(FileLockPosixTest, AForkedChildOwnsNothing) {
  FileLock lock(path_);
  lock.lock();
  ChildProcess child([&](Channel&) {
    require(!lock.owns_lock(), "the child owns the lock");
    require(!is_free(path_), "the fork freed the lock");
    require(!lock.try_lock(), "the child's copy acquired the lock");
    lock.unlock();
    require(!is_free(path_), "the child's unlock() freed the parent's lock");
    bool has_thrown = false;
    try {
      lock.unlock();
    } catch (const Error&) {
      has_thrown = true;
    }
    require(has_thrown, "the child could unlock twice");
  });
  EXPECT_EQ(child.wait(), 0);
  EXPECT_TRUE(lock.owns_lock());
  EXPECT_FALSE(is_free(path_));
  lock.unlock();
  EXPECT_TRUE(is_free(path_));
}

TEST_F(FileLockPosixTest, AForkedChildMayDestroyMoveOrLoseItsCopy) {
  std::optional<FileLock> lock(path_);
  lock->lock();
  const auto destroy = [&](Channel&) { lock.reset(); };
  const auto assign = [&](Channel&) { *lock = FileLock(directory_.file("other.lock")); };
  const auto move = [&](Channel&) {
    const FileLock moved(std::move(*lock));
    require(!moved.owns_lock(), "the moved copy owns the lock");
  };
  const auto lose = [](Channel&) {};
  for (const std::function<void(Channel&)>& action :
       std::vector<std::function<void(Channel&)>>{destroy, assign, move, lose}) {
    EXPECT_EQ(ChildProcess(action).wait(), 0);
    EXPECT_TRUE(lock->owns_lock());
    EXPECT_FALSE(is_free(path_));
  }
  lock->unlock();
  EXPECT_TRUE(is_free(path_));
}

TEST_F(FileLockPosixTest, TheParentReleasesAlthoughAChildLives) {
  FileLock lock(path_);
  lock.lock();
  ChildProcess child([&](Channel& parent) {
    parent.expect("take it");
    require(lock.try_lock(), "the parent did not release the lock");
    require(lock.owns_lock(), "the child does not own the lock");
    parent.say("held");
    parent.expect("release");
    lock.unlock();
  });
  lock.unlock();
  EXPECT_TRUE(is_free(path_));
  child.channel().say("take it");
  child.channel().expect("held");
  EXPECT_FALSE(is_free(path_));
  child.channel().say("release");
  EXPECT_EQ(child.wait(), 0);
  EXPECT_TRUE(is_free(path_));
}

TEST_F(FileLockPosixTest, ADeadParentsLockLastsAsLongAsTheInheritedDescriptor) {
  ChildProcess parent([this](Channel& test) {
    FileLock lock(path_);
    lock.lock();
    if (::fork() == 0) { // it talks to the test after its parent is killed
      test.say("ready");
      test.expect("close it");
      lock.unlock();
      test.say("closed");
      ::_exit(0);
    }
    ::pause();
  });
  parent.channel().expect("ready");
  parent.kill();
  EXPECT_FALSE(is_free(path_));
  parent.channel().say("close it");
  parent.channel().expect("closed");
  EXPECT_TRUE(is_free(path_));
}

// Replaces the calling process with one that writes nothing and ends when its standard input does.
[[noreturn]] void exec_cat(int input) {
  ::dup2(input, STDIN_FILENO);
  ::execl("/bin/cat", "cat", nullptr);
  ::_exit(127);
}

TEST_F(FileLockPosixTest, ExecReleasesTheLock) {
  int input[2];
  ASSERT_EQ(::pipe(input), 0);
  ChildProcess child([&](Channel& parent) {
    ::close(input[1]);
    FileLock lock(path_);
    lock.lock();
    parent.say("held");
    parent.expect("exec");
    exec_cat(input[0]);
  });
  ::close(input[0]);
  child.channel().expect("held");
  EXPECT_FALSE(is_free(path_));
  child.channel().say("exec");
  EXPECT_TRUE(FileLock(path_).try_lock_for(60s));
  ::close(input[1]);
  EXPECT_EQ(child.wait(), 0);
}

TEST_F(FileLockPosixTest, AProgramStartedByTheHolderDoesNotKeepTheLock) {
  int input[2];
  ASSERT_EQ(::pipe(input), 0);
  ChildProcess holder([&](Channel& parent) {
    ::close(input[1]);
    FileLock lock(path_);
    lock.lock();
    int is_executed[2]; // reaches its end when the program has started, since exec closes the other end
    require(::pipe(is_executed) == 0 && ::fcntl(is_executed[1], F_SETFD, FD_CLOEXEC) == 0, "no pipe");
    if (::fork() == 0) {
      exec_cat(input[0]);
    }
    ::close(is_executed[1]);
    char byte = 0;
    require(::read(is_executed[0], &byte, 1) == 0, "the program was not started");
    parent.say("started");
    ::pause();
  });
  ::close(input[0]);
  holder.channel().expect("started");
  EXPECT_FALSE(is_free(path_));
  holder.kill();
  EXPECT_TRUE(is_free(path_));
  ::close(input[1]);
}

class SignalTest : public FileLockPosixTest, public ::testing::WithParamInterface<bool> {};

TEST_P(SignalTest, ASignalDoesNotEndTheWait) {
  FileLock holder(path_);
  holder.lock();
  ChildProcess waiter([&](Channel& parent) {
    struct sigaction action = {};
    action.sa_handler = [](int) {}; // without SA_RESTART: system calls end with EINTR
    require(::sigaction(SIGUSR1, &action, nullptr) == 0, "sigaction failed");
    FileLock lock(path_);
    parent.say("waiting");
    if (GetParam()) {
      require(lock.try_lock_for(60s), "no lock");
    } else {
      lock.lock();
    }
    parent.say("held");
  });
  waiter.channel().expect("waiting");
  for (int i = 0; i < 20; ++i) {
    waiter.wait_until_asleep();
    ASSERT_EQ(::kill(waiter.pid(), SIGUSR1), 0);
  }
  holder.unlock();
  waiter.channel().expect("held");
  EXPECT_EQ(waiter.wait(), 0);
}

INSTANTIATE_TEST_SUITE_P(BlockingAndPolling, SignalTest, ::testing::Bool());

} // namespace
} // namespace torch_tensorrt::core::util
