#include "core/runtime/RuntimeCacheFile.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <new>
#include <random>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/runtime/trusted_path.h"
#include "core/util/macros.h"

namespace torch_tensorrt::core::runtime {
namespace {

namespace fs = std::filesystem;
using util::FileLock;
using View = RuntimeCacheFile::View;

constexpr std::chrono::milliseconds kStopPoll{50}; // between two checks for a stop request in a wait for a lock
constexpr int kReadsOfAChangingFile = 3;
constexpr mode_t kFirstMode = 0664; // of a new cache; the umask applies
constexpr size_t kCompareChunk = 64 * 1024;
constexpr int64_t kNanosecondsPerSecond = 1'000'000'000;

// Throws an error with a text like "open '/path': Permission denied". with_context() adds the rest before it.
[[noreturn]] void fail(const char* action, const std::string& path, int code = errno) {
  throw std::system_error(code, std::generic_category(), std::string(action) + " '" + path + "'");
}

// Thrown if the file can't be replaced by a rename. It may still be possible to write it in place.
class CannotReplace : public std::system_error {
 public:
  using std::system_error::system_error;
};

template <class Call>
auto uninterrupted(const Call& call) {
  auto result = call();
  while (result == -1 && errno == EINTR) {
    result = call();
  }
  return result;
}

// A message to log once the lock is released, because logging can block and nobody should wait for that.
struct Note {
  util::logging::LogLevel level;
  std::string text;
};
using Notes = std::vector<Note>;

class Descriptor {
 public:
  // If open(2) fails, the descriptor is not open and errno is set. O_NONBLOCK, because a FIFO at the path would block.
  Descriptor(const std::string& path, int flags, mode_t mode = 0)
      : fd_(uninterrupted([&] { return ::open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, mode); })) {}

  ~Descriptor() {
    if (is_open()) {
      ::close(fd_);
    }
  }

  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  bool is_open() const {
    return fd_ >= 0;
  }

  int get() const {
    return fd_;
  }

 private:
  int fd_;
};

struct stat status_of(const Descriptor& file, const std::string& path) {
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) {
    fail("stat", path);
  }
  return status;
}

FileGeneration generation_of(const struct stat& status) {
  return {
      .device = status.st_dev,
      .inode = status.st_ino,
      .size = static_cast<uint64_t>(status.st_size),
      .mtime_ns = int64_t{status.st_mtim.tv_sec} * kNanosecondsPerSecond + status.st_mtim.tv_nsec};
}

// Returns nullopt for an empty file, which counts as a missing one.
std::optional<FileGeneration> checked_generation(const struct stat& status, const std::string& path) {
  if (!S_ISREG(status.st_mode)) {
    TORCHTRT_THROW_ERROR("'" << path << "' is not a regular file");
  }
  return status.st_size == 0 ? std::nullopt : std::optional(generation_of(status));
}

// Returns nullopt if a directory on the way is missing. Throws if the path is refused, so that it gets no lock file.
std::optional<TrustedPath> checked_target(const std::string& path) {
  std::optional<TrustedPath> target = resolve_trusted(path);
  if (target && target->status) {
    checked_generation(*target->status, path);
  }
  return target;
}

struct stat checked_status(const Descriptor& file, const TrustedPath& target) {
  const struct stat status = status_of(file, target.path);
  check_trusted(target, status);
  return status;
}

std::string directory_of(const std::string& path) {
  const fs::path directory = fs::path(path).parent_path();
  return directory.empty() ? "." : directory.string();
}

// Returns false if the file ends before `size` bytes.
bool read_fully(const Descriptor& file, std::byte* buffer, size_t size, uint64_t offset, const std::string& path) {
  while (size > 0) {
    const ssize_t n = uninterrupted([&] { return ::pread(file.get(), buffer, size, static_cast<off_t>(offset)); });
    if (n < 0) {
      fail("read", path);
    }
    if (n == 0) {
      return false;
    }
    buffer += n;
    size -= static_cast<size_t>(n);
    offset += static_cast<uint64_t>(n);
  }
  return true;
}

void write_fully(const Descriptor& file, View bytes, uint64_t offset, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n =
        uninterrupted([&] { return ::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)); });
    if (n <= 0) {
      fail("write", path, n == 0 ? EIO : errno);
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
}

void sync(const Descriptor& file, const std::string& path) {
  if (uninterrupted([&] { return ::fsync(file.get()); }) != 0) {
    fail("fsync", path);
  }
}

