#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <string>
#include <system_error>

#include "core/util/file_lock.h"
#include "core/util/macros.h"

namespace torch_tensorrt::core::util {
namespace {

// Number of forks since the library was loaded. Unlike a process id, it needs no system call and is never reused.
std::atomic<std::int64_t> forks = 0;

// Initialized at load time. If another thread were initializing it during a fork, the child would wait for it forever.
const int counting_error = ::pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });

[[noreturn]] void fail(const char* action, const std::string& path, const char* hint = "") {
  const int code = errno;
  TORCHTRT_THROW_ERROR(
      "Can't " << action << " lock file '" << path << "': " << std::system_category().message(code) << hint);
}

// Returns -1 on failure, with errno as open(2) leaves it.
int open_file(const std::string& path, int access) {
  // O_NONBLOCK, because a FIFO at the path, or a lease that another process must give up first, would block. No
  // O_TRUNC, because the contents of the file may matter to somebody.
  const int flags = access | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC;
  int file = -1;
  do {
    file = ::open(path.c_str(), flags, 0644);
  } while (file < 0 && errno == EINTR);
  return file;
}

// Returns false on failure, with errno as flock(2) leaves it.
bool lock_file(int file, int operation) {
  int result = -1;
  do {
    result = ::flock(file, operation);
  } while (result < 0 && errno == EINTR);
  return result == 0;
}

} // namespace

std::int64_t FileLock::LockHandle::current_process() noexcept {
  return forks.load(std::memory_order_relaxed);
}

bool FileLock::LockHandle::open(const std::string& path) {
  // Read access is enough for flock(2), is faster, and is granted to more users. O_CREAT is only the second attempt: in
  // a sticky directory Linux refuses it on another user's file, even a readable one (fs.protected_regular).
  int file = open_file(path, O_RDONLY);
  if (file < 0 && errno == ENOENT) {
    file = open_file(path, O_RDONLY | O_CREAT);
  }
  if (file >= 0) {
    file_ = file;
    return true;
  }
  if (errno == EWOULDBLOCK) { // a lease is being broken
    return false;
  }
  fail("open", path, errno == ELOOP ? " (a symbolic link is refused here)" : "");
}

bool FileLock::LockHandle::lock(const std::string& path, Mode mode, bool wait) {
  if (counting_error != 0) {
    errno = counting_error;
    fail("lock", path);
  }
  const int operation = (mode == Mode::kShared ? LOCK_SH : LOCK_EX) | (wait ? 0 : LOCK_NB);
  bool is_locked = lock_file(static_cast<int>(file_), operation);
  if (!is_locked && errno == EBADF) { // NFS emulates flock with fcntl locks, and an exclusive one needs write access
    const int writable = open_file(path, O_RDWR);
    if (writable < 0) {
      fail("open", path, " (its file system needs write access to lock it)");
    }
    ::close(static_cast<int>(file_));
    file_ = writable;
    is_locked = lock_file(writable, operation);
  }
  if (is_locked) {
    owner_ = current_process();
    return true;
  }
  if (!wait && (errno == EWOULDBLOCK || errno == EACCES)) { // EACCES where fcntl locks emulate flock
    return false;
  }
  const bool is_unsupported = errno == ENOSYS || errno == ENOTSUP || errno == EOPNOTSUPP || errno == ENOLCK;
  fail("lock", path, is_unsupported ? " (its file system may have no flock)" : "");
}

bool FileLock::LockHandle::is_current(const std::string& path) const {
  struct stat ours = {};
  if (::fstat(static_cast<int>(file_), &ours) != 0) {
    fail("examine", path);
  }
  if (!S_ISREG(ours.st_mode)) {
    TORCHTRT_THROW_ERROR("Can't use '" << path << "' as a lock file: not a regular file");
  }
  if (ours.st_nlink == 0) {
    return false;
  }
  struct stat named = {};
  if (::lstat(path.c_str(), &named) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) {
      return false;
    }
    fail("examine", path);
  }
  return named.st_dev == ours.st_dev && named.st_ino == ours.st_ino;
}

void FileLock::LockHandle::close() noexcept {
  if (!is_open()) {
    return;
  }
  // Closing alone would leave the lock with every forked child that has the descriptor. A child must not unlock,
  // because that would release its parent's lock.
  if (owns_lock()) {
    lock_file(static_cast<int>(file_), LOCK_UN);
  }
  ::close(static_cast<int>(file_));
  file_ = kNoFile;
  owner_ = kNobody;
}

} // namespace torch_tensorrt::core::util
