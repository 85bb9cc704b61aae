#include "core/util/file_lock.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "core/util/macros.h"

namespace torch_tensorrt::core::util {
namespace {

// Returns the pause before the next attempt of a waiter. It is an eighth of the time that the waiter has waited, and at
// most 5 ms. After 0.5 s it is 1/100 of that time, and at most 50 ms. The pause grows because each attempt takes up to
// 60 us of CPU time on a virtual machine: a constant pause of 5 ms would cost 1.2 % of a core.
std::chrono::nanoseconds poll_interval(std::chrono::nanoseconds waited) {
  using std::chrono::nanoseconds;
  constexpr nanoseconds kShortest = std::chrono::microseconds(100);
  constexpr nanoseconds kUsual = std::chrono::milliseconds(5);
  constexpr nanoseconds kLongest = std::chrono::milliseconds(50);
  return std::clamp(std::max(std::min(waited / 8, kUsual), waited / 100), kShortest, kLongest);
}

// Number of lock files that acquire() may find unlinked or replaced before it pauses. A few are normal: filelock 3.21
// to 3.25 unlink theirs at every release. More may mean a file system that reports another inode at each call.
constexpr int kReplacementsWithoutPause = 16;

} // namespace

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
  if (path_.find('\0') != std::string::npos) {
    TORCHTRT_THROW_ERROR("The path of a lock file has a NUL in it, after '" << path_.c_str() << "'");
  }
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
  if (!handle_.is_open()) {
    TORCHTRT_THROW_ERROR("Can't unlock lock file '" << path_ << "': this object does not own its lock");
  }
  handle_.close();
}

bool FileLock::owns_lock() const noexcept {
  return handle_.owns_lock();
}

// Waits without limit if there is no deadline. Opens the file again in each call, because a file that was kept open
// since an earlier call may have been unlinked.
bool FileLock::acquire(const std::optional<Clock::time_point>& deadline) {
  if (owns_lock()) {
    TORCHTRT_THROW_ERROR("Can't lock lock file '" << path_ << "': this object already owns its lock");
  }
  LockHandle handle;
  std::optional<Clock::time_point> start; // of the wait
  for (int replacements = 0;;) {
    if ((handle.is_open() || handle.open(path_)) && handle.lock(path_, mode_, !deadline)) {
      if (handle.is_current(path_)) {
        handle_.swap(handle);
        return true;
      }
      handle.close();
      if (++replacements < kReplacementsWithoutPause) {
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
