#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include "core/runtime/RuntimeCacheFile.h"

namespace torch_tensorrt::core::runtime {

// The serialized kernels of a runtime cache, and the file that they come from and go to; in Python
// `torch.classes.tensorrt.RuntimeCacheHandle(path)`.
//
// Merging two caches needs a device, so bytes that this handle has in common with a file never overwrite what others
// saved there since: nothing of ours would be added. Bytes given by deserialize() do, which is what the caller asked
// for.
//
// Errors: torch_tensorrt::Error, in Python a RuntimeError; those of the disk name path, operation and reason
// (RuntimeCacheFile.h). A load or save that throws leaves the handle as it was.
//
// Thread safety: any method from any thread; the disk work of one handle is done one call at a time.
class RuntimeCacheHandle : public torch::CustomClassHolder {
 public:
  // Path, bytes, and the paths of the files that the bytes came from or went to.
  using State = std::tuple<std::string, at::Tensor, std::vector<std::string>>;

  // `path` is where load() and save() go by default; without one they need theirs. Touches no disk.
  explicit RuntimeCacheHandle(
      std::string path,
      std::chrono::milliseconds lock_timeout = util::FileLock::kDefaultTimeout);

  explicit RuntimeCacheHandle(State state);

  const std::string& path() const noexcept {
    return path_;
  }

  // The bytes as a uint8 tensor [size in bytes] on the CPU, empty if there are none. It shares the handle's memory
  // until somebody writes to it, which makes it a copy.
  at::Tensor serialize() const;

  // Replaces the bytes by a copy of `bytes`, a uint8 tensor [size in bytes] on the CPU; an empty one clears them.
  // Throws for any other tensor.
  void deserialize(const at::Tensor& bytes);

  // Whether there is anything to serialize or to save.
  bool has_cache() const;

  // Replaces the bytes by those of the file at `path`, or at path() if that is empty, and answers their number. If
  // there is no such file, or an empty one, answers 0 and leaves the bytes as they are.
  int64_t load(const std::string& path = "");

  // Writes the bytes to `path`, or to path() if that is empty, and answers their number; 0 if nothing was to be
  // written: there are no bytes, or the file has them, or it had them and others have saved theirs since. Replacing a
  // file that this handle has not read is a warning.
  int64_t save(const std::string& path = "");

  State state() const;

 private:
  const std::string& path_or_default(const std::string& path) const;
  RuntimeCacheFile& file(const std::string& path);

  const std::string path_;
  const std::chrono::milliseconds lock_timeout_;

  std::mutex disk_mutex_;                         // taken before bytes_mutex_
  std::map<std::string, RuntimeCacheFile> files_; // by path; guarded by disk_mutex_

  mutable std::mutex bytes_mutex_;  // never held for disk work
  at::Tensor bytes_;                // never written to; guarded by bytes_mutex_
  std::set<std::string> stored_at_; // the files that have bytes_, or had before others saved; guarded by bytes_mutex_
};

} // namespace torch_tensorrt::core::runtime