// Returns nullopt for a missing or empty file.
std::optional<RuntimeCacheFile::Contents> read_whole(const TrustedPath& target) {
  const std::string& path = target.path;
  for (int i = 0; i < kReadsOfAChangingFile; ++i) {
    const Descriptor file(path, O_RDONLY | O_NOFOLLOW);
    if (!file.is_open()) {
      if (errno == ENOENT) {
        return std::nullopt;
      }
      fail("open", path);
    }
    const auto generation = checked_generation(checked_status(file, target), path);
    if (!generation) {
      return std::nullopt;
    }
    auto bytes = std::make_unique_for_overwrite<std::byte[]>(generation->size);
    if (read_fully(file, bytes.get(), generation->size, 0, path) &&
        generation_of(status_of(file, path)) == *generation) {
      return RuntimeCacheFile::Contents{.bytes = std::move(bytes), .generation = *generation};
    }
  }
  TORCHTRT_THROW_ERROR("read '" << path << "': it kept changing. A program writes it without the lock");
}

// Requires that the file has the size of `bytes`, which is not 0. Compares piece by piece, so that a save needs no
// second copy of a large cache.
bool holds_exactly(const Descriptor& file, View bytes, const std::string& path) {
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(std::min(kCompareChunk, bytes.size()));
  const auto holds_piece_at = [&](size_t offset) {
    const View piece = bytes.subspan(offset, std::min(kCompareChunk, bytes.size() - offset));
    return read_fully(file, buffer.get(), piece.size(), offset, path) &&
        std::memcmp(buffer.get(), piece.data(), piece.size()) == 0;
  };
  // Different caches of the same size nearly always differ at one of their ends: in a header, a checksum or the newest
  // kernel.
  const size_t last = (bytes.size() - 1) / kCompareChunk * kCompareChunk;
  if (!holds_piece_at(last)) {
    return false;
  }
  for (size_t offset = 0; offset < last; offset += kCompareChunk) {
    if (!holds_piece_at(offset)) {
      return false;
    }
  }
  return true;
}

constexpr std::string_view kTemporarySuffix = ".tmp";
constexpr std::string_view kOfferSuffix = ".merge";
constexpr size_t kTemporaryDigits = 16;
constexpr size_t kLargestOffer = 64 * 1024 * 1024; // so that many savers do not fill the disk

std::string make_temporary_name(const std::string& target) {
  std::random_device random;
  std::array<char, 64> tail{};
  std::snprintf(tail.data(), tail.size(), ".%ld-%08x%08x", static_cast<long>(::getpid()), random(), random());
  return target + tail.data() + std::string(kTemporarySuffix);
}

bool is_temporary_name(std::string_view name, std::string_view target_name, std::string_view suffix) {
  const auto take_while = [&name](std::string_view allowed) {
    const size_t n = std::min(name.find_first_not_of(allowed), name.size());
    name.remove_prefix(n);
    return n;
  };
  if (!name.starts_with(target_name)) {
    return false;
  }
  name.remove_prefix(target_name.size());
  return take_while(".") == 1 && take_while("0123456789") > 0 && take_while("-") == 1 &&
      take_while("0123456789abcdef") == kTemporaryDigits && name == suffix;
}

// Returns the temporary files beside `target` whose names end in `suffix`. Returns none if the directory can't be
// listed.
std::vector<std::string> temporaries_of(const std::string& target, std::string_view suffix) {
  const std::string target_name = fs::path(target).filename().string();
  std::vector<std::string> paths;
  std::error_code error;
  for (fs::directory_iterator entry(directory_of(target), error), end; !error && entry != end; entry.increment(error)) {
    if (is_temporary_name(entry->path().filename().string(), target_name, suffix)) {
      paths.push_back(entry->path().string());
    }
  }
  return paths;
}

// Requires the exclusive lock. That lock does not exclude a writer that uses another name for the same target, but a
// living writer holds a lock on its temporary file. The process id in a file's name proves nothing, because each
// container numbers its own processes.
void remove_stale_temporaries(const std::string& target, Notes& notes) {
  for (const std::string_view suffix : {kTemporarySuffix, kOfferSuffix}) {
    for (const std::string& path : temporaries_of(target, suffix)) {
      const Descriptor file(path, O_RDONLY | O_NOFOLLOW);
      // What can't be removed now is left to a later write.
      if (file.is_open() && ::flock(file.get(), LOCK_SH | LOCK_NB) == 0 && ::unlink(path.c_str()) == 0) {
        notes.push_back({util::logging::LogLevel::kINFO, "Removed '" + path + "', left by a writer that died"});
      }
    }
  }
}

