#pragma once

#include <algorithm>
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

// The kernels of a runtime cache, and the files that they are loaded from and saved to. In Python it is
// `torch.classes.tensorrt.RuntimeCacheHandle(path)`. Any number of engines may share one.
//
// A handle is pending at first: it has serialized bytes, or none. The first engine that uses it makes it live
// (ensure_materialized). A live handle has one nvinfer1::IRuntimeCache per device, into which TensorRT-RTX puts each
// kernel that it compiles.
//
// If a path is a directory, it means the file in it for one kind of machine (RuntimeCacheKind.h): the kind of a live
// cache's device or, for a pending handle, of the current CUDA device. A handle that is live on devices of several
// kinds has one file per kind. The first save creates a directory whose path ends in a separator, if its parent exists.
//
// A save never removes kernels that other processes saved to the file, with two exceptions, each logged as a warning:
// bytes that the caller gave to a pending handle (deserialize) replace the file, and so do the kernels of a live cache
// if TensorRT-RTX can't merge the two. If another process replaces this handle's save with bytes that TensorRT-RTX
// rejects, the next save overwrites them. If that happens again, the handle logs a warning and no longer overwrites
// such bytes in that file.
//
// While its process runs, a live cache that saves itself is saved by a background thread (CheckpointThread) after calls
// that may have compiled kernels. Such a checkpoint is a save() that writes no file in place. The environment variable
// TORCHTRT_RUNTIME_CACHE_CHECKPOINTS=0 turns checkpoints off.
//
// A process may fork at any moment. In the child, handles that were live are pending and empty, and autosave() is false
// for all handles. The parent's IRuntimeCaches are neither used nor destroyed there. for_path() makes new handles.
//
// Errors: throws torch_tensorrt::Error, in Python a RuntimeError. Errors of the disk name the path, the operation and
// the reason (RuntimeCacheFile.h). A load or save that throws leaves the handle unchanged. TensorRT-RTX rejects bytes
// that are damaged or come from another version, GPU or driver. That causes a warning with their file and size, never
// an error.
//
// Thread safety: any method may be called from any thread, also while engines run. load(), save() and deserialize() of
// one handle run one at a time.
class RuntimeCacheHandle : public torch::CustomClassHolder {
 public:
  // Path, bytes, the files that contain them, autosave(), checkpoints(), and whether for_path() made the handle.
  using State = std::tuple<std::string, at::Tensor, std::vector<std::string>, bool, bool, bool>;

  // What the cache has done since it was made.
  struct Statistics {
    int64_t bytes_loaded = 0;
    std::string loaded_from = {};    // the file loaded last; empty if none was
    int64_t rejections = 0;          // how often TensorRT-RTX rejected bytes
    std::string last_rejection = {}; // the message logged for the last one
    int64_t saves = 0;               // that wrote
    int64_t checkpoints = 0;         // that wrote
    int64_t bytes_written = 0;
    int64_t merges = 0;    // with kernels that others had saved
    int64_t conflicts = 0; // writes that found the file changed
    std::chrono::nanoseconds lock_wait{0};
    int64_t size = 0;       // bytes of the contents now
    int64_t size_added = 0; // bytes by which the contents have grown since they were loaded
    std::optional<std::chrono::system_clock::time_point> last_save = {}; // or checkpoint, that wrote
  };

  // Marks a call that may compile kernels into `cache`, which may be null, for as long as the object lives. If the
  // engine specializes its kernels lazily, they may be compiled at any later time.
  class Compiling {
   public:
    explicit Compiling(c10::intrusive_ptr<RuntimeCacheHandle> cache, bool specializes_lazily = false);
    ~Compiling();
    Compiling(const Compiling&) = delete;
    Compiling& operator=(const Compiling&) = delete;

   private:
    c10::intrusive_ptr<RuntimeCacheHandle> cache_; // null if it has no checkpoints
  };

