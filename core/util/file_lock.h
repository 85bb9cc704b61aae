#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace torch_tensorrt::core::util {

// An advisory lock between processes, and between the objects of one process, on a lock file. The lock file is created
// if it is missing, and never removed. The lock excludes, and is excluded by, Python's `filelock.FileLock` on the same
// path. Like filelock 4 (https://py-filelock.readthedocs.io), it is flock(2) on Linux and macOS, and LockFileEx on
// byte 0 on Windows.
//
// The lock belongs to the object: two FileLock objects on one path conflict even within one thread, and lock() throws
// on an object that owns its lock. Meets the standard's TimedLockable, so std::unique_lock and std::lock_guard work.
//
// If somebody unlinks or replaces the lock file, its holder keeps the lock, and a waiter goes on waiting for that
// holder. If the waiter then gets the lock of a file that is no longer at the path, it takes the lock of the file that
// is there now.
//
// After fork(), the child's copy owns nothing: owns_lock() returns false there, and neither unlock() nor the destructor
// releases the parent's lock. They close the descriptor that the child inherited, and so does exec(). If the parent
// dies without releasing the lock, the lock is free once the last such descriptor is closed. exec() in the process that
// owns the lock releases it.
//
// Errors: throws torch_tensorrt::Error, which names the path and the reason, if the lock file can't be opened or
// locked. The reason may be a missing directory, no permission, a symbolic link at the path (it is never followed), a
// file that is not a regular one, or a file system without locks. Permission to read the lock file is enough.
// Contention is not an error.
//
// Thread safety: one thread per object at a time (external synchronization), like std::unique_lock.
class FileLock {
 public:
  enum class Mode {
    kShared, // any number of holders, none of them exclusive; filelock.FileLock is exclusive
    kExclusive,
  };

  // The timeout of try_lock_for() without an argument. The Python runtime uses the same value.
  static constexpr std::chrono::milliseconds kDefaultTimeout{10'000};

  // Returns the path of the lock file that guards `path`, by filelock's convention: `path`.lock
  static std::string lock_path(const std::string& path) {
    return path + ".lock";
  }

  // `path` is the lock file itself, in UTF-8 on Windows. Throws if it contains a NUL character. Does not touch the
  // disk: the file is opened when the lock is taken, and closed when it is released.
  explicit FileLock(std::string path, Mode mode = Mode::kExclusive);
  ~FileLock() = default; // releases

  // Releases the lock that *this owns. Leaves `other` without a lock and with an empty path.
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  // Blocks until this object owns the lock. Throws if it owns the lock already.
  void lock();

  // Takes the lock and returns true, or returns false if somebody holds it now. Throws as lock() does.
  [[nodiscard]] bool try_lock();

  // Tries for `timeout`, at least once, and returns false once that time has passed. Polls, because neither platform's
  // call has a timeout. The first pause is 0.1 ms. The pauses grow to 5 ms within 40 ms and, in waits longer than 0.5
  // s, slowly to at most 50 ms. Throws as lock() does.
  template <class Rep, class Period>
  [[nodiscard]] bool try_lock_for(const std::chrono::duration<Rep, Period>& timeout) {
    return try_lock_until_steady(Clock::now() + saturated(timeout));
  }
  [[nodiscard]] bool try_lock_for() {
    return try_lock_for(kDefaultTimeout);
  }

  // Like try_lock_for(). Reads `ClockType` once, at the start, for the time left until `deadline`.
  template <class ClockType, class Duration>
  [[nodiscard]] bool try_lock_until(const std::chrono::time_point<ClockType, Duration>& deadline) {
    const auto now = ClockType::now();
    return deadline > now ? try_lock_for(deadline - now) : try_lock();
  }

  // Releases the lock; the file stays. Throws if this object does not own the lock. In a forked child, the copy of an
  // object that owned its lock may be unlocked once. This only closes the inherited descriptor.
  void unlock();

  [[nodiscard]] bool owns_lock() const noexcept;

  [[nodiscard]] const std::string& path() const noexcept {
    return path_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  // An open lock file, and the process that owns the lock on it. Everything that differs between platforms is in its
  // functions: see file_lock_posix.cpp and file_lock_windows.cpp.
  class LockHandle {
   public:
    LockHandle() = default;
    ~LockHandle() {
      close();
    }
    LockHandle(const LockHandle&) = delete;
    LockHandle& operator=(const LockHandle&) = delete;
    void swap(LockHandle& other) noexcept;

    // Returns false if another process keeps the file from being opened now. Throws on failure.
    bool open(const std::string& path);
    // Returns false if somebody else holds the lock, never if `wait` is true. Throws on failure.
    bool lock(const std::string& path, Mode mode, bool wait);
    // Returns true if the open file is the one at the path. Throws if it can't be used as a lock file.
    bool is_current(const std::string& path) const;
    // Releases the lock if this process owns it, and closes the file if it is open.
    void close() noexcept;

    bool is_open() const noexcept;
    bool owns_lock() const noexcept;

   private:
    static constexpr std::intptr_t kNoFile = -1;
    static constexpr std::int64_t kNobody = -1;

    // Returns a number that differs between a process and its forked children.
    static std::int64_t current_process() noexcept;

    std::intptr_t file_ = kNoFile; // a file descriptor or a HANDLE; INVALID_HANDLE_VALUE is -1 too
    std::int64_t owner_ = kNobody; // the current_process() that took the lock
  };

  // Returns `timeout` clamped to 0 to 100 years, so that it can be added to any reading of the clock.
  template <class Rep, class Period>
  static Clock::duration saturated(const std::chrono::duration<Rep, Period>& timeout) {
    constexpr std::chrono::hours kLongest{24 * 365 * 100};
    if (!(timeout > timeout.zero())) { // true for NaN too
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