// Marks a new file as one whose writer lives, until it is closed. Returns false if another writer has just taken it for
// a leftover.
bool hold(const Descriptor& file) {
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    return errno != EWOULDBLOCK; // nobody removes leftovers from a file system without locks
  }
  struct stat status{};
  return ::fstat(file.get(), &status) != 0 || status.st_nlink > 0;
}

// An open file beside the target. The destructor removes it unless it was renamed to the target.
class TemporaryFile {
 public:
  TemporaryFile(const std::string& target, mode_t mode) {
    create(target, mode);
    while (!hold(file())) {
      ::unlink(path_.c_str());
      create(target, mode);
    }
  }

  ~TemporaryFile() {
    if (!renamed_) {
      ::unlink(path_.c_str());
    }
  }

  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const {
    return path_;
  }

  const Descriptor& file() const {
    return *file_;
  }

  void rename_to(const std::string& target) {
    if (::rename(path_.c_str(), target.c_str()) != 0) {
      // EBUSY: the target is a mount point. EPERM, EACCES: such as for somebody else's file in a sticky directory.
      const int code = errno;
      if (code == EBUSY || code == EPERM || code == EACCES) {
        throw CannotReplace(code, std::generic_category(), "rename to '" + target + "'");
      }
      fail("rename to", target, code);
    }
    renamed_ = true;
  }

  // Makes the file an offer, which other savers can see.
  void rename_to_offer() {
    const std::string offer = path_.substr(0, path_.size() - kTemporarySuffix.size()) + std::string(kOfferSuffix);
    if (::rename(path_.c_str(), offer.c_str()) != 0) {
      fail("rename to", offer);
    }
    path_ = offer;
  }

