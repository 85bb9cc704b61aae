#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <torch/custom_class.h>

#include "core/runtime/CheckpointThread.h"
#include "core/runtime/LiveRuntimeCache.h"
#include "core/runtime/RuntimeCacheFile.h"
#include "core/runtime/RuntimeCacheKind.h"

namespace torch_tensorrt::core::runtime {

class Handles;

// The kernels of a runtime cache, and the files that they come from and go to; in Python
// `torch.classes.tensorrt.RuntimeCacheHandle(path)`. Any number of engines may share one.
//
// A handle is pending at first: it has serialized bytes, or none. The first engine that uses it makes it live
// (ensure_materialized): then it has an nvinfer1::IRuntimeCache for each device, into which TensorRT-RTX puts each
// kernel that it compiles.
//
// Where a path is a directory, it means the file in it for the kind of machine (RuntimeCacheKind.h): that of the device
// of a live cache, or, for a pending handle, of the current CUDA device. A handle that is live on devices of several
// kinds has a file for each. A directory whose path ends in a separator is made by the first save, if its parent is
// there.
//
// A save never makes a file lose what other processes saved there, with two exceptions, each with a warning: bytes that
// the caller gave to a pending handle (deserialize) replace the file, and so do a live cache's kernels where
// TensorRT-RTX can't merge the two. If TensorRT-RTX rejects what replaced this handle's own save, the next save writes
// over it. The second time, the handle logs a warning and no longer overwrites such bytes in that file.
//
// While its process runs, a live cache that saves itself is saved by a background thread (CheckpointThread) after calls
// that may have compiled. Such a checkpoint is a save() that writes no file in place. The environment variable
// TORCHTRT_RUNTIME_CACHE_CHECKPOINTS=0 turns checkpoints off.
//
// A process may fork at any moment. In the child, handles that were live are pending and empty, and autosave() is false
// for all. The parent's IRuntimeCaches are neither used nor destroyed there. for_path() makes new handles.
//
// Errors: torch_tensorrt::Error, in Python a RuntimeError; those of the disk name path, operation and reason
// (RuntimeCacheFile.h). A load or save that throws leaves the handle as it was. Bytes that TensorRT-RTX rejects,
// because they are damaged or come from another version, GPU or driver, cause a warning with their file and size,
// never an error.
//
// Thread safety: any method from any thread, while engines run too. load(), save() and deserialize() of one handle run
// one at a time.
class RuntimeCacheHandle : public torch::CustomClassHolder {
 public:
  // Path, bytes, the files that have them, autosave(), checkpoints(), and whether for_path() made the handle.
  using State = std::tuple<std::string, at::Tensor, std::vector<std::string>, bool, bool, bool>;

  // What the cache did since it was made.
  struct Statistics {
    int64_t bytes_loaded = 0;
    std::string loaded_from = {};    // the file loaded last; empty if none was
    int64_t rejections = 0;          // of bytes, by TensorRT-RTX
    std::string last_rejection = {}; // what was logged then
    int64_t saves = 0;               // that wrote
    int64_t checkpoints = 0;         // that wrote
    int64_t bytes_written = 0;
    int64_t merges = 0;    // with what others had saved
    int64_t conflicts = 0; // writes that found the file changed
    std::chrono::nanoseconds lock_wait{0};
    int64_t size = 0;       // bytes of the contents now
    int64_t size_added = 0; // by how many bytes they grew since they were loaded
    std::optional<std::chrono::system_clock::time_point> last_save = {}; // that wrote
  };

  // Marks a call that may compile kernels into `cache`, which may be null, for as long as the object lives. If the
  // engine specializes its kernels lazily, they may be compiled any time later.
  class Compiling {
   public:
    explicit Compiling(c10::intrusive_ptr<RuntimeCacheHandle> cache, bool specializes_lazily = false);
    ~Compiling();
    Compiling(const Compiling&) = delete;
    Compiling& operator=(const Compiling&) = delete;

   private:
    c10::intrusive_ptr<RuntimeCacheHandle> cache_; // null if it is not checkpointed
  };

  // A cache of its own, whichever others have that path. `path` is taken as written; it is where load() and save() go
  // by default, and without one they need theirs. Touches no disk.
  explicit RuntimeCacheHandle(std::string path);
  ~RuntimeCacheHandle() override;

  // This process's cache for `path`: made on first use, and the same object for everyone who asks while somebody has
  // it. Two paths name one cache if the real paths of their directories and their last components are equal, or if both
  // lead to one directory. A relative path is made absolute. Throws if `path` is empty or the working directory is
  // gone.
  static c10::intrusive_ptr<RuntimeCacheHandle> for_path(const std::string& path);

  // A pending handle. If for_path() made the original, returns for_path()'s cache instead, which takes the bytes only
  // if it is new and there is no file yet.
  static c10::intrusive_ptr<RuntimeCacheHandle> from_state(const State& state);

  State state() const;

