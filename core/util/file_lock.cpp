#include "core/util/file_lock.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <utility>

#include "core/util/macros.h"

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace torch_tensorrt::core::util {
namespace {

// How long a waiter pauses that has waited `waited`: what it loses is at most an eighth of that and 5 ms, in a long
// wait (from 0.75 s) 1/150 of it, and never more than 50 ms. A constant interval can't be both prompt and cheap: to
// wake up costs up to 40 us of CPU time on a virtual machine, so every 5 ms would be 0.8 % of a core for as long as the
// wait lasts.
std::chrono::nanoseconds poll_interval(std::chrono::nanoseconds waited) {
  using std::chrono::nanoseconds;
  constexpr nanoseconds kShortest = std::chrono::microseconds(100);
  constexpr nanoseconds kUsual = std::chrono::milliseconds(5);
  constexpr nanoseconds kLongest = std::chrono::milliseconds(50);
  return std::clamp(std::max(std::min(waited / 8, kUsual), waited / 150), kShortest, kLongest);
}

// So many lock files in a row that lose their name while we take them are bad luck (filelock 3.21 to 3.25 unlink at
// every release); more may be a file system that can't tell whether two files are the same, not to be asked in a tight
// loop.
constexpr int kReplacementsInARow = 16;

[[noreturn]] void fail(const char* action, const std::string& path, int code, const char* hint = "") {
  TORCHTRT_THROW_ERROR(
      "Can't " << action << " lock file '" << path << "': " << std::system_category().message(code) << hint);
}

} // namespace

#ifndef _WIN32

namespace {

// How often fork() made the process that we are since the library was loaded. Unlike getpid() it costs no system call,
// and it is not given anew to another process.
std::atomic<std::int64_t> forks = 0;

std::int64_t current_process() {
  return forks.load(std::memory_order_relaxed);
}

int count_forks() {
  return ::pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
}

// -1 with errno as open(2) leaves it.
int open_file(const std::string& path, int access) {
  // O_NONBLOCK: a FIFO at the path, or a lease that another process must give up first, would block. No O_TRUNC: the
  // file may have contents of somebody's.
  const int flags = access | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC;
  int file = -1;
  do {
    file = ::open(path.c_str(), flags, 0644);
  } while (file < 0 && errno == EINTR);
  return file;
}

int lock_file(int file, int operation) {
  int result = -1;
  do {
    result = ::flock(file, operation);
  } while (result < 0 && errno == EINTR);
  return result;
}

} // namespace

bool FileLock::LockHandle::open(const std::string& path) {
  // For reading: that is enough for flock, quicker, and possible for all who can see the file. Without O_CREAT at
  // first: in a sticky directory Linux refuses it on somebody else's file, readable or not (fs.protected_regular).
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
  fail("open", path, errno, errno == ELOOP ? " (a symbolic link is refused here)" : "");
}

bool FileLock::LockHandle::lock(const std::string& path, Mode mode, bool wait) {
  static const int counting_error = count_forks();
  if (counting_error != 0) {
    fail("lock", path, counting_error);
  }
  const int operation = (mode == Mode::kShared ? LOCK_SH : LOCK_EX) | (wait ? 0 : LOCK_NB);
  int result = lock_file(static_cast<int>(file_), operation);
  if (result < 0 && errno == EBADF) { // NFS makes flock of fcntl locks; an exclusive one of those needs a writable file
    const int writable = open_file(path, O_RDWR);
    if (writable < 0) {
      fail("open", path, errno, " (its file system wants it writable)");
    }
    ::close(static_cast<int>(file_));
    file_ = writable;
    result = lock_file(writable, operation);
  }
  if (result == 0) {
    owner_ = current_process();
    return true;
  }
  if (!wait && (errno == EWOULDBLOCK || errno == EACCES)) { // EACCES: where flock is made of fcntl locks
    return false;
  }
  const bool is_unsupported = errno == ENOSYS || errno == ENOTSUP || errno == EOPNOTSUPP || errno == ENOLCK;
  fail("lock", path, errno, is_unsupported ? " (its file system may have no flock)" : "");
}

bool FileLock::LockHandle::is_current(const std::string& path) const {
  struct stat ours = {};
  if (::fstat(static_cast<int>(file_), &ours) != 0) {
    fail("examine", path, errno);
  }
  TORCHTRT_CHECK(S_ISREG(ours.st_mode), "Can't use '" << path << "' as a lock file: not a regular file");
  if (ours.st_nlink == 0) {
    return false;
  }
  struct stat named = {};
  if (::lstat(path.c_str(), &named) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) {
      return false;
    }
    fail("examine", path, errno);
  }
  return named.st_dev == ours.st_dev && named.st_ino == ours.st_ino;
}

