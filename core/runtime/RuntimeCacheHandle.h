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
#include <string>
#include <tuple>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <torch/custom_class.h>

#include "core/runtime/RuntimeCacheFile.h"

namespace nvinfer1 {
class IHostMemory;
class IRuntimeCache;
class IRuntimeConfig;
} // namespace nvinfer1

namespace torch_tensorrt::core::runtime {

// The kernels of a runtime cache, and the file that they come from and go to; in Python
// `torch.classes.tensorrt.RuntimeCacheHandle(path)`. Any number of engines may share one.
//
// Pending at first: it has serialized bytes, or none. The first engine that uses it makes it live
// (ensure_materialized): then it has an nvinfer1::IRuntimeCache, into which TensorRT-RTX puts each kernel that it
// compiles.
//
// Nothing here makes a file lose what other processes saved there, but for bytes given to a pending handle by
// deserialize(), which is what the caller asked for, and where TensorRT-RTX can't merge, which is a warning (see save).
//
// Errors: torch_tensorrt::Error, in Python a RuntimeError; those of the disk name path, operation and reason
// (RuntimeCacheFile.h). A load or save that throws leaves the handle as it was. Bytes that TensorRT-RTX rejects,
// because they are damaged or come of another version, GPU or driver, are a warning with their file and size, never an
// error.
//
// Thread safety: any method from any thread, while engines run too; the disk work of one handle is done one call at a
// time.
class RuntimeCacheHandle : public torch::CustomClassHolder {
 public:
  // Path, bytes, the paths of the files that the bytes came from or went to, and autosave().
  using State = std::tuple<std::string, at::Tensor, std::vector<std::string>, bool>;

  // `path` is where load() and save() go by default; without one they need theirs. Touches no disk.
  explicit RuntimeCacheHandle(
      std::string path,
      std::chrono::milliseconds lock_timeout = util::FileLock::kDefaultTimeout);

  explicit RuntimeCacheHandle(State state);

  const std::string& path() const noexcept {
    return path_;
  }

  // Whether engines that use this cache save it on their own when they end or get another one; true at first.
  bool autosave() const noexcept {
    return autosave_;
  }
  void set_autosave(bool autosave) noexcept {
    autosave_ = autosave;
  }

  // The bytes as a uint8 tensor [size in bytes] on the CPU, empty if there are none. A pending handle's shares its
  // memory until somebody writes to it, which makes it a copy; a live one's is serialized anew.
  at::Tensor serialize() const;

  // Takes over a copy of `bytes`, a uint8 tensor [size in bytes] on the CPU; throws for any other tensor. They replace
  // a pending handle's bytes. A live cache adds them to what it has, if that is what TensorRT-RTX does, which does not
  // document it. An empty tensor clears either.
  void deserialize(const at::Tensor& bytes);

  // Whether there are bytes, or a live cache.
  bool has_cache() const;

  // Takes over the bytes of the file at `path`, or at path() if that is empty, as deserialize() does, and answers their
  // number. 0, and all stays as it is, if there is no such file, or an empty one, or the live cache rejects it.
  int64_t load(const std::string& path = "");

  // Writes the bytes to `path`, or to path() if that is empty, and answers their number; 0 if nothing was to be
  // written: no kernels, or the file has them.
  //
  // A live cache writes what the file has beside its own kernels. Where that can't be found out, because TensorRT-RTX
  // rejects the file's bytes or replaces a cache's contents by what it deserializes, its own are written and a warning
  // tells of the others.
  //
  // A pending handle can't merge. If its bytes came from that file, or went there, and others have saved theirs since,
  // it writes nothing, since the file has had them. Else they replace what is there, with a warning if it had not read
  // that.
  int64_t save(const std::string& path = "");

  State state() const;

  // Makes the handle live, once; `config` creates the cache. A handle without bytes loads path() first; that it can't
  // is a warning and a cold cache. Returns the cache, the same to everyone: it must outlive the last use of each config
  // that it is attached to, and of each context made with such a config. Requires the current CUDA device to be that of
  // `config`'s engine. Throws if TensorRT-RTX can't create a cache; the handle stays pending then.
  std::shared_ptr<nvinfer1::IRuntimeCache> ensure_materialized(nvinfer1::IRuntimeConfig* config);

 private:
  struct Live;

  const std::string& path_or_default(const std::string& path) const;
  RuntimeCacheFile& file(const std::string& path);
  std::shared_ptr<nvinfer1::IHostMemory> serialize_live() const;
  bool feed(RuntimeCacheFile::View bytes, const std::string& source);
  void report_rejection(size_t size, const std::string& source, const char* consequence);
  int64_t save_pending(const std::string& to, const at::Tensor& bytes, bool is_stored_there);
  int64_t save_live(const std::string& to, const std::shared_ptr<nvinfer1::IHostMemory>& ours);

  const std::string path_;
  const std::chrono::milliseconds lock_timeout_;
  std::atomic<bool> autosave_{true};

  std::mutex materialize_mutex_; // taken before the others

  std::mutex disk_mutex_;                         // taken before state_mutex_
  std::map<std::string, RuntimeCacheFile> files_; // by path; guarded by disk_mutex_

  mutable std::mutex state_mutex_; // never held for disk work; guards the rest
  at::Tensor bytes_;               // never written to; empty once live
  // The files that the contents came from or went to; what they have now may be newer.
  std::set<std::string> stored_at_;
  std::shared_ptr<Live> live_;         // never changes once set
  std::set<std::string> rejected_at_;  // the files about which there has been a warning
  bool generations_are_stale_ = false; // files_ know generations whose kernels may not be here
  // Hash of the contents when they were loaded from a file, or a live cache was saved to it, by path.
  std::map<std::string, size_t> saved_contents_;
};

} // namespace torch_tensorrt::core::runtime