  const std::string& path() const noexcept {
    return path_;
  }

  // Whether the cache saves itself: when the last engine detaches, at the end of the process, and by checkpoints. True
  // at first.
  bool autosave() const noexcept {
    return autosave_;
  }
  void set_autosave(bool autosave);

  // Whether a cache that saves itself has checkpoints; true at first.
  bool checkpoints() const noexcept {
    return checkpoints_;
  }
  void set_checkpoints(bool checkpoints);

  // How long to wait for a lock of a file; at first FileLock::kDefaultTimeout. At the end of the process all waits end
  // with CheckpointThread::exit_deadline().
  std::chrono::milliseconds lock_timeout() const noexcept {
    return lock_timeout_;
  }
  void set_lock_timeout(std::chrono::milliseconds timeout) noexcept {
    lock_timeout_ = timeout;
  }

  // An engine begins and ends to use the cache. detach() returns true if no other engine uses it any more: then its
  // caller saves it.
  void attach() noexcept;
  bool detach() noexcept;

  // The bytes as a uint8 tensor [size in bytes] on the CPU, empty if there are none. A pending handle's tensor shares
  // its memory until somebody writes to it, which makes it a copy. A live handle serializes anew, and merges the
  // kernels of its devices; of a directory, those of the first device's kind.
  at::Tensor serialize() const;

  // Takes over a copy of `bytes`, a uint8 tensor [size in bytes] on the CPU; throws for any other tensor. They replace
  // a pending handle's bytes. A live cache adds them to what it has, if that is what TensorRT-RTX does, which does not
  // document it. An empty tensor clears either.
  void deserialize(const at::Tensor& bytes);

  // Merges two serialized caches of the kind of machine whose RuntimeCacheKind::file_name() is `file_name`, and returns
  // the kernels of both: bytes of the size of `theirs` if that has them all. Each is a uint8 tensor [size in bytes] on
  // the CPU. What the handle has does not count and does not change. Throws if the handle is not live on a device of
  // that kind, or if the two can't be merged. Waits for no lock of a file, nor for a load or save.
  at::Tensor merged(const at::Tensor& theirs, const at::Tensor& ours, const std::string& file_name) const;

  // Whether there are bytes, or a live cache.
  bool has_cache() const;

  // Takes over the bytes of the file at `path`, or at path() if that is empty, as deserialize() does, and returns their
  // number. Returns 0 and changes nothing if the file is missing or empty, or if a live cache rejects it. Of a
  // directory, loads the first of files_to_load() with bytes. If the kind of machine is unknown, logs a warning once
  // and returns 0. Before a cache is live, this asks the CUDA driver for the current GPU, which counts as a use of CUDA
  // in a process that forks later; save() does so, too.
  int64_t load(const std::string& path = "");

  // Writes the bytes to `path`, or to path() if that is empty, and returns how many bytes were written: 0 if there are
  // no kernels, or the file has them all.
  //
  // A live cache writes the file's kernels beside its own. Where it can't, because TensorRT-RTX rejects the file's
  // bytes or replaces a cache's contents by what it deserializes, it writes its own, with a warning. If other processes
  // save meanwhile it merges again, at most kMaxMerges times, and then throws. Savers that merge take turns
  // (RuntimeCacheFile::wait_for_turn), so a second merge follows only if a process that has all of the file's kernels
  // saved in between.
  //
  // A pending handle can't merge. Bytes that it loaded from the file, or saved to it, never replace a newer version.
  // Bytes that it was given replace what is there, with a warning.
  int64_t save(const std::string& path = "");

  static constexpr int kMaxMerges = 8;

  // As save(), on the CheckpointThread. Throws if that takes longer than `timeout`; the save may still end well then.
  // Waits for locks take at most half of `timeout`, so that a caller with many caches has time for the others.
  int64_t save_within(std::chrono::nanoseconds timeout);

  Statistics statistics() const;

  // Logs the statistics in one line at level info.
  void log_statistics() const noexcept;

  // By intrusive_ptr, when the last owner has gone: the table of for_path() may refer to the object for longer.
  void release_resources() override;

  // Makes the handle live on `device`, once, with a cache that `config` creates, and returns that cache, the same to
  // everyone. It must outlive the last use of each config that it is attached to, and of each context made with such a
  // config. A handle without bytes loads path() first. If that fails, it logs a warning and starts with an empty cache.
  // A further device starts with what the others have, or, if it is of another kind and the path is a directory, with
  // its kind's file. Throws if TensorRT-RTX can't create a cache; the handle is as it was then.
  //
  // `kind` is the device's, nullopt if it is unknown: then a path that is a directory is neither loaded nor saved.
  std::shared_ptr<nvinfer1::IRuntimeCache> ensure_materialized(
      nvinfer1::IRuntimeConfig* config,
      c10::Device device,
      const std::optional<RuntimeCacheKind>& kind);