void FileLock::LockHandle::close() noexcept {
  if (!is_open()) {
    return;
  }
  // Closing alone would leave the lock with every forked child that has the descriptor too. A child itself must not
  // unlock: the lock that it would release is its parent's.
  if (owns_lock()) {
    lock_file(static_cast<int>(file_), LOCK_UN);
  }
  ::close(static_cast<int>(file_));
  file_ = kNoFile;
  owner_ = kNobody;
}

#else

namespace {

std::int64_t current_process() {
  return ::GetCurrentProcessId();
}

std::wstring to_wide(const std::string& path) {
  const int length = static_cast<int>(path.size());
  if (length == 0) {
    return {};
  }
  const int wide_length = ::MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), length, nullptr, 0);
  if (wide_length == 0) {
    fail("open", path, static_cast<int>(::GetLastError()), " (its path is not UTF-8)");
  }
  std::wstring wide(static_cast<size_t>(wide_length), L'\0');
  ::MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), length, wide.data(), wide_length);
  return wide;
}

HANDLE to_handle(std::intptr_t file) {
  return reinterpret_cast<HANDLE>(file);
}

// INVALID_HANDLE_VALUE with GetLastError() as CreateFile leaves it.
HANDLE open_file(const std::wstring& path, DWORD access, DWORD disposition) {
  // No FILE_SHARE_DELETE, as filelock: while the file is open nobody can remove or replace it.
  return ::CreateFileW(
      path.c_str(),
      access,
      FILE_SHARE_READ | FILE_SHARE_WRITE,
      nullptr,
      disposition,
      FILE_ATTRIBUTE_NORMAL | FILE_FLAG_OPEN_REPARSE_POINT,
      nullptr);
}

} // namespace

bool FileLock::LockHandle::open(const std::string& path) {
  const std::wstring wide_path = to_wide(path);
  HANDLE file = open_file(wide_path, GENERIC_READ | GENERIC_WRITE, OPEN_ALWAYS);
  if (file == INVALID_HANDLE_VALUE &&
      (::GetLastError() == ERROR_ACCESS_DENIED || ::GetLastError() == ERROR_WRITE_PROTECT)) {
    const DWORD code = ::GetLastError();
    file = open_file(wide_path, GENERIC_READ, OPEN_EXISTING); // LockFileEx needs no write access
    if (file == INVALID_HANDLE_VALUE && ::GetLastError() != ERROR_SHARING_VIOLATION) {
      ::SetLastError(code);
    }
  }
  if (file != INVALID_HANDLE_VALUE) {
    file_ = reinterpret_cast<std::intptr_t>(file);
    return true;
  }
  if (::GetLastError() == ERROR_SHARING_VIOLATION) { // a virus scanner or a backup has it for itself
    return false;
  }
  fail("open", path, static_cast<int>(::GetLastError()));
}

