#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace torch_tensorrt::core::util {

// An advisory lock between processes, and between the objects of one process, on a lock file that it creates where
// missing and never removes. It excludes, and is excluded by, Python's `filelock.FileLock` on the same path:
// flock(2) on Linux and macOS, LockFileEx on byte 0 on Windows, as filelock 4 does
// (https://py-filelock.readthedocs.io).
//
// The lock belongs to the object: two FileLock objects on one path conflict also within one thread, and lock() on an
// object that owns its lock throws. Meets the standard's TimedLockable, so std::unique_lock and std::lock_guard work.
//
// A lock file that somebody unlinks or replaces is let go as soon as its lock is ours, and the one at the path is taken
// instead. So a waiter still waits for whoever holds the file that it opened, even after that file has lost its name.
//
// After fork(), the child's copy owns nothing: owns_lock() is false there, and neither unlock() nor the destructor
// touches the parent's lock. The child keeps the inherited descriptor until then, or until it execs; should the parent
// die without releasing, the lock is free once the last such descriptor is closed. exec() releases the lock.
//
// Errors: torch_tensorrt::Error, naming the path and the operating system's reason, when the lock file can't be opened
// or locked: a missing directory, no permission, a symbolic link at the path (never followed), not a regular file, a
// file system without locks. A lock file that may only be read is locked all the same. Contention is no error.
//
// Thread safety: one object in one thread at a time (external synchronization), like std::unique_lock.
class FileLock {
 public:
  enum class Mode {
    kShared, // any number of holders, none of them exclusive; filelock.FileLock counts as exclusive
    kExclusive,
  };

  // filelock's users wait as long.
  static constexpr std::chrono::milliseconds kDefaultTimeout{10'000};

  // The lock file that guards `path`, by filelock's convention: `path`.lock
  static std::string lock_path(const std::string& path) {
    return path + ".lock";
  }

  // `path` is the lock file itself, in UTF-8 on Windows; one with a NUL in it throws. Touches no disk: the file is
  // opened when the lock is taken, and closed when it is released.
  explicit FileLock(std::string path, Mode mode = Mode::kExclusive);
  ~FileLock() = default; // releases

  // What *this held is released. `other` is left without a lock and without a path.
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  // Blocks until the lock is ours. Throws also when this object owns it already.
  void lock();

  // Takes the lock if nobody holds it now; false if somebody does. Throws as lock() does.
  [[nodiscard]] bool try_lock();

  // Tries for `timeout`, at least once; false when that has passed. Polls, since neither platform's call has a
  // time-out: first after 0.1 ms, then at intervals that grow to 5 ms within 40 ms, and in waits beyond 0.75 s slowly
  // to at most 50 ms. Throws as lock() does.
  template <class Rep, class Period>
  [[nodiscard]] bool try_lock_for(const std::chrono::duration<Rep, Period>& timeout) {
    return try_lock_until_steady(Clock::now() + saturated(timeout));
  }
  [[nodiscard]] bool try_lock_for() {
    return try_lock_for(kDefaultTimeout);
  }

  // Like try_lock_for; what is left on `ClockType` until `deadline` is computed once, at the start.
  template <class ClockType, class Duration>
  [[nodiscard]] bool try_lock_until(const std::chrono::time_point<ClockType, Duration>& deadline) {
    const auto now = ClockType::now();
    return deadline > now ? try_lock_for(deadline - now) : try_lock();
  }

  // Gives the lock back; the file stays. Throws if there is nothing to give back: this object did not own the lock, nor
  // did, in a forked child, its original in the parent.
  void unlock();

  [[nodiscard]] bool owns_lock() const noexcept;

  [[nodiscard]] const std::string& path() const noexcept {
    return path_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  // An open lock file, and the process that owns the lock on it. What differs between platforms is in its functions:
  // see file_lock_posix.cpp and file_lock_windows.cpp.
  class LockHandle {
   public:
    LockHandle() = default;
    ~LockHandle() {
      close();
    }
    LockHandle(const LockHandle&) = delete;
    LockHandle& operator=(const LockHandle&) = delete;
    void swap(LockHandle& other) noexcept;

    // False if the file can't be opened right now because of what another process does with it. Throws on failure.
    bool open(const std::string& path);
    // False if somebody else holds the lock, which with `wait` can't be. Throws on failure.
    bool lock(const std::string& path, Mode mode, bool wait);
    // Whether the open file is the one at the path. Throws if it is nothing that may be a lock file.
    bool is_current(const std::string& path) const;
    // Releases the lock, if it is this process's, and closes the file, if it is open.
    void close() noexcept;

    bool is_open() const noexcept;
    bool owns_lock() const noexcept;

   private:
    static constexpr std::intptr_t kNoFile = -1;
    static constexpr std::int64_t kNobody = -1;

    // Returns a number that a forked child does not have in common with its parent.
    static std::int64_t current_process() noexcept;

    std::intptr_t file_ = kNoFile; // a file descriptor or a HANDLE; INVALID_HANDLE_VALUE is -1 too
    std::int64_t owner_ = kNobody; // the current_process() that took the lock
  };

  // `timeout` within 0 and 100 years, which any clock reading can be added to.
  template <class Rep, class Period>
  static Clock::duration saturated(const std::chrono::duration<Rep, Period>& timeout) {
    constexpr std::chrono::hours kLongest{24 * 365 * 100};
    if (!(timeout > timeout.zero())) { // so that NaN is no time at all
      return Clock::duration::zero();
    }
    using Float = std::chrono::duration<double>;
    if (std::chrono::duration_cast<Float>(timeout) >= Float(kLongest)) {
      return kLongest;
    }
    return std::chrono::duration_cast<Clock::duration>(timeout);
  }

  bool try_lock_until_steady(Clock::time_point deadline);
  bool acquire(const std::optional<Clock::time_point>& deadline);
  void swap(FileLock& other) noexcept;

  std::string path_;
  Mode mode_ = Mode::kExclusive;
  LockHandle handle_;
};

} // namespace torch_tensorrt::core::util
