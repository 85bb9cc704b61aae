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

#include "core/util/Exception.h"
#include "core/util/file_lock.h"

namespace torch_tensorrt::core::runtime {

// Identifies one version of a file's contents. Opaque to everyone but RuntimeCacheFile. Each write increases the time,
// so two versions differ even if the system's clock is coarse and the file system reuses an inode.
struct FileGeneration {
  uint64_t device;
  uint64_t inode;
  uint64_t size; // bytes
  int64_t mtime_ns;

  bool operator==(const FileGeneration&) const = default;
};

// Thrown by RuntimeCacheFile::replace() if the file can only be written in place, which the caller forbids.
class OnlyInPlaceError : public Error {
 public:
  using Error::Error;
};

// How long operations may wait for locks, and how long they have waited.
struct LockWaits {
  using Clock = std::chrono::steady_clock;

  std::chrono::milliseconds timeout = util::FileLock::kDefaultTimeout; // of each wait
  Clock::time_point deadline = Clock::time_point::max();               // of all waits
  std::stop_token stop = {};                                           // ends all waits once a stop is requested
  Clock::duration waited{0};
};

// A store for the bytes of one runtime cache: a file that any number of processes share. It has no state of its own.
//
// Readers hold the FileLock `path`.lock in shared mode, writers in exclusive mode, and only for disk work. The file
// holds the cache's bytes and nothing else. An empty file counts as a missing one. A write goes to a temporary file,
// which is renamed over the target, so a reader, with or without the lock, sees the old file or the new one.
// docs/cache-file-contract.md has the whole contract, for other programs too.
//
// A symbolic link at the path is followed, and the file that it leads to is read or replaced. The lock is named after
// the path as written, so all processes that share a file must use the same name for it. Anything but a regular file is
// refused, and so is a path at which others could have put a file: see trusted_path.h. A refused path gets no lock
// file.
//
// A missing lock file is created with the cache's mode, but without permissions for others, and where the system allows
// it with the cache's owner and group. Each read and write sets the time of the lock file. A read
// never sets that of the cache.
//
// Requires a file system on which rename within a directory is atomic, fsync is durable and flock works. Access control
// lists and extended attributes of a replaced file are lost.
//
// Errors: throws torch_tensorrt::Error, which names the path, the operation and the system's reason. After an error no
// temporary file is left and the file is unchanged, with two exceptions. A write in place (see replace) may fail
// half-way. If the last step fails, the sync of the directory, the new file is there but a power failure may undo it.
//
// Thread safety: the object is immutable except for its LockWaits, which one thread may use at a time. It needs
// POSIX.1-2008 and has no Windows branch.
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
    FileGeneration generation; // of the file, which now has the given bytes
    bool is_written;           // false if the file already had the bytes
    std::string in_place;      // why the file was written in place; empty if it was not
  };

  // `path` is taken as written. `waits` must outlive the object. Does not touch the disk. Throws if `path` is empty or
  // contains a NUL character.
  RuntimeCacheFile(std::string path, LockWaits& waits);

  // Returns true if the file is missing or empty, or its status can't be read. Takes no lock.
  static bool is_empty(const std::string& path) noexcept;

  // Reads the whole file under the shared lock. Returns nullopt, and creates nothing on disk, if the file is missing or
  // empty. Reads without the lock if this process may not open the lock file, or if the lock file is missing and this
  // process may not create it.
  std::optional<Contents> read() const;

  // Writes `bytes` durably, under the exclusive lock, if the file is missing or empty or still has the generation
  // `expected`. Returns nullopt if it has another generation. That is a conflict, and the caller must read again. Does
  // not write a file that already has these bytes. Requires that `bytes` is not empty.
  //
  // The new file has the mode of the old one and, where the system allows it, its owner and group. A first file has
  // mode 0664 minus the umask. Temporary files of writers that died are removed. If a rename is impossible (a single
  // file mounted into a container, or a writable file in a directory that is not writable), the file is written in
  // place. Only then can a crash or an error leave a torn file, or a reader without the lock see one. If
  // `may_write_in_place` is false, throws OnlyInPlaceError instead and leaves the file unchanged.
  std::optional<Replaced>
  replace(View bytes, const std::optional<FileGeneration>& expected, bool may_write_in_place = true) const;

  // A saver's turn to merge.
  struct Turn {
    util::FileLock lock;                  // keeps other savers waiting; not owned if it could not be taken
    bool is_saved = false;                // another saver has merged and written the bytes
    std::vector<std::string> offers = {}; // files with the bytes of waiting savers
  };

  // Waits for this process's turn to merge. Callers wait after a conflict, and before they write while another process
  // has the turn. So of many processes that save at once, only one merges at a time and none merges in vain, while
  // `path`.lock stays free. The lock file is `path`.merge.lock.
  //
  // During the wait, a file beside the cache offers `bytes` to other savers. The process that has the turn merges all
  // offers, writes once, and accepts them, so that many savers need few writes. Waiting and offering only save work: if
  // they fail, or the wait ends without the lock, the caller merges on its own. If the path is not trusted, the
  // function creates nothing and does not wait.
  Turn wait_for_turn(View bytes) const;

  // Returns true if another process has the turn. Creates nothing. Returns false on an error.
  bool is_turn_taken() const noexcept;

  // Returns the bytes of an offer, or nullopt if it can't be read or is not private to this user.
  static std::optional<Contents> read_offer(const std::string& offer);

  // Tells the saver that made the offer that its bytes are in the file. Requires that they are durably written.
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