bool FileLock::LockHandle::lock(const std::string& path, Mode mode, bool wait) {
  const DWORD flags = (mode == Mode::kShared ? 0 : LOCKFILE_EXCLUSIVE_LOCK) | (wait ? 0 : LOCKFILE_FAIL_IMMEDIATELY);
  OVERLAPPED first_byte{};
  if (::LockFileEx(to_handle(file_), flags, 0, 1, 0, &first_byte)) {
    owner_ = current_process();
    return true;
  }
  if (!wait && ::GetLastError() == ERROR_LOCK_VIOLATION) {
    return false;
  }
  fail("lock", path, static_cast<int>(::GetLastError()));
}

bool FileLock::LockHandle::is_current(const std::string& path) const {
  BY_HANDLE_FILE_INFORMATION ours{};
  if (!::GetFileInformationByHandle(to_handle(file_), &ours)) {
    fail("examine", path, static_cast<int>(::GetLastError()));
  }
  TORCHTRT_CHECK(
      (ours.dwFileAttributes & FILE_ATTRIBUTE_REPARSE_POINT) == 0,
      "Can't use '" << path << "' as a lock file: a symbolic link is refused here");
  return true; // see open_file
}

void FileLock::LockHandle::close() noexcept {
  if (!is_open()) {
    return;
  }
  // Closing alone would release the lock too, but at a time that Windows leaves open.
  if (owns_lock()) {
    OVERLAPPED first_byte{};
    ::UnlockFileEx(to_handle(file_), 0, 1, 0, &first_byte);
  }
  ::CloseHandle(to_handle(file_));
  file_ = kNoFile;
  owner_ = kNobody;
}

#endif

void FileLock::LockHandle::swap(LockHandle& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(owner_, other.owner_);
}

bool FileLock::LockHandle::is_open() const noexcept {
  return file_ != kNoFile;
}

bool FileLock::LockHandle::owns_lock() const noexcept {
  return owner_ != kNobody && owner_ == current_process();
}

FileLock::FileLock(std::string path, Mode mode) : path_(std::move(path)), mode_(mode) {
  TORCHTRT_CHECK(
      path_.find('\0') == std::string::npos,
      "The path of a lock file has a NUL in it, after '" << path_.c_str() << "'");
}

FileLock::FileLock(FileLock&& other) noexcept {
  swap(other);
}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  FileLock taken(std::move(other));
  swap(taken);
  return *this;
}

void FileLock::swap(FileLock& other) noexcept {
  path_.swap(other.path_);
  std::swap(mode_, other.mode_);
  handle_.swap(other.handle_);
}

void FileLock::lock() {
  acquire(std::nullopt);
}

bool FileLock::try_lock() {
  return acquire(Clock::time_point::min());
}

bool FileLock::try_lock_until_steady(Clock::time_point deadline) {
  return acquire(deadline);
}

void FileLock::unlock() {
  TORCHTRT_CHECK(handle_.is_open(), "There is no lock on '" << path_ << "' to release");
  handle_.close();
}

bool FileLock::owns_lock() const noexcept {
  return handle_.owns_lock();
}

// Without a deadline: for ever. Opens the file anew each time, because a file kept open could have lost its name.
bool FileLock::acquire(const std::optional<Clock::time_point>& deadline) {
  TORCHTRT_CHECK(!owns_lock(), "This object owns the lock on '" << path_ << "' already");
  LockHandle handle;
  std::optional<Clock::time_point> start; // of the waiting
  for (int replacements = 0;;) {
    if ((handle.is_open() || handle.open(path_)) && handle.lock(path_, mode_, !deadline)) {
      if (handle.is_current(path_)) {
        handle_.swap(handle);
        return true;
      }
      handle.close();
      if (++replacements < kReplacementsInARow) {
        continue;
      }
    }
    const auto now = Clock::now();
    if (deadline && now >= *deadline) {
      return false;
    }
    start = start.value_or(now);
    Clock::duration pause = poll_interval(now - *start);
    if (deadline) {
      pause = std::min(pause, *deadline - now);
    }
    std::this_thread::sleep_for(pause);
  }
}

} // namespace torch_tensorrt::core::util
