#pragma once

#include <sys/stat.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "core/util/file_lock.h"

namespace torch_tensorrt::core::runtime {

// Tells one content of a file from the next; opaque to everyone but RuntimeCacheFile. Each write makes the time grow,
// however coarse the system's clock is and whichever inode the file system hands out again.
struct FileGeneration {
  uint64_t device;
  uint64_t inode;
  uint64_t size; // bytes
  int64_t mtime_ns;

  bool operator==(const FileGeneration&) const = default;
};

// How long operations wait for locks, and how long they did.
struct LockWaits {
  using Clock = std::chrono::steady_clock;

  std::chrono::milliseconds timeout = util::FileLock::kDefaultTimeout; // of each wait
  Clock::time_point deadline = Clock::time_point::max();               // of all waits
  std::stop_token stop = {};                                           // once it is stopped, all waits end
  Clock::duration waited{0};
};

// A store for the bytes of one runtime cache: a file that any number of processes share. It has no state of its own.
//
// Readers hold the FileLock `path`.lock in shared mode, writers exclusively, for disk work alone. The file holds the
// cache's bytes and nothing else; an empty file counts as a missing one. A write goes to a temporary file, which is
// renamed over the target: a reader, with or without the lock, sees the old file or the new one.
// docs/cache-file-contract.md has the whole contract, also for other programs.
//
// A symbolic link at the path is followed to its file, which is the one read and replaced. The lock is named after the
// path as written, so all processes that share a file must use one name for it. Anything but a regular file is refused,
// and so is a path at which others could have put a file: see trusted_path.h. A refused path gets no lock file.
//
// A lock file that is missing is created with the cache's mode less everything for others and, where the system allows
// it, its owner and group. Each read and write sets the lock file's time, and leaves that of the cache alone.
//
// Assumes of the file system that rename within a directory is atomic, that fsync is durable and that flock works.
// Access control lists and extended attributes of a replaced file are lost.
//
// Errors: torch_tensorrt::Error naming path, operation and the system's reason. After any, no temporary file is left
// and the file is as it was, with two exceptions. A write in place (see replace) may fail half-way. And if the last
// step fails, the sync of the directory, then the new file is there but a power failure may undo it.
//
// Thread safety: immutable, but for the LockWaits; one thread at a time for those. POSIX.1-2008: it has no Windows
// branch.
class RuntimeCacheFile {
 public:
  using View = std::span<const std::byte>;

  struct Contents {
    std::unique_ptr<std::byte[]> bytes;
    FileGeneration generation; // its size is the number of bytes

    View view() const noexcept {
      return {bytes.get(), generation.size};
    }
  };

  struct Replaced {
    FileGeneration generation; // of the file, which has the given bytes now
    bool is_written;           // false: it had them already
    std::string in_place;      // why the file was written in place; empty: it was not
  };

  // `path` is taken as written. `waits` must outlive the object. Touches no disk. Throws if `path` is empty or has a
  // NUL in it.
  RuntimeCacheFile(std::string path, LockWaits& waits);

  // True if the file is missing or empty, or its status can't be read. Takes no lock.
  static bool is_empty(const std::string& path) noexcept;

  // Reads the whole file under the shared lock. Returns nullopt, and creates nothing on disk, if it is missing or
  // empty. Where the lock file is closed to us, or does not exist and its directory is closed to us, the file is read
  // without the lock.
  std::optional<Contents> read() const;

  // Writes `bytes` durably, under the exclusive lock, if the file is missing or empty or still has the generation
  // `expected`. Returns nullopt if it has another one: a conflict, upon which the caller reads again. A file that has
  // these very bytes is left alone. Requires that `bytes` is not empty.
  //
  // The new file has the mode of the old one and, where the system allows it, its owner and group; a first one has
  // 0664 less the umask. Temporary files that dead writers left are removed. Where a rename is impossible (a single
  // file mounted into a container; a directory closed to us while the file is open to us) the file is written in place.
  // Only then can a crash or an error, or a reader without the lock, meet a torn file. Throws instead, and leaves the
  // file alone, if `may_write_in_place` is false.
  std::optional<Replaced>
  replace(View bytes, const std::optional<FileGeneration>& expected, bool may_write_in_place = true) const;

  // What a saver that must merge has when its turn comes.
  struct Turn {
    util::FileLock lock;                  // keeps other savers waiting; not owned if it could not be taken
    bool is_saved = false;                // another saver has merged and written the bytes
    std::vector<std::string> offers = {}; // files with the bytes of savers that wait
  };

  // Waits until no other process merges what it read with what it has. Callers wait after a conflict, and before they
  // write while somebody has the turn. So of many that save at once one merges at a time and none in vain, while
  // `path`.lock stays free. The lock file is `path`.merge.lock.
  //
  // Meanwhile `bytes` lie beside the file as an offer. Whoever has the turn merges all offers, writes once, and accepts
  // them. So many savers need few writes. Waiting and offering only save work: if they fail, or the wait ends without
  // the lock, the caller merges by itself. Where the path is not trusted, it creates nothing and does not wait.
  Turn wait_for_turn(View bytes) const;

  // Returns true if another process has the turn. Creates nothing. An error counts as no.
  bool is_turn_taken() const noexcept;

  // Returns the bytes of an offer, or nullopt if it can't be read or is not this user's alone.
  static std::optional<Contents> read_offer(const std::string& offer);

  // Tells the saver that made the offer that its bytes are in the file. Requires that they are there durably.
  static void accept_offer(const std::string& offer) noexcept;

 private:
  util::FileLock take_lock(const std::string& path, util::FileLock::Mode mode, const std::optional<struct stat>& cache)
      const;
  std::optional<util::FileLock> take_lock_to_read(const struct stat& cache) const;
  std::optional<Contents> read_or_fail() const;

  const std::string path_;
  LockWaits& waits_;
};

} // namespace torch_tensorrt::core::runtime
