#include "core/runtime/RuntimeCacheHandle.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string_view>
#include <system_error>
#include <utility>

#include <ATen/Context.h>
#include <ATen/ops/_lazy_clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <NvInferRuntime.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/util/prelude.h"

namespace torch_tensorrt::core::runtime {

using nvinfer1::IHostMemory;
using nvinfer1::IRuntimeCache;
using View = RuntimeCacheFile::View;

struct RuntimeCacheHandle::Live {
  std::shared_ptr<IRuntimeCache> cache;
  // Empty, for merges, which may come after the last config that could create one. Null if it could not be created.
  // Used under disk_mutex_ alone.
  std::shared_ptr<IRuntimeCache> scratch;
  std::shared_ptr<IHostMemory> empty; // how a cache without kernels serializes; null if that is not known
  std::optional<c10::Device> device;  // none without CUDA
};

namespace {

at::Tensor allocate(int64_t size) {
  return at::empty({size}, at::TensorOptions(at::kByte).device(at::kCPU));
}

std::byte* data(const at::Tensor& bytes) {
  return static_cast<std::byte*>(bytes.mutable_data_ptr());
}

View view(const at::Tensor& bytes) {
  return {static_cast<const std::byte*>(bytes.const_data_ptr()), bytes.nbytes()};
}

View view(const IHostMemory& bytes) {
  return {static_cast<const std::byte*>(bytes.data()), bytes.size()};
}

bool equal(View a, View b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

size_t hash(View bytes) {
  return std::hash<std::string_view>()({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

at::Tensor copy(const at::Tensor& bytes) {
  TORCHTRT_CHECK(bytes.defined(), "The bytes of a runtime cache are an undefined tensor");
  const bool is_plain = bytes.layout() == at::kStrided && bytes.is_cpu();
  TORCHTRT_CHECK(
      is_plain && bytes.scalar_type() == at::kByte && bytes.dim() == 1,
      "The bytes of a runtime cache are a dense one-dimensional uint8 tensor on the CPU, got one of "
          << bytes.scalar_type() << " and shape " << bytes.sizes() << " on " << bytes.device() << ", "
          << bytes.layout());
  const at::Tensor contiguous = bytes.contiguous();
  const at::Tensor copied = allocate(contiguous.numel());
  if (!view(contiguous).empty()) {
    std::memcpy(data(copied), contiguous.const_data_ptr(), contiguous.nbytes());
  }
  return copied;
}

at::Tensor tensor_of(std::shared_ptr<IHostMemory> bytes) {
  void* const memory = bytes->data();
  const auto size = static_cast<int64_t>(bytes->size());
  return at::from_blob(memory, {size}, [bytes = std::move(bytes)](void*) {}, at::kByte);
}

std::optional<c10::Device> current_cuda_device() {
  if (!at::hasCUDA()) {
    return std::nullopt;
  }
  return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getDevice();
}

// While it lives, the device of a live cache is the current one, with a CUDA context. TensorRT-RTX compares the bytes
// that it serializes or deserializes to the context of the calling thread.
class OnDevice {
 public:
  explicit OnDevice(std::optional<c10::Device> device) : guard_(device) {
    if (!device.has_value()) {
      return;
    }
    try {
      // A new thread has no context until it calls CUDA, which the guard does not where the device is the current one
      // already.
      const c10::impl::VirtualGuardImpl cuda(device->type());
      c10::Event(device->type()).record(cuda.getStreamFromGlobalPool(*device));
    } catch (const c10::Error& error) {
      LOG_DEBUG("Can't make a CUDA context current: " << error.what_without_backtrace());
    }
  }

 private:
  const c10::OptionalDeviceGuard guard_;
};

bool file_has_bytes(const std::string& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  return !error && size > 0;
}

bool deserialize_into(IRuntimeCache& cache, View bytes) {
  return cache.deserialize(bytes.data(), bytes.size());
}

struct Merged {
  std::shared_ptr<IHostMemory> bytes;   // the kernels of both; null if they can't be had
  bool disk_was_rejected = false;       // that is why
  const char* reason_against = nullptr; // or this is
};

// TensorRT-RTX does not document whether deserialize() adds to what a cache has. It does if both orders give the same
// kernels; otherwise one of the two got lost on the way. Serialized caches of one kind are told apart by their size,
// which only a union of two can exceed, so that nothing is assumed of the order of kernels in them.
Merged merge(IRuntimeCache& scratch, View disk, View ours) {
  const Merged kFailed{.bytes = nullptr, .reason_against = "TensorRT-RTX failed to deserialize or serialize them"};
  if (!scratch.reset()) {
    return kFailed;
  }
  if (!deserialize_into(scratch, disk)) {
    return {.bytes = nullptr, .disk_was_rejected = true};
  }
  if (!deserialize_into(scratch, ours)) {
    return kFailed;
  }
  const auto disk_first = util::make_trt(scratch.serialize());
  if (disk_first != nullptr && disk_first->size() > std::max(disk.size(), ours.size())) {
    LOG_INFO("TensorRT-RTX's deserialize adds to a runtime cache");
    return {.bytes = disk_first};
  }
  if (disk_first == nullptr || !scratch.reset() || !deserialize_into(scratch, ours) ||
      !deserialize_into(scratch, disk)) {
    return kFailed;
  }
  const auto ours_first = util::make_trt(scratch.serialize());
  if (ours_first == nullptr) {
    return kFailed;
  }
  const bool same_size = ours_first->size() == disk_first->size();
  if (same_size && (disk.size() != ours.size() || equal(view(*ours_first), view(*disk_first)))) {
    LOG_INFO("TensorRT-RTX's deserialize adds to a runtime cache, and one of the two merged had all of the other's");
    return {.bytes = disk_first};
  }
  LOG_INFO("TensorRT-RTX's deserialize replaces what a runtime cache has");
  return {.bytes = nullptr, .reason_against = "TensorRT-RTX's deserialize replaces what a cache has"};
}

} // namespace

RuntimeCacheHandle::RuntimeCacheHandle(std::string path, std::chrono::milliseconds lock_timeout)
    : path_(std::move(path)), lock_timeout_(lock_timeout), bytes_(allocate(0)) {}

RuntimeCacheHandle::RuntimeCacheHandle(State state)
    : path_(std::move(std::get<0>(state))),
      lock_timeout_(util::FileLock::kDefaultTimeout),
      autosave_(std::get<3>(state)),
      bytes_(copy(std::get<1>(state))),
      stored_at_(std::get<2>(state).begin(), std::get<2>(state).end()) {}

at::Tensor RuntimeCacheHandle::serialize() const {
  const std::lock_guard lock(state_mutex_);
  return live_ == nullptr ? at::_lazy_clone(bytes_) : tensor_of(serialize_live());
}

void RuntimeCacheHandle::deserialize(const at::Tensor& bytes) {
  at::Tensor copied = copy(bytes);
  const std::lock_guard lock(state_mutex_);
  if (live_ == nullptr) {
    bytes_ = std::move(copied);
    stored_at_.clear();
    saved_contents_.clear();
    generations_are_stale_ = true;
  } else if (copied.numel() > 0) {
    feed(view(copied), "");
  } else {
    if (!live_->cache->reset()) {
      TORCHTRT_THROW_ERROR("TensorRT-RTX could not clear the runtime cache '" << path_ << "'");
    }
    generations_are_stale_ = true;
    saved_contents_.clear();
  }
}

bool RuntimeCacheHandle::has_cache() const {
  const std::lock_guard lock(state_mutex_);
  return live_ != nullptr || bytes_.numel() > 0;
}

int64_t RuntimeCacheHandle::load(const std::string& path) {
  const std::string& from = path_or_default(path);
  const std::lock_guard disk_lock(disk_mutex_);
  at::Tensor loaded;
  const size_t size = file(from).load([&loaded](size_t n) {
    loaded = allocate(static_cast<int64_t>(n));
    return data(loaded);
  });
  if (size == 0) {
    return 0;
  }
  const size_t contents = hash(view(loaded));
  const std::lock_guard lock(state_mutex_);
  if (live_ == nullptr) {
    bytes_ = std::move(loaded);
    stored_at_ = {from};
    saved_contents_ = {{from, contents}};
    generations_are_stale_ = files_.size() > 1; // those of other files than this
  } else if (!feed(view(loaded), from)) {
    return 0;
  }
  return static_cast<int64_t>(size);
}

int64_t RuntimeCacheHandle::save(const std::string& path) {
  const std::string& to = path_or_default(path);
  const std::lock_guard disk_lock(disk_mutex_);
  at::Tensor pending;
  std::shared_ptr<IHostMemory> live;
  bool is_stored_there = false;
  {
    const std::lock_guard lock(state_mutex_);
    if (live_ == nullptr) {
      pending = bytes_;
      is_stored_there = stored_at_.count(to) > 0;
    } else {
      live = serialize_live();
    }
  }
  return live == nullptr ? save_pending(to, pending, is_stored_there) : save_live(to, live);
}

RuntimeCacheHandle::State RuntimeCacheHandle::state() const {
  const std::lock_guard lock(state_mutex_);
  if (live_ == nullptr) {
    return {path_, at::_lazy_clone(bytes_), {stored_at_.begin(), stored_at_.end()}, autosave_};
  }
  // What the copy may overwrite as long as it is pending: no newer file, since this cache can still merge with that.
  std::set<std::string> stored_at = stored_at_;
  if (!path_.empty()) {
    stored_at.insert(path_);
  }
  return {path_, tensor_of(serialize_live()), {stored_at.begin(), stored_at.end()}, autosave_};
}

std::shared_ptr<IRuntimeCache> RuntimeCacheHandle::ensure_materialized(nvinfer1::IRuntimeConfig* config) {
  TORCHTRT_CHECK(config != nullptr, "A runtime cache needs an IRuntimeConfig that creates it");
  const std::lock_guard materialize_lock(materialize_mutex_);
  {
    const std::lock_guard lock(state_mutex_);
    if (live_ != nullptr) {
      return live_->cache;
    }
  }
  const auto live = std::make_shared<Live>();
  live->device = current_cuda_device();
  const OnDevice on_device(live->device);
  live->cache = util::make_trt(config->createRuntimeCache());
  if (live->cache == nullptr) {
    TORCHTRT_THROW_ERROR("TensorRT-RTX could not create a runtime cache for '" << path_ << "'");
  }
  live->scratch = util::make_trt(config->createRuntimeCache());
  if (live->scratch != nullptr) {
    live->empty = util::make_trt(live->scratch->serialize());
  }
  if (!path_.empty() && !has_cache()) {
    try {
      load();
    } catch (const Error& error) {
      LOG_WARNING(error.msg() << ". Kernels will be compiled anew");
    }
  }
  const std::lock_guard lock(state_mutex_);
  live_ = live;
  const at::Tensor bytes = std::exchange(bytes_, allocate(0));
  const auto contents = saved_contents_;
  const bool were_stale = generations_are_stale_;
  if (bytes.numel() > 0 && feed(view(bytes), stored_at_.empty() ? "" : *stored_at_.begin())) {
    // The cache was empty, so whatever deserialize does, it has just what the bytes had.
    saved_contents_ = contents;
    generations_are_stale_ = were_stale;
  }
  return live->cache;
}

const std::string& RuntimeCacheHandle::path_or_default(const std::string& path) const {
  TORCHTRT_CHECK(
      !path.empty() || !path_.empty(),
      "This runtime cache has no path of its own, so load() and save() need one as their argument");
  return path.empty() ? path_ : path;
}

// Requires disk_mutex_.
RuntimeCacheFile& RuntimeCacheHandle::file(const std::string& path) {
  return files_.try_emplace(path, path, lock_timeout_).first->second;
}

// Requires state_mutex_ and a live cache.
std::shared_ptr<IHostMemory> RuntimeCacheHandle::serialize_live() const {
  const OnDevice on_device(live_->device);
  auto bytes = util::make_trt(live_->cache->serialize());
  if (bytes == nullptr) {
    TORCHTRT_THROW_ERROR("TensorRT-RTX could not serialize the runtime cache '" << path_ << "'");
  }
  return bytes;
}

// Gives bytes to the live cache; false, with a warning, if it rejects them. `source` is the file that they are from, or
// empty. Requires state_mutex_.
bool RuntimeCacheHandle::feed(View bytes, const std::string& source) {
  const OnDevice on_device(live_->device);
  generations_are_stale_ = true; // either the file's kernels are not here, or perhaps those of others no longer
  saved_contents_.clear();
  if (!deserialize_into(*live_->cache, bytes)) {
    report_rejection(bytes.size(), source, "They are not used: kernels will be compiled anew");
    return false;
  }
  if (!source.empty()) {
    stored_at_.insert(source);
  }
  return true;
}

// A warning once for each file. Requires state_mutex_.
void RuntimeCacheHandle::report_rejection(size_t size, const std::string& source, const char* consequence) {
  const bool is_news = source.empty() || rejected_at_.insert(source).second;
  const auto level = is_news ? util::logging::LogLevel::kWARNING : util::logging::LogLevel::kINFO;
  TORCHTRT_LOG(
      level,
      "TensorRT-RTX rejected the " << size << " bytes of "
                                   << (source.empty() ? "a runtime cache given to it"
                                                      : "the runtime cache '" + source + "'")
                                   << ": they are damaged, or come of another TensorRT-RTX version, GPU, operating "
                                      "system or CUDA driver. "
                                   << consequence);
}

int64_t RuntimeCacheHandle::save_pending(const std::string& to, const at::Tensor& bytes, bool is_stored_there) {
  size_t replaced = 0;
  const size_t size = file(to).save(view(bytes), [&](View disk, View ours) -> RuntimeCacheFile::Bytes {
    if (is_stored_there) {
      return {};
    }
    replaced = disk.size();
    return {.view = ours, .owner = nullptr};
  });
  if (size > 0 && replaced > 0) {
    LOG_WARNING(
        "Saving " << size << " bytes to the runtime cache '" << to << "' replaced " << replaced
                  << " bytes that had not been read from it");
  }
  const std::lock_guard lock(state_mutex_);
  if (bytes_.is_same(bytes)) {
    stored_at_.insert(to);
  }
  return static_cast<int64_t>(size);
}

int64_t RuntimeCacheHandle::save_live(const std::string& to, const std::shared_ptr<IHostMemory>& ours) {
  std::shared_ptr<Live> live;
  const size_t contents = hash(view(*ours));
  {
    const std::lock_guard lock(state_mutex_);
    live = live_;
    if (std::exchange(generations_are_stale_, false)) {
      files_.clear();
    }
    const auto saved = saved_contents_.find(to);
    // Not even the lock is taken, which a read-only directory would refuse.
    if (saved != saved_contents_.end() && saved->second == contents && file_has_bytes(to)) {
      LOG_INFO("There are no new kernels for the runtime cache '" << to << "'");
      return 0;
    }
  }
  // Writing it would at best create a file without kernels, and at worst overwrite one with.
  if (live->empty != nullptr && equal(view(*live->empty), view(*ours))) {
    LOG_INFO("There are no kernels for the runtime cache '" << to << "'");
    return 0;
  }
  const OnDevice on_device(live->device);
  size_t lost = 0;
  bool was_rejected = false;
  const char* reason = nullptr;
  const size_t size = file(to).save(view(*ours), [&](View disk, View) -> RuntimeCacheFile::Bytes {
    const Merged merged = live->scratch != nullptr
        ? merge(*live->scratch, disk, view(*ours))
        : Merged{.bytes = nullptr, .reason_against = "TensorRT-RTX could not create a cache to merge them in"};
    lost = merged.bytes == nullptr ? disk.size() : 0;
    was_rejected = merged.disk_was_rejected;
    reason = merged.reason_against;
    if (merged.bytes == nullptr) {
      return {.view = view(*ours), .owner = nullptr};
    }
    return {.view = view(*merged.bytes), .owner = merged.bytes};
  });
  if (live->scratch != nullptr) {
    live->scratch->reset(); // frees the memory
  }
  const std::lock_guard lock(state_mutex_);
  if (size > 0 && lost > 0 && was_rejected) {
    report_rejection(lost, to, "What this process compiled replaced them");
  } else if (size > 0 && lost > 0) {
    LOG_WARNING(
        "The " << lost << " bytes that others saved to the runtime cache '" << to
               << "' could not be merged and were replaced by " << size << " of this process's: " << reason);
  }
  stored_at_.insert(to);
  saved_contents_[to] = contents;
  return static_cast<int64_t>(size);
}

} // namespace torch_tensorrt::core::runtime