  // Makes a separate cache, even if others have the same path. `path` is taken as written. It is the default of load()
  // and save(), which need an argument if it is empty. Does not touch the disk.
  explicit RuntimeCacheHandle(std::string path);
  ~RuntimeCacheHandle() override;

  // Returns this process's cache for `path`. It is made on first use, and all callers get the same object while anyone
  // has it. Two paths name the same cache if the real paths of their directories and their last components are equal,
  // or if both lead to the same directory. A relative path is made absolute. Throws if `path` is empty or the working
  // directory is gone.
  static c10::intrusive_ptr<RuntimeCacheHandle> for_path(const std::string& path);

  // Returns a pending handle with this state. If for_path() made the original, returns for_path()'s cache instead,
  // which takes the bytes only if it is new and its file is missing or empty.
  static c10::intrusive_ptr<RuntimeCacheHandle> from_state(const State& state);

  State state() const;

  const std::string& path() const noexcept {
    return path_;
  }

  // Returns true if the cache saves itself: when the last engine detaches, at the end of the process, and by
  // checkpoints. True by default.
  bool autosave() const noexcept {
    return autosave_;
  }
  void set_autosave(bool autosave);

  // Returns true if a cache that saves itself has checkpoints. True by default.
  bool checkpoints() const noexcept {
    return checkpoints_;
  }
  void set_checkpoints(bool checkpoints);

  // Returns how long to wait for the lock of a file, by default FileLock::kDefaultTimeout. At the end of the process,
  // all waits end at CheckpointThread::exit_deadline().
  std::chrono::milliseconds lock_timeout() const noexcept {
    return lock_timeout_;
  }
  void set_lock_timeout(std::chrono::milliseconds timeout) noexcept {
    // Beyond these, a deadline could overflow.
    lock_timeout_ = std::clamp<std::chrono::milliseconds>(timeout, std::chrono::milliseconds(0), std::chrono::years(1));
  }

  // Must be called when an engine starts and when it stops using the cache. detach() returns true if no other engine
  // uses the cache. Its caller then saves the cache.
  void attach() noexcept;
  bool detach() noexcept;

  // Returns the bytes as a uint8 tensor [size in bytes] on the CPU, empty if there are none. A pending handle's tensor
  // shares the handle's memory until somebody writes to the tensor, which copies it. A live handle serializes its
  // caches each time, and merges the kernels of its devices. If the path is a directory, it merges those of the first
  // device's kind.
  at::Tensor serialize() const;

  // Takes a copy of `bytes`, a uint8 tensor [size in bytes] on the CPU. Throws for any other tensor. The copy replaces
  // a pending handle's bytes. A live cache deserializes it, which adds to the contents or replaces them: TensorRT-RTX
  // does not document which. An empty tensor clears a pending or a live handle.
  void deserialize(const at::Tensor& bytes);

  // Merges two serialized caches of the kind of machine whose RuntimeCacheKind::file_name() is `file_name`, and returns
  // the kernels of both. If `theirs` has all of them, the result has the size of `theirs`. Each tensor is uint8 [size
  // in bytes] on the CPU. The contents of the handle are neither used nor changed. Throws if the handle has no live
  // cache of this kind, or if the two caches can't be merged. Never waits for a file lock, a load or a save.
  at::Tensor merged(const at::Tensor& theirs, const at::Tensor& ours, const std::string& file_name) const;

  // Returns true if there are bytes or a live cache.
  bool has_cache() const;

  // Takes the bytes of the file at `path`, or at path() if that is empty, like deserialize(), and returns their number.
  // Returns 0 and changes nothing if the file is missing or empty, or if a live cache rejects it. From a directory,
  // loads the first non-empty file of files_to_load(). If the kind of machine is unknown, logs a warning once and
  // returns 0. As long as the handle is pending, load() and save() with a directory ask the CUDA driver for the current
  // GPU. That counts as a use of CUDA if the process forks later.
  int64_t load(const std::string& path = "");

