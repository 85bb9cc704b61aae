#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include "core/runtime/RuntimeCacheFile.h"
#include "core/runtime/RuntimeCacheKind.h"

namespace nvinfer1 {
class IRuntimeCache;
class IRuntimeConfig;
} // namespace nvinfer1

namespace torch_tensorrt::core::runtime {

// An nvinfer1::IRuntimeCache on one device, and a second one to merge serialized caches in. Makes the device current,
// with a CUDA context, where TensorRT-RTX needs that. Byte tensors are uint8 [size in bytes] on the CPU.
//
// Thread safety: merge() from any thread; the rest one thread at a time (external synchronization), while engines
// compile into the cache.
class LiveRuntimeCache {
 public:
  using View = RuntimeCacheFile::View;

  struct Merged {
    at::Tensor bytes = {};                // the kernels of both; undefined if they can't be had
    bool adds_nothing = false;            // those on disk are all of them
    const char* reason_against = "";      // why they can't be had
    bool is_disk_rejected = false;        // that is the reason
    std::vector<std::string> offers = {}; // those that are in `bytes` too
  };

  // Throws torch_tensorrt::Error if TensorRT-RTX can't create a cache. `path` is for the message.
  LiveRuntimeCache(
      nvinfer1::IRuntimeConfig& config,
      c10::Device device,
      std::optional<RuntimeCacheKind> kind,
      const std::string& path);

  c10::Device device() const {
    return device_;
  }

  // That of the device; nullopt if it is unknown.
  const std::optional<RuntimeCacheKind>& kind() const {
    return kind_;
  }

  const std::shared_ptr<nvinfer1::IRuntimeCache>& cache() const {
    return cache_;
  }

  // The tensor shares the memory of TensorRT-RTX's result. Undefined if TensorRT-RTX fails.
  at::Tensor serialize() const;

  // Returns false if TensorRT-RTX rejects the bytes.
  bool deserialize(View bytes);

  // Removes all kernels. Returns false if TensorRT-RTX fails.
  bool reset();

  // Whether a cache without kernels serializes to these bytes. False if that is not known.
  bool is_without_kernels(View bytes) const;

  // Merges two serialized caches and, where that works, the offers of other savers
  // (RuntimeCacheFile::wait_for_turn).
  Merged merge(View disk, View ours, const std::vector<std::string>& offers = {});

 private:
  Merged merge_two(View disk, View ours);
  void merge_offers(const std::vector<std::string>& offers, size_t disk_size, Merged& merged);

  const c10::Device device_;
  const std::optional<RuntimeCacheKind> kind_;
  std::shared_ptr<nvinfer1::IRuntimeCache> cache_;
  // Empty between merges, which may come after the last config that could create one. Null if it could not be created.
  std::shared_ptr<nvinfer1::IRuntimeCache> scratch_;
  std::mutex scratch_mutex_;
  at::Tensor empty_; // how a cache without kernels serializes; undefined if that is not known
};

} // namespace torch_tensorrt::core::runtime