 private:
  void create(const std::string& target, mode_t mode) {
    path_ = make_temporary_name(target);
    file_.emplace(path_, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
    if (!file().is_open()) {
      const int code = errno;
      if (code == EACCES || code == EPERM || code == EROFS) {
        throw CannotReplace(code, std::generic_category(), "create '" + path_ + "'");
      }
      fail("create", path_, code);
    }
  }

  std::string path_;
  std::optional<Descriptor> file_;
  bool renamed_ = false;
};

bool take_over_owner(const Descriptor& file, const struct stat& old) {
  // Only root may give a file away; a member of the group may still give it to the group.
  return ::fchown(file.get(), old.st_uid, old.st_gid) == 0 ||
      ::fchown(file.get(), static_cast<uid_t>(-1), old.st_gid) == 0;
}

void take_over_owner_and_mode(const TemporaryFile& temporary, const struct stat& old, Notes& notes) {
  if (!take_over_owner(temporary.file(), old)) {
    notes.push_back(
        {util::logging::LogLevel::kDEBUG,
         "Can't keep owner and group of the runtime cache: " + std::generic_category().message(errno)});
  }
  if (::fchmod(temporary.file().get(), old.st_mode & 0777) != 0) {
    fail("chmod", temporary.path());
  }
}

// A lock file has the cache's mode without permissions for others, because anyone who can read it can hold it. Its
// owner may always read and write it. Errors are ignored here, because FileLock opens the file next and reports them.
void create_lock_file(const std::string& path, const std::optional<struct stat>& cache) {
  const mode_t mode = ((cache ? cache->st_mode : kFirstMode) & 0770) | 0600;
  const Descriptor file(path, O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
  if (file.is_open() && cache) {
    take_over_owner(file, *cache);
    ::fchmod(file.get(), mode);
  }
}

// Makes the file's time later than that of its predecessor. Otherwise a file that is written within the same tick of
// the clock, or after the clock was set back, would have the same generation if its inode and size were also the same.
void set_time_after(
    const Descriptor& file,
    const std::optional<struct stat>& old,
    const std::string& path,
    Notes& notes) {
  if (!old || generation_of(status_of(file, path)).mtime_ns > generation_of(*old).mtime_ns) {
    return;
  }
  const int64_t next = generation_of(*old).mtime_ns + 1;
  const std::array<timespec, 2> times{{
      {.tv_sec = 0, .tv_nsec = UTIME_OMIT},
      {.tv_sec = next / kNanosecondsPerSecond, .tv_nsec = next % kNanosecondsPerSecond},
  }};
  if (::futimens(file.get(), times.data()) != 0) { // it was written in place by a user who does not own it
    notes.push_back(
        {util::logging::LogLevel::kDEBUG,
         "Can't set the time of '" + path + "': " + std::generic_category().message(errno)});
  }
}

void sync_directory(const std::string& directory) {
  const Descriptor file(directory, O_RDONLY | O_DIRECTORY);
  if (!file.is_open() && errno == EACCES) {
    return; // this process may write to it but not list it, and there is no other way to sync it
  }
  if (!file.is_open()) {
    fail("open", directory);
  }
  if (uninterrupted([&] { return ::fsync(file.get()); }) != 0 && errno != EINVAL) { // some file systems can't
    fail("fsync", directory);
  }
}

FileGeneration rename_over(const std::string& target, View bytes, const std::optional<struct stat>& old, Notes& notes) {
  TemporaryFile temporary(target, old ? 0600 : kFirstMode);
  if (old) {
    take_over_owner_and_mode(temporary, *old, notes);
  }
  write_fully(temporary.file(), bytes, 0, temporary.path());
  set_time_after(temporary.file(), old, temporary.path(), notes);
  sync(temporary.file(), temporary.path());
  const FileGeneration written = generation_of(status_of(temporary.file(), temporary.path()));
  temporary.rename_to(target);
  return written;
}

FileGeneration write_in_place(
    const Descriptor& file,
    View bytes,
    const std::string& target,
    const std::optional<struct stat>& old,
    Notes& notes) {
  const auto old_size = static_cast<uint64_t>(old ? old->st_size : 0);
  // The part that needs new space is written first, so that a full disk leaves the old contents untouched.
  const size_t head = std::min<size_t>(old_size, bytes.size());
  try {
    write_fully(file, bytes.subspan(head), head, target);
    sync(file, target);
  } catch (...) {
    if (::ftruncate(file.get(), static_cast<off_t>(old_size)) != 0) {
      notes.push_back(
          {util::logging::LogLevel::kERROR,
           "Can't cut '" + target + "' back to " + std::to_string(old_size) + " bytes: it is damaged"});
    }
    throw;
  }
  write_fully(file, bytes.first(head), 0, target);
  if (uninterrupted([&] { return ::ftruncate(file.get(), static_cast<off_t>(bytes.size())); }) != 0) {
    fail("truncate", target);
  }
  set_time_after(file, old, target, notes);
  sync(file, target);
  return generation_of(status_of(file, target));
}

// Requires the exclusive lock. `old` is the status of the existing file, or nullopt if there is none.
RuntimeCacheFile::Replaced write(
    const TrustedPath& trusted,
    View bytes,
    const std::optional<struct stat>& old,
    bool may_write_in_place,
    Notes& notes) {
  const std::string& target = trusted.path;
  remove_stale_temporaries(target, notes);
  RuntimeCacheFile::Replaced replaced{.generation = {}, .is_written = true, .in_place = ""};
  try {
    replaced.generation = rename_over(target, bytes, old, notes);
  } catch (const CannotReplace& reason) {
    const Descriptor file(target, O_WRONLY | O_NOFOLLOW);
    if (!file.is_open()) {
      throw;
    }
    checked_status(file, trusted);
    if (!may_write_in_place) {
      const std::string prefix = "it can only be written in place, and a kill could tear it: ";
      throw OnlyInPlaceError(__FILE__, __LINE__, prefix + reason.what());
    }
    replaced.in_place = reason.what();
    replaced.generation = write_in_place(file, bytes, target, old, notes);
  }
  sync_directory(directory_of(target));
  return replaced;
}

// Like RuntimeCacheFile::replace(). Requires the exclusive lock.
std::optional<RuntimeCacheFile::Replaced> replace_locked(
    const std::string& path,
    View bytes,
    const std::optional<FileGeneration>& expected,
    bool may_write_in_place,
    Notes& notes) {
  const std::optional<TrustedPath> target = resolve_trusted(path); // again, because a link may have changed
  if (!target) {
    fail("open", path, ENOENT);
  }
  std::optional<struct stat> old;
  std::optional<FileGeneration> current;
  {
    const Descriptor file(target->path, O_RDONLY | O_NOFOLLOW);
    if (file.is_open()) {
      old = checked_status(file, *target);
      current = checked_generation(*old, path);
    } else if (errno != ENOENT) {
      fail("open", target->path);
    }
    if (current && current->size == bytes.size() && holds_exactly(file, bytes, target->path)) {
      return RuntimeCacheFile::Replaced{.generation = *current, .is_written = false, .in_place = ""};
    }
  }
  if (current && current != expected) {
    return std::nullopt;
  }
  return write(*target, bytes, old, may_write_in_place, notes);
}

// Returns the path that is locked during a merge.
std::string turn_path(const std::string& path) {
  return path + ".merge";
}

// Runs `body`. Adds the operation and the path of the cache to the text of any error that it throws.
template <class Body>
auto with_context(const char* operation, const std::string& path, const Body& body) {
  const auto in_context = [&](const std::string& reason) {
    return "Can't " + std::string(operation) + " the runtime cache '" + path + "': " + reason;
  };
  try {
    return body();
  } catch (const OnlyInPlaceError& error) {
    throw OnlyInPlaceError(__FILE__, __LINE__, in_context(error.msg()));
  } catch (const Error& error) {
    TORCHTRT_THROW_ERROR(in_context(error.msg()));
  } catch (const std::system_error& error) {
    TORCHTRT_THROW_ERROR(in_context(error.what()));
  } catch (const std::bad_alloc&) {
    TORCHTRT_THROW_ERROR(in_context(std::generic_category().message(ENOMEM)));
  }
}

} // namespace

RuntimeCacheFile::RuntimeCacheFile(std::string path, LockWaits& waits) : path_(std::move(path)), waits_(waits) {
  if (path_.empty()) {
    TORCHTRT_THROW_ERROR("The path of a runtime cache is empty");
  }
  if (path_.find('\0') != std::string::npos) {
    TORCHTRT_THROW_ERROR("The path of a runtime cache has a NUL in it, after '" << path_.c_str() << "'");
  }
}

bool RuntimeCacheFile::is_empty(const std::string& path) noexcept {
  struct stat status{};
  return ::stat(path.c_str(), &status) != 0 || status.st_size == 0;
}

std::optional<RuntimeCacheFile::Contents> RuntimeCacheFile::read() const {
  auto contents = with_context("load", path_, [this] { return read_or_fail(); });
  if (contents) {
    LOG_INFO("Loaded " << contents->generation.size << " bytes from the runtime cache '" << path_ << "'");
  } else {
    LOG_INFO("There is no runtime cache at '" << path_ << "' yet");
  }
  return contents;
}

std::optional<RuntimeCacheFile::Contents> RuntimeCacheFile::read_or_fail() const {
  const std::optional<TrustedPath> target = checked_target(path_);
  if (!target || !target->status || target->status->st_size == 0) {
    return std::nullopt; // before a lock file is created
  }
  const std::optional<FileLock> lock = take_lock_to_read(*target->status);
  return read_whole(*target);
}

std::optional<RuntimeCacheFile::Replaced>
RuntimeCacheFile::replace(View bytes, const std::optional<FileGeneration>& expected, bool may_write_in_place) const {
  Notes notes;
  const auto log_notes = [&notes] {
    for (const Note& note : notes) {
      TORCHTRT_LOG(note.level, note.text);
    }
  };
  std::optional<Replaced> replaced;
  try {
    replaced = with_context("save", path_, [&] {
      const std::optional<TrustedPath> target = checked_target(path_);
      const FileLock lock = take_lock(path_, FileLock::Mode::kExclusive, target ? target->status : std::nullopt);
      return replace_locked(path_, bytes, expected, may_write_in_place, notes);
    });
  } catch (...) {
    log_notes();
    throw;
  }
  log_notes();
  if (replaced && replaced->is_written) {
    LOG_INFO("Saved " << bytes.size() << " bytes to the runtime cache '" << path_ << "'");
  } else if (replaced) {
    LOG_INFO("The runtime cache '" << path_ << "' has these " << bytes.size() << " bytes already");
  }
  return replaced;
}

RuntimeCacheFile::Turn RuntimeCacheFile::wait_for_turn(View bytes) const {
  const std::string path = turn_path(path_);
  Turn turn{.lock = FileLock(FileLock::lock_path(path))};
  std::optional<TrustedPath> target;
  try {
    target = resolve_trusted(path_);
  } catch (const std::exception&) { // NOLINT(bugprone-empty-catch): the caller's next read or write reports it
  }
  if (!target) {
    return turn;
  }
  std::unique_ptr<TemporaryFile> offer;
  try {
    if (!bytes.empty() && bytes.size() <= kLargestOffer) {
      offer = std::make_unique<TemporaryFile>(target->path, 0600);
      write_fully(offer->file(), bytes, 0, offer->path());
      offer->rename_to_offer();
    }
  } catch (const std::exception& error) {
    offer.reset();
    LOG_DEBUG("Can't offer the kernels for '" << path_ << "' to other savers: " << error.what());
  }
  try {
    turn.lock = take_lock(path, FileLock::Mode::kExclusive, target->status);
  } catch (const Error& error) {
    LOG_INFO("Merging without waiting for others: " << error.msg());
  }
  struct stat status{};
  turn.is_saved = offer != nullptr && ::fstat(offer->file().get(), &status) == 0 && status.st_nlink == 0;
  offer.reset();
  if (turn.lock.owns_lock() && !turn.is_saved) {
    turn.offers = temporaries_of(target->path, kOfferSuffix);
  }
  return turn;
}

bool RuntimeCacheFile::is_turn_taken() const noexcept {
  try {
    FileLock lock(FileLock::lock_path(turn_path(path_)), FileLock::Mode::kShared);
    return fs::exists(fs::symlink_status(lock.path())) && !lock.try_lock();
  } catch (const std::exception&) { // NOLINT(bugprone-empty-catch): wait_for_turn() reports it
    return false;
  }
}

std::optional<RuntimeCacheFile::Contents> RuntimeCacheFile::read_offer(const std::string& offer) {
  const Descriptor file(offer, O_RDONLY | O_NOFOLLOW);
  struct stat status{};
  // The mode counts too, because a hard link to another file of this user could hold what somebody else wrote.
  const bool is_ours = file.is_open() && ::fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode) &&
      status.st_uid == ::geteuid() && (status.st_mode & 0077) == 0;
  if (!is_ours || status.st_size == 0) {
    return std::nullopt;
  }
  const FileGeneration generation = generation_of(status);
  auto bytes = std::make_unique_for_overwrite<std::byte[]>(generation.size);
  try {
    if (!read_fully(file, bytes.get(), generation.size, 0, offer)) {
      return std::nullopt;
    }
  } catch (const std::system_error&) {
    return std::nullopt;
  }
  return Contents{.bytes = std::move(bytes), .generation = generation};
}

