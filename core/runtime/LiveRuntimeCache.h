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

// An nvinfer1::IRuntimeCache on one device, and a second one in which serialized caches are merged. Makes the device
// current, with a CUDA context, where TensorRT-RTX needs that. Byte tensors are uint8 [size in bytes] on the CPU.
//
// Thread safety: merge() may be called from any thread, the rest from one thread at a time (external synchronization).
// Engines may compile into the cache meanwhile.
class LiveRuntimeCache {
 public:
  using View = RuntimeCacheFile::View;

  struct Merged {
    at::Tensor bytes = {};                // the kernels of both; undefined if they can't be merged
    bool adds_nothing = false;            // the bytes on disk have all of the kernels
    const char* reason_against = "";      // why they can't be merged
    bool is_disk_rejected = false;        // because TensorRT-RTX rejects the bytes on disk
    std::vector<std::string> offers = {}; // the offers whose kernels are in `bytes`
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

  // The kind of the device; nullopt if it is unknown.
  const std::optional<RuntimeCacheKind>& kind() const {
    return kind_;
  }

  const std::shared_ptr<nvinfer1::IRuntimeCache>& cache() const {
    return cache_;
  }

  // Returns the serialized cache in the memory that TensorRT-RTX allocated. Returns an undefined tensor if it fails.
  at::Tensor serialize() const;

  // Returns false if TensorRT-RTX rejects the bytes.
  bool deserialize(View bytes);

  // Removes all kernels. Returns false if TensorRT-RTX fails.
  bool reset();

  // Returns true if a cache without kernels serializes to these bytes. Returns false if that is unknown.
  bool is_without_kernels(View bytes) const;

  // Merges two serialized caches and, if that succeeds, the offers of other savers (RuntimeCacheFile::wait_for_turn).
  Merged merge(View disk, View ours, const std::vector<std::string>& offers = {});

 private:
  Merged merge_two(View disk, View ours);
  void merge_offers(const std::vector<std::string>& offers, size_t disk_size, Merged& merged);

  const c10::Device device_;
  const std::optional<RuntimeCacheKind> kind_;
  std::shared_ptr<nvinfer1::IRuntimeCache> cache_;
  // Created early, because a merge may follow the last config that could create a cache. Empty between merges. Null if
  // it could not be created.
  std::shared_ptr<nvinfer1::IRuntimeCache> scratch_;
  std::mutex scratch_mutex_;
  at::Tensor empty_; // a serialized cache without kernels; undefined if that is unknown
};

} // namespace torch_tensorrt::core::runtime