  // Writes the bytes to `path`, or to path() if that is empty, and returns the number of bytes written. Returns 0 if
  // there are no kernels or the file already has them all.
  //
  // A live cache writes the file's kernels together with its own. If it can't, because TensorRT-RTX rejects the file's
  // bytes or replaces a cache's contents when it deserializes, it writes only its own and logs a warning. If other
  // processes save meanwhile, it merges again, at most kMaxMerges times, and then throws. Savers that merge take turns
  // (RuntimeCacheFile::wait_for_turn), so a second merge is needed only if a process that already has all of the file's
  // kernels saves in between.
  //
  // A pending handle can't merge. Bytes that it loaded from the file, or saved to it, never replace a newer version.
  // Bytes that the caller gave it replace the file, with a warning.
  int64_t save(const std::string& path = "");

  static constexpr int kMaxMerges = 8;

  // Like save(), but runs on the CheckpointThread. Throws if that takes longer than `timeout`; the save may still
  // succeed later. Waits for locks take at most half of `timeout`, so that a caller with many caches has time for the
  // others.
  int64_t save_within(std::chrono::nanoseconds timeout);

  Statistics statistics() const;

  // Logs the statistics in one line at level info.
  void log_statistics() const noexcept;

  // Called by intrusive_ptr when the last owner is gone. The object may live longer, because the table of for_path()
  // refers to it.
  void release_resources() override;

  // Makes the handle live on `device`, with a cache that `config` creates, unless it is live there already. Returns
  // that cache, which is the same for all callers. The cache must outlive the last use of each config that it is
  // attached to, and of each context made with such a config. A handle without bytes loads path() first. If that fails,
  // it logs a warning and starts with an empty cache. A further device starts with the kernels of the other devices or,
  // if it is of another kind and the path is a directory, with the file of its own kind. If TensorRT-RTX can't create a
  // cache, throws and leaves the handle unchanged.
  //
  // `kind` is the kind of the device, or nullopt if it is unknown. Without a kind, a path that is a directory is
  // neither loaded nor saved.
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
  // What is known about a file.
  struct Store {
    std::optional<FileGeneration> contained; // the generation whose kernels are all in our contents
    std::optional<size_t> digest;            // of those contents of ours that the file has
    uint64_t size = 0;                       // bytes of the file when it last had all of ours
    bool has_been_saved = false;             // by this handle, since others last replaced it
    int replacements_by_others = 0;          // with bytes that TensorRT-RTX rejects
    bool has_warned_of_rejection = false;
    bool has_warned_of_writing_in_place = false;
    bool has_warned_of_size = false;
    // Found by the last write, or by a checkpoint, which writes a whole temporary file to find out.
    bool is_only_in_place = false;
    // For checkpoints:
    size_t largest = 0;             // most bytes saved by one
    int changes_without_growth = 0; // in a row
  };
  class Waits;
  friend class Handles;

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
  std::unique_lock<std::mutex>
  lock_disk(const char* operation, const std::string& path, CheckpointThread::Clock::time_point deadline);
  void report_rejection(size_t size, const std::string& source, const char* consequence);
  void count_rejection(const std::string& message, bool is_news);
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
  mutable std::atomic<bool> was_directory_{false}; // path_ was one at an earlier use
  std::atomic<std::chrono::milliseconds> lock_timeout_{util::FileLock::kDefaultTimeout};
  std::atomic<int> engines_{0};

  // Held by whatever changes the contents, and for disk work; taken before state_mutex_.
  std::mutex disk_mutex_;
  // Guarded by it:
  std::set<std::string> reported_causes_; // of failed checkpoints since the last success
  bool has_warned_of_unknown_kind_ = false;

  mutable std::mutex state_mutex_;           // never held for disk work; guards the rest
  std::variant<at::Tensor, Lives> contents_; // Pending, and never written to, or Live
  std::map<std::string, Store> stores_;      // by the path of the file
  Statistics statistics_;                    // without the sizes
  int64_t size_at_load_ = 0;                 // bytes, of a live cache
};

} // namespace torch_tensorrt::core::runtime