void RuntimeCacheFile::accept_offer(const std::string& offer) noexcept {
  ::unlink(offer.c_str());
}

FileLock RuntimeCacheFile::take_lock(
    const std::string& path,
    FileLock::Mode mode,
    const std::optional<struct stat>& cache) const {
  FileLock lock(FileLock::lock_path(path), mode);
  create_lock_file(lock.path(), cache);
  const auto start = LockWaits::Clock::now();
  const auto end = std::min(start + waits_.timeout, waits_.deadline);
  bool is_locked = false;
  if (waits_.stop.stop_possible()) {
    while (!(is_locked = lock.try_lock()) && !waits_.stop.stop_requested() && LockWaits::Clock::now() < end) {
      std::this_thread::sleep_for(kStopPoll);
    }
  } else {
    is_locked = lock.try_lock_until(end);
  }
  const auto waited = LockWaits::Clock::now() - start;
  waits_.waited += waited;
  if (!is_locked) {
    const auto limit = std::max(std::min(waited, end - start), LockWaits::Clock::duration(0));
    const auto milliseconds = std::chrono::round<std::chrono::milliseconds>(limit).count();
    TORCHTRT_THROW_ERROR("another holder kept the lock '" << lock.path() << "' for " << milliseconds << " ms");
  }
  // Records the last use of the cache, whose own time is part of its generation. Fails if this process may not write to
  // the lock file.
  ::utimensat(AT_FDCWD, lock.path().c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
  return lock;
}

// Returns nullopt if this process may not open the lock file, or if the lock file is missing and this process may not
// create it.
std::optional<FileLock> RuntimeCacheFile::take_lock_to_read(const struct stat& cache) const {
  const char* reason = "";
  try {
    return take_lock(path_, FileLock::Mode::kShared, cache);
  } catch (const Error&) {
    const std::string lock_path = FileLock::lock_path(path_);
    const Descriptor lock_file(lock_path, O_RDONLY | O_NOFOLLOW);
    const int code = lock_file.is_open() ? 0 : errno;
    // Unlike access, faccessat checks the effective ids. It knows read-only mounts and immutable directories.
    if (code == EACCES) {
      reason = "its lock file is closed to this user";
    } else if (code == ENOENT && ::faccessat(AT_FDCWD, directory_of(lock_path).c_str(), W_OK | X_OK, AT_EACCESS) != 0) {
      reason = "its directory is read-only";
    } else {
      throw;
    }
  }
  LOG_INFO("Reading the runtime cache '" << path_ << "' without a lock: " << reason);
  return std::nullopt;
}

} // namespace torch_tensorrt::core::runtime
