#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "core/util/file_lock.h"

namespace torch_tensorrt::core::runtime {

// Tells one content of a file from the next. Each save makes the time grow, however coarse the system's clock is and
// whichever inode it gives out again.
struct FileGeneration {
  uint64_t device;
  uint64_t inode;
  uint64_t size; // bytes
  int64_t mtime_ns;

  bool operator==(const FileGeneration&) const = default;
};

// A cache file that any number of processes share, each through a RuntimeCacheFile, or a tool of its own, on the path.
//
// The contract between them: the file holds the cache's bytes and nothing else; an empty file is a missing one. Who
// reads it holds the FileLock `path`.lock shared, who writes it holds it exclusively. A writer puts the bytes into a
// temporary file beside the target, named `<target's name>.<pid>-<16 hex digits>.tmp` and held by flock(2) while its
// writer lives, and renames it over the target: a reader that takes no lock also sees the old file or the new one,
// whole. Nobody overwrites a generation of the file whose contents are not in the bytes written (see save).
//
// A symbolic link at the path is followed to its file, which is the one read and replaced; the lock is named after the
// path as written, so all who share a file must use one name for it. Anything but a regular file is refused.
//
// Assumes of the file system that rename within a directory is atomic, that fsync is durable and that flock works.
// Access control lists and extended attributes of a replaced file are lost.
//
// Errors: torch_tensorrt::Error naming path, operation and the system's reason. After any, no temporary file is left
// and the file is as it was; but for a write in place (see save), and but for a failure to sync the directory, which
// is the last step: then the new file is there and may be lost with the machine's power.
//
// Thread safety: one object at a time in one thread (external synchronization); two objects on one path may be used at
// once. POSIX.1-2008: it has no Windows branch.
class RuntimeCacheFile {
 public:
  using View = std::span<const std::byte>;

  // Bytes, and what keeps them alive; without an owner they belong to somebody who outlives their use.
  struct Bytes {
    View view;
    std::shared_ptr<const void> owner;
  };

  // Returns where to put `size` > 0 bytes.
  using Allocate = std::function<std::byte*(size_t size)>;

  // What to write, given the bytes on disk, which are not in ours, and ours. May return either argument or a part of
  // it: both outlive the write. Empty: nothing is to be written.
  using Merge = std::function<Bytes(View disk, View ours)>;

  // `path` is taken as written. Touches no disk. Throws if `path` is empty or has a NUL in it.
  explicit RuntimeCacheFile(std::string path, std::chrono::milliseconds lock_timeout = util::FileLock::kDefaultTimeout);

  const std::string& path() const noexcept {
    return path_;
  }

  // Reads the whole file, under the shared lock, into the buffer that `allocate` returns, and answers its size in
  // bytes. 0 for a missing or empty file: `allocate` was not called, and nothing was created on disk. Where there is no
  // lock file and can be none, because its directory is closed to us, the file is read without the lock. `allocate` is
  // called anew should a program that takes no lock write the file meanwhile.
  size_t load(const Allocate& allocate);

  // Writes `bytes` durably and answers how many bytes were written: 0 if they are on disk already, or are none.
  //
  // If the file is not the generation that this object last loaded or saved, `merge` decides what is written instead.
  // The result is a generation that this object does not know, because what `merge` added is not in the caller's bytes:
  // the next save merges again. `merge` is called without the lock; if another process saved meanwhile it is called
  // anew, with the lock held. An exception of `merge` ends the save.
  //
  // The new file has the mode of the old one and, where the system allows it, its owner and group; a first one has
  // 0666 less the umask. Temporary files that dead writers left are removed. Where a rename is impossible (a single
  // file mounted into a container; a directory closed to us while the file is open to us) the file is written in place,
  // with one warning an object: only then can a crash or an error, or a reader without the lock, meet a torn file.
  size_t save(View bytes, const Merge& merge);

 private:
  size_t load_or_fail(const Allocate& allocate);
  size_t save_or_fail(View ours, const Merge& merge);
  util::FileLock take_lock(util::FileLock::Mode mode) const;
  std::optional<util::FileLock> take_lock_to_read() const;
  FileGeneration write(View bytes, const std::string& target, const std::optional<FileGeneration>& previous);

  std::string path_;
  std::chrono::milliseconds lock_timeout_;
  std::optional<FileGeneration> known_; // the one whose contents are in the caller's bytes; none: no file
  bool warned_of_writing_in_place_ = false;
};

} // namespace torch_tensorrt::core::runtime