 private:
  using Lives = std::vector<std::shared_ptr<LiveRuntimeCache>>; // one per device
  using LivesByFile = std::map<std::string, Lives>;
  struct Place {
    std::string path;
    bool is_directory;
  };
  struct Loaded {
    std::string file;
    std::string own; // the file that is saved to
    at::Tensor bytes;
    FileGeneration generation;
  };
  // What is known of a file.
  struct Store {
    std::optional<FileGeneration> contained; // the generation whose kernels are all in our contents
    std::optional<size_t> digest;            // that of contents of ours which the file has
    uint64_t size = 0;                       // bytes of the file when it last had all of ours
    bool has_been_saved = false;             // by this handle, since others last replaced it
    int replacements_by_others = 0;          // by bytes that TensorRT-RTX rejects
    bool has_warned_of_rejection = false;
    bool has_warned_of_writing_in_place = false;
    bool has_warned_of_size = false;
    // Of checkpoints:
    size_t largest = 0;             // bytes saved by one
    int changes_without_growth = 0; // in a row
  };
  class Waits;
  friend class Handles; // of this process

  void start_over_in_child() noexcept;
  bool is_checkpointed() const;
  void mark_if_live();
  CheckpointThread::Result checkpoint(const std::stop_token& stop) noexcept;
  bool is_saved_at_exit() const noexcept;
  void save_at_exit() noexcept;
  const std::string& path_or_default(const std::string& path) const;
  std::shared_ptr<nvinfer1::IRuntimeCache> live_cache(c10::Device device) const;
  std::shared_ptr<LiveRuntimeCache> live_of_kind(const std::string& file_name) const;
  Place place_of(const std::string& path) const;
  LivesByFile lives_by_file(const Place& place) const;
  int64_t load_locked(const Place& place);
  std::optional<Loaded> read(const Place& place, const std::optional<RuntimeCacheKind>& kind);
  int64_t take_loaded(const Loaded& loaded);
  void note_loaded(const Loaded& loaded);
  std::string file_of_pending(const Place& place) const;
  bool has_bytes_of_other_kinds(const std::string& file) const;
  std::optional<RuntimeCacheKind> current_kind_or_warn(const std::string& path);
  void warn_of_unknown_kind(const std::string& path, const std::string& reason);
  int64_t save_until(const std::string& path, CheckpointThread::Clock::time_point deadline);
  std::optional<int64_t> save_locked(const Place& place, LockWaits& waits, bool is_checkpoint);
  std::optional<int64_t>
  save_file(const Place& place, const std::string& file, const Lives& lives, LockWaits& waits, bool is_checkpoint);
  at::Tensor take(at::Tensor bytes, const std::vector<std::string>& files);
  bool feed(LiveRuntimeCache& live, RuntimeCacheFile::View bytes, const std::string& source);
  bool feed_all(const Lives& lives, const Loaded& loaded);
  void go_live(const Place& place, const std::shared_ptr<LiveRuntimeCache>& live);
  void add_live(const Place& place, const std::shared_ptr<LiveRuntimeCache>& live, const Lives& siblings);
  bool start_with(LiveRuntimeCache& live, const at::Tensor& bytes);
  std::optional<Loaded> read_or_warn(const Place& place, const std::optional<RuntimeCacheKind>& kind);
  void forget_stores();
  bool may_replace_rejected(const std::string& file, size_t size);
  void warn_of_size(const std::string& file, int64_t size);
  void report_rejection(size_t size, const std::string& source, const char* consequence);
  std::string source_locked() const;
  at::Tensor serialize_locked() const;
  at::Tensor bytes_locked() const;
  at::Tensor merged_bytes(const Lives& lives) const;
  std::optional<int64_t> write(
      const RuntimeCacheFile& file,
      const std::string& path,
      LiveRuntimeCache* live,
      const at::Tensor& ours,
      bool is_checkpoint);
  void count(int64_t Statistics::* event);

  const std::string path_;
  const at::Tensor nothing_;
  std::atomic<bool> autosave_{true};
  std::atomic<bool> checkpoints_{true};
  std::atomic<bool> has_lazy_engines_{false};
  mutable std::atomic<bool> was_directory_{false}; // path_, at some use
  std::atomic<std::chrono::milliseconds> lock_timeout_{util::FileLock::kDefaultTimeout};
  std::atomic<int> engines_{0};

  // Held by whatever changes the contents, and for disk work; taken before state_mutex_.
  std::mutex disk_mutex_;
  // Guarded by it:
  std::set<std::string> reported_causes_; // of failures of checkpoints since the last success
  bool has_warned_of_unknown_kind_ = false;

  mutable std::mutex state_mutex_;           // never held for disk work; guards the rest
  std::variant<at::Tensor, Lives> contents_; // Pending, and never written to, or Live
  std::map<std::string, Store> stores_;      // by the path of the file
  Statistics statistics_;                    // but for the sizes
  int64_t size_at_load_ = 0;                 // bytes, of a live cache
};

} // namespace torch_tensorrt::core::runtime
