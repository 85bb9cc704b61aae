#include "core/runtime/LiveRuntimeCache.h"

#include <algorithm>
#include <utility>

#include <ATen/ops/from_blob.h>
#include <ATen/record_function.h>
#include <NvInferRuntime.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/util/prelude.h"

namespace torch_tensorrt::core::runtime {
namespace {

using nvinfer1::IRuntimeCache;
using View = RuntimeCacheFile::View;

View view(const at::Tensor& bytes) {
  return {static_cast<const std::byte*>(bytes.const_data_ptr()), bytes.nbytes()};
}

bool equal(View a, View b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

// Makes `device` current, with a CUDA context, for as long as the object lives. TensorRT-RTX checks the bytes that it
// serializes or deserializes against the context of the calling thread.
class OnDevice {
 public:
  explicit OnDevice(c10::Device device) {
    if (device.is_cpu()) {
      return;
    }
    guard_.reset_device(device);
    try {
      // A new thread has no context until it calls CUDA. The guard does not call CUDA if the device is already the
      // current one.
      const c10::impl::VirtualGuardImpl backend(device.type());
      c10::Event(device.type()).record(backend.getStreamFromGlobalPool(device));
    } catch (const c10::Error& error) {
      LOG_DEBUG("Can't make a CUDA context current: " << error.what_without_backtrace());
    }
  }

 private:
  c10::OptionalDeviceGuard guard_;
};

bool deserialize_into(IRuntimeCache& cache, View bytes) {
  return cache.deserialize(bytes.data(), bytes.size());
}

// Returns an undefined tensor if TensorRT-RTX fails. The tensor shares the memory of its result.
at::Tensor serialize_from(const IRuntimeCache& cache) {
  std::shared_ptr<nvinfer1::IHostMemory> bytes = util::make_trt(cache.serialize());
  if (bytes == nullptr) {
    return {};
  }
  void* const memory = bytes->data();
  const auto size = static_cast<int64_t>(bytes->size());
  return at::from_blob(memory, {size}, [bytes = std::move(bytes)](void*) {}, at::kByte);
}

} // namespace

LiveRuntimeCache::LiveRuntimeCache(
    nvinfer1::IRuntimeConfig& config,
    c10::Device device,
    std::optional<RuntimeCacheKind> kind,
    const std::string& path)
    : device_(device), kind_(std::move(kind)) {
  const OnDevice on_device(device);
  cache_ = util::make_trt(config.createRuntimeCache());
  if (cache_ == nullptr) {
    TORCHTRT_THROW_ERROR("TensorRT-RTX could not create a runtime cache for '" << path << "'");
  }
  scratch_ = util::make_trt(config.createRuntimeCache());
  if (scratch_ != nullptr) {
    empty_ = serialize_from(*scratch_);
  }
}

at::Tensor LiveRuntimeCache::serialize() const {
  const OnDevice on_device(device_);
  return serialize_from(*cache_);
}

bool LiveRuntimeCache::deserialize(View bytes) {
  const OnDevice on_device(device_);
  return deserialize_into(*cache_, bytes);
}

bool LiveRuntimeCache::reset() {
  return cache_->reset();
}

bool LiveRuntimeCache::is_without_kernels(View bytes) const {
  return empty_.defined() && equal(view(empty_), bytes);
}

LiveRuntimeCache::Merged LiveRuntimeCache::merge(View disk, View ours, const std::vector<std::string>& offers) {
  if (scratch_ == nullptr) {
    return {.reason_against = "TensorRT-RTX could not create a cache to merge them in"};
  }
  RECORD_FUNCTION("RuntimeCache:merge", c10::ArrayRef<const c10::IValue>{});
  const std::lock_guard lock(scratch_mutex_);
  const OnDevice on_device(device_);
  Merged merged = merge_two(disk, ours);
  if (merged.bytes.defined()) {
    merge_offers(offers, disk.size(), merged);
  }
  scratch_->reset(); // frees the memory
  return merged;
}

// TensorRT-RTX does not document whether deserialize() adds to the contents of a cache or replaces them. It adds if
// both orders give the same kernels; otherwise one of the two was lost. Serialized caches of one kind are compared by
// size, so that nothing is assumed about the order of the kernels in them. Only a union of the two can be larger than
// both.
LiveRuntimeCache::Merged LiveRuntimeCache::merge_two(View disk, View ours) {
  const Merged kFailed{.reason_against = "TensorRT-RTX failed to deserialize or serialize them"};
  if (!scratch_->reset()) {
    return kFailed;
  }
  if (!deserialize_into(*scratch_, disk)) {
    return {.reason_against = "TensorRT-RTX rejected them", .is_disk_rejected = true};
  }
  if (!deserialize_into(*scratch_, ours)) {
    return kFailed;
  }
  const at::Tensor disk_first = serialize_from(*scratch_);
  if (disk_first.defined() && disk_first.nbytes() > std::max(disk.size(), ours.size())) {
    LOG_INFO("TensorRT-RTX's deserialize adds to a runtime cache");
    return {.bytes = disk_first};
  }
  if (!disk_first.defined() || !scratch_->reset() || !deserialize_into(*scratch_, ours) ||
      !deserialize_into(*scratch_, disk)) {
    return kFailed;
  }
  const at::Tensor ours_first = serialize_from(*scratch_);
  if (!ours_first.defined()) {
    return kFailed;
  }
  const bool is_same_size = ours_first.nbytes() == disk_first.nbytes();
  if (is_same_size && (disk.size() != ours.size() || equal(view(ours_first), view(disk_first)))) {
    LOG_INFO("TensorRT-RTX's deserialize adds to a runtime cache, and one of the two had all kernels of the other");
    return {.bytes = disk_first, .adds_nothing = disk_first.nbytes() == disk.size()};
  }
  LOG_INFO("TensorRT-RTX's deserialize replaces what a runtime cache has");
  return {.reason_against = "TensorRT-RTX's deserialize replaces what a cache has"};
}

// Adds the offers of other savers. The scratch cache has the two caches merged so far.
void LiveRuntimeCache::merge_offers(const std::vector<std::string>& offers, size_t disk_size, Merged& merged) {
  for (const std::string& offer : offers) {
    const auto contents = RuntimeCacheFile::read_offer(offer);
    if (contents && deserialize_into(*scratch_, contents->view())) {
      merged.offers.push_back(offer);
    }
  }
  const at::Tensor all = merged.offers.empty() ? at::Tensor() : serialize_from(*scratch_);
  if (all.defined() && all.nbytes() >= merged.bytes.nbytes()) {
    merged.bytes = all;
    merged.adds_nothing = all.nbytes() == disk_size;
  } else {
    merged.offers.clear();
  }
}

} // namespace torch_tensorrt::core::runtime
