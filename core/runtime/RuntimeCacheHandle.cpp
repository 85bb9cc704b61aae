#include "core/runtime/RuntimeCacheHandle.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string_view>
#include <system_error>
#include <utility>

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
  explicit Live(c10::Device d) : device(d) {}

  const c10::Device device;
  std::shared_ptr<IRuntimeCache> cache;
  // Empty, for merges, which may come after the last config that could create one. Null if it could not be created.
  std::shared_ptr<IRuntimeCache> scratch;
  std::mutex scratch_mutex; // taken after the handle's
  at::Tensor empty;         // how a cache without kernels serializes; undefined if that is not known
};

namespace {

namespace fs = std::filesystem;

std::string absolute(const std::string& path) {
  if (path.empty()) {
    TORCHTRT_THROW_ERROR("The path of a runtime cache is empty");
  }
  const fs::path written(path);
  if (written.is_absolute()) {
    return path;
  }
  std::error_code error;
  const fs::path directory = fs::current_path(error);
  if (error) {
    TORCHTRT_THROW_ERROR("Can't make the path '" << path << "' of a runtime cache absolute: " << error.message());
  }
  return (directory / written).string();
}

at::Tensor allocate(int64_t size) {
  return at::empty({size}, at::TensorOptions(at::kByte).device(at::kCPU));
}

View view(const at::Tensor& bytes) {
  return {static_cast<const std::byte*>(bytes.const_data_ptr()), bytes.nbytes()};
}

bool equal(View a, View b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

size_t hash(View bytes) {
  return std::hash<std::string_view>()({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

at::Tensor copy(const at::Tensor& bytes) {
  if (!bytes.defined()) {
    TORCHTRT_THROW_ERROR("The bytes of a runtime cache are an undefined tensor");
  }
  const bool is_plain = bytes.layout() == at::kStrided && bytes.is_cpu();
  if (!is_plain || bytes.scalar_type() != at::kByte || bytes.dim() != 1) {
    TORCHTRT_THROW_ERROR(
        "The bytes of a runtime cache are a dense one-dimensional uint8 tensor on the CPU, got one of "
        << bytes.scalar_type() << " and shape " << bytes.sizes() << " on " << bytes.device() << ", " << bytes.layout());
  }
  const at::Tensor contiguous = bytes.contiguous();
  const at::Tensor copied = allocate(contiguous.numel());
  if (!view(contiguous).empty()) {
    std::memcpy(copied.mutable_data_ptr(), contiguous.const_data_ptr(), contiguous.nbytes());
  }
  return copied;
}

// The tensor takes over their memory. Unlike one of at::from_blob it can be lazily cloned.
at::Tensor tensor_of(RuntimeCacheFile::Contents contents) {
  std::byte* const bytes = contents.bytes.release();
  c10::DataPtr memory(bytes, bytes, [](void* p) { delete[] static_cast<std::byte*>(p); }, at::kCPU);
  const uint64_t size = contents.generation.size;
  const c10::Storage storage(c10::Storage::use_byte_size_t(), size, std::move(memory), c10::GetAllocator(at::kCPU));
  return allocate(0).set_(storage, 0, {static_cast<int64_t>(size)});
}

// While it lives, `device` is the current one, with a CUDA context. TensorRT-RTX compares the bytes that it serializes
// or deserializes to the context of the calling thread.
class OnDevice {
 public:
  explicit OnDevice(c10::Device device) {
    if (device.is_cpu()) {
      return;
    }
    guard_.reset_device(device);
    try {
      // A new thread has no context until it calls CUDA, which the guard does not where the device is the current one
      // already.
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

// Undefined if TensorRT-RTX fails. The tensor shares the memory of its result.
at::Tensor serialize_from(const IRuntimeCache& cache) {
  std::shared_ptr<IHostMemory> bytes = util::make_trt(cache.serialize());
  if (bytes == nullptr) {
    return {};
  }
  void* const memory = bytes->data();
  const auto size = static_cast<int64_t>(bytes->size());
  return at::from_blob(memory, {size}, [bytes = std::move(bytes)](void*) {}, at::kByte);
}

struct Merged {
  at::Tensor bytes = {};                // the kernels of both; undefined if they can't be had
  bool adds_nothing = false;            // those on disk are all of them
  const char* reason_against = "";      // why they can't be had
  bool is_disk_rejected = false;        // that is the reason
  std::vector<std::string> offers = {}; // those that are in `bytes` too
};

// TensorRT-RTX does not document whether deserialize() adds to what a cache has. It does if both orders give the same
// kernels; otherwise one of the two got lost on the way. Serialized caches of one kind are told apart by their size,
// which only a union of two can exceed, so that nothing is assumed of the order of kernels in them.
Merged merge(IRuntimeCache& scratch, View disk, View ours) {
  const Merged kFailed{.reason_against = "TensorRT-RTX failed to deserialize or serialize them"};
  if (!scratch.reset()) {
    return kFailed;
  }
  if (!deserialize_into(scratch, disk)) {
    return {.reason_against = "TensorRT-RTX rejected them", .is_disk_rejected = true};
  }
  if (!deserialize_into(scratch, ours)) {
    return kFailed;
  }
  const at::Tensor disk_first = serialize_from(scratch);
  if (disk_first.defined() && disk_first.nbytes() > std::max(disk.size(), ours.size())) {
    LOG_INFO("TensorRT-RTX's deserialize adds to a runtime cache");
    return {.bytes = disk_first};
  }
  if (!disk_first.defined() || !scratch.reset() || !deserialize_into(scratch, ours) ||
      !deserialize_into(scratch, disk)) {
    return kFailed;
  }
  const at::Tensor ours_first = serialize_from(scratch);
  if (!ours_first.defined()) {
    return kFailed;
  }
  const bool is_same_size = ours_first.nbytes() == disk_first.nbytes();
  if (is_same_size && (disk.size() != ours.size() || equal(view(ours_first), view(disk_first)))) {
    LOG_INFO("TensorRT-RTX's deserialize adds to a runtime cache, and one of the two merged had all of the other's");
    return {.bytes = disk_first, .adds_nothing = disk_first.nbytes() == disk.size()};
  }
  LOG_INFO("TensorRT-RTX's deserialize replaces what a runtime cache has");
  return {.reason_against = "TensorRT-RTX's deserialize replaces what a cache has"};
}

// Merges what other savers offer too, in the cache that has what was merged so far.
void merge_offers(IRuntimeCache& scratch, const std::vector<std::string>& offers, size_t disk_size, Merged& merged) {
  for (const std::string& offer : offers) {
    const auto contents = RuntimeCacheFile::read_offer(offer);
    if (contents && deserialize_into(scratch, contents->view())) {
      merged.offers.push_back(offer);
    }
  }
  const at::Tensor all = merged.offers.empty() ? at::Tensor() : serialize_from(scratch);
  if (all.defined() && all.nbytes() >= merged.bytes.nbytes()) {
    merged.bytes = all;
    merged.adds_nothing = all.nbytes() == disk_size;
  } else {
    merged.offers.clear();
  }
}

void accept(const std::vector<std::string>& offers) {
  for (const std::string& offer : offers) {
    RuntimeCacheFile::accept_offer(offer);
  }
}

// merge() in the scratch cache of `live`, with the offers of other savers.
template <class Live>
Merged merge_on(Live& live, View disk, View ours, const std::vector<std::string>& offers = {}) {
  if (live.scratch == nullptr) {
    return {.reason_against = "TensorRT-RTX could not create a cache to merge them in"};
  }
  const std::lock_guard lock(live.scratch_mutex);
  const OnDevice on_device(live.device);
  Merged merged = merge(*live.scratch, disk, ours);
  if (merged.bytes.defined()) {
    merge_offers(*live.scratch, offers, disk.size(), merged);
  }
  live.scratch->reset(); // frees the memory
  return merged;
}

// The path caches of this process. Never destroyed, because engines in static storage may outlive any other static.
class PathCaches {
 public:
  using Key = std::pair<std::string, std::string>; // the real path of the directory, and the last component

  static PathCaches& get() {
    static PathCaches& caches = *new PathCaches;
    return caches;
  }

  // The handle, and whether it is new.
  std::pair<c10::intrusive_ptr<RuntimeCacheHandle>, bool> find_or_make(const std::string& path) {
    const Key key = key_of(path);
    const std::lock_guard lock(mutex_);
    std::erase_if(caches_, [](const auto& entry) { return entry.second.expired(); });
    if (const auto found = caches_.find(key); found != caches_.end()) {
      if (auto cache = found->second.lock()) {
        return {std::move(cache), false};
      }
    }
    auto cache = c10::make_intrusive<RuntimeCacheHandle>(path);
    caches_.insert_or_assign(key, c10::weak_intrusive_ptr<RuntimeCacheHandle>(cache));
    return {std::move(cache), true};
  }

  bool has(const RuntimeCacheHandle* cache) {
    const std::lock_guard lock(mutex_);
    return std::any_of(caches_.begin(), caches_.end(), [cache](const auto& entry) {
      return entry.second._unsafe_get_target() == cache;
    });
  }

 private:
  // A child of fork() starts without caches: those of its parent belong to engines that it must not touch.
  PathCaches() {
    ::pthread_atfork(
        [] { get().mutex_.lock(); },
        [] { get().mutex_.unlock(); },
        [] {
          get().caches_.clear();
          get().mutex_.unlock();
        });
  }

  static Key key_of(const std::string& path) {
    const fs::path written(path);
    std::error_code error;
    const fs::path directory = fs::weakly_canonical(written.parent_path(), error);
    return {error ? written.parent_path().string() : directory.string(), written.filename().string()};
  }

  std::mutex mutex_;
  std::map<Key, c10::weak_intrusive_ptr<RuntimeCacheHandle>> caches_; // guarded by mutex_
};

} // namespace

RuntimeCacheHandle::RuntimeCacheHandle(std::string path) : path_(std::move(path)), contents_(allocate(0)) {}

c10::intrusive_ptr<RuntimeCacheHandle> RuntimeCacheHandle::for_path(const std::string& path) {
  return PathCaches::get().find_or_make(absolute(path)).first;
}

c10::intrusive_ptr<RuntimeCacheHandle> RuntimeCacheHandle::from_state(const State& state) {
  const auto& [path, bytes, files, autosave, is_path_cache] = state;
  const at::Tensor copied = copy(bytes);
  auto [handle, is_new] = is_path_cache ? PathCaches::get().find_or_make(path)
                                        : std::pair(c10::make_intrusive<RuntimeCacheHandle>(path), true);
  if (is_new) {
    handle->autosave_ = autosave;
  }
  if (is_new && (!is_path_cache || RuntimeCacheFile(path).is_empty())) {
    // Other threads may have got the path cache meanwhile.
    const std::lock_guard disk_lock(handle->disk_mutex_);
    const std::lock_guard lock(handle->state_mutex_);
    const auto* pending = std::get_if<at::Tensor>(&handle->contents_);
    if (pending != nullptr && pending->numel() == 0) {
      handle->take(copied, files);
    }
  }
  return handle;
}

RuntimeCacheHandle::State RuntimeCacheHandle::state() const {
  const bool is_path_cache = PathCaches::get().has(this);
  const std::lock_guard lock(state_mutex_);
  // What the copy must not overwrite as long as it is pending: no newer file, since this cache can still merge with it.
  std::vector<std::string> files;
  for (const auto& [path, store] : stores_) {
    if (store.digest || store.contained) {
      files.push_back(path);
    }
  }
  if (std::holds_alternative<Lives>(contents_) && !path_.empty()) {
    files.push_back(path_);
  }
  return {path_, serialize_locked(), std::move(files), autosave_, is_path_cache};
}

void RuntimeCacheHandle::release_resources() {
  contents_ = at::Tensor();
}

void RuntimeCacheHandle::attach() noexcept {
  if (engines_.fetch_add(1) == 0) {
    process_ = ::getpid();
  }
}

bool RuntimeCacheHandle::detach() noexcept {
  return engines_.fetch_sub(1) == 1 && process_ == ::getpid();
}

at::Tensor RuntimeCacheHandle::serialize() const {
  const std::lock_guard lock(state_mutex_);
  return serialize_locked();
}

void RuntimeCacheHandle::deserialize(const at::Tensor& bytes) {
  const at::Tensor copied = copy(bytes);
  const std::lock_guard disk_lock(disk_mutex_);
  at::Tensor old; // freed without the mutex
  const std::lock_guard lock(state_mutex_);
  const auto* lives = std::get_if<Lives>(&contents_);
  if (lives == nullptr) {
    old = take(copied, {});
    return;
  }
  // Either the files' kernels are not here, or perhaps those of others no longer.
  forget_stores();
  for (const auto& live : *lives) {
    if (copied.numel() > 0) {
      feed(*live, view(copied), "");
    } else if (!live->cache->reset()) {
      TORCHTRT_THROW_ERROR("TensorRT-RTX could not clear the runtime cache '" << path_ << "'");
    }
  }
}

bool RuntimeCacheHandle::has_cache() const {
  const std::lock_guard lock(state_mutex_);
  const auto* pending = std::get_if<at::Tensor>(&contents_);
  return pending == nullptr || pending->numel() > 0;
}

int64_t RuntimeCacheHandle::load(const std::string& path) {
  const std::string& from = path_or_default(path);
  const std::lock_guard disk_lock(disk_mutex_);
  return load_locked(from);
}

// Requires disk_mutex_.
int64_t RuntimeCacheHandle::load_locked(const std::string& path) {
  auto contents = RuntimeCacheFile(path, lock_timeout_).read();
  if (!contents) {
    return 0;
  }
  const FileGeneration generation = contents->generation;
  const at::Tensor bytes = tensor_of(std::move(*contents));
  at::Tensor old; // freed without the mutex
  const std::lock_guard lock(state_mutex_);
  if (const auto* lives = std::get_if<Lives>(&contents_)) {
    bool is_accepted = false;
    for (const auto& live : *lives) {
      is_accepted |= feed(*live, view(bytes), path);
    }
    if (!is_accepted) {
      return 0;
    }
    forget_stores(); // the kernels of other files may have been replaced
  } else {
    old = take(bytes, {path});
  }
  stores_[path].contained = generation;
  return bytes.numel();
}

int64_t RuntimeCacheHandle::save(const std::string& path) {
  const std::string& to = path_or_default(path);
  const std::lock_guard disk_lock(disk_mutex_);
  at::Tensor ours;
  std::shared_ptr<Live> live;
  std::optional<size_t> stored_digest;
  {
    const std::lock_guard lock(state_mutex_);
    ours = bytes_locked();
    if (const auto* lives = std::get_if<Lives>(&contents_)) {
      live = lives->front();
    }
    stored_digest = stores_[to].digest;
  }
  const size_t digest = hash(view(ours));
  // Not even the lock is taken, which a read-only directory would refuse.
  if (digest == stored_digest && !RuntimeCacheFile(to).is_empty()) {
    LOG_INFO("There are no new kernels for the runtime cache '" << to << "'");
    return 0;
  }
  // Writing it would at best create a file without kernels, and at worst overwrite one with.
  if (ours.numel() == 0 || (live != nullptr && live->empty.defined() && equal(view(live->empty), view(ours)))) {
    LOG_INFO("There are no kernels for the runtime cache '" << to << "'");
    return 0;
  }
  const int64_t written = write(to, live.get(), ours);
  const std::lock_guard lock(state_mutex_);
  stores_[to].digest = digest;
  return written;
}

// Writes `ours`, merged with what is there by the scratch cache of `live`, or alone if that is null. Requires
// disk_mutex_.
int64_t RuntimeCacheHandle::write(const std::string& path, Live* live, const at::Tensor& ours) {
  const RuntimeCacheFile file(path, lock_timeout_);
  std::optional<FileGeneration> expected;
  {
    const std::lock_guard lock(state_mutex_);
    expected = stores_[path].contained;
  }
  std::optional<RuntimeCacheFile::Turn> turn;
  Merged merged;
  size_t others = 0; // bytes that others saved
  std::optional<RuntimeCacheFile::Replaced> replaced;
  for (int merges = 0;; ++merges) {
    replaced = file.replace(view(merged.bytes.defined() ? merged.bytes : ours), expected);
    if (replaced) {
      break;
    }
    if (merges == kMaxMerges) {
      TORCHTRT_THROW_ERROR(
          "Can't save the runtime cache '" << path << "': others saved to it " << kMaxMerges
                                           << " times while this process merged. The file is intact");
    }
    merged = {};
    if (live != nullptr && !turn) {
      turn = file.wait_for_turn(view(ours));
      if (turn->is_saved) {
        LOG_INFO("Another process saved the kernels of this one to the runtime cache '" << path << "'");
        return 0;
      }
    }
    const auto disk = file.read();
    expected = disk ? std::optional(disk->generation) : std::nullopt;
    others = disk ? disk->generation.size : 0;
    if (disk && live != nullptr) {
      LOG_INFO("Merging with the " << others << " bytes that others saved to the runtime cache '" << path << "'");
      merged = merge_on(*live, disk->view(), view(ours), turn->offers);
      if (merged.adds_nothing) {
        accept(merged.offers);
        LOG_INFO("The runtime cache '" << path << "' has all kernels already");
        return 0;
      }
    }
  }
  accept(merged.offers);
  const std::lock_guard lock(state_mutex_);
  Store& store = stores_[path];
  // The others' kernels are on disk and not in us.
  store.contained = merged.bytes.defined() ? std::nullopt : std::optional(replaced->generation);
  if (!replaced->is_written) {
    return 0;
  }
  const auto written = static_cast<int64_t>(replaced->generation.size);
  if (!replaced->in_place.empty() && !std::exchange(store.has_warned_of_writing_in_place, true)) {
    LOG_WARNING(
        "The runtime cache '"
        << path << "' is written in place, so a crash meanwhile can tear it, because it can't be replaced: "
        << replaced->in_place);
  }
  if (others > 0 && live == nullptr) {
    LOG_WARNING(
        "Saving " << written << " bytes to the runtime cache '" << path << "' replaced " << others
                  << " bytes that had not been read from it");
  } else if (others > 0 && merged.is_disk_rejected) {
    report_rejection(others, path, "They were replaced by the kernels that this process compiled");
  } else if (others > 0 && !merged.bytes.defined()) {
    LOG_WARNING(
        "The " << others << " bytes that others saved to the runtime cache '" << path
               << "' could not be merged and were replaced by " << written
               << " of this process's: " << merged.reason_against);
  }
  return written;
}

std::shared_ptr<IRuntimeCache> RuntimeCacheHandle::ensure_materialized(
    nvinfer1::IRuntimeConfig* config,
    c10::Device device) {
  TORCHTRT_CHECK(config != nullptr, "A runtime cache needs an IRuntimeConfig that creates it");
  if (auto cache = live_cache(device)) {
    return cache;
  }
  const std::lock_guard disk_lock(disk_mutex_);
  if (auto cache = live_cache(device)) {
    return cache;
  }
  const OnDevice on_device(device);
  const auto live = std::make_shared<Live>(device);
  live->cache = util::make_trt(config->createRuntimeCache());
  if (live->cache == nullptr) {
    TORCHTRT_THROW_ERROR("TensorRT-RTX could not create a runtime cache for '" << path_ << "'");
  }
  live->scratch = util::make_trt(config->createRuntimeCache());
  if (live->scratch != nullptr) {
    live->empty = serialize_from(*live->scratch);
  }
  if (!path_.empty() && !has_cache()) {
    try {
      load_locked(path_);
    } catch (const Error& error) {
      LOG_WARNING(error.msg() << ". Kernels will be compiled anew");
    }
  }
  at::Tensor bytes; // freed without the mutex
  const std::lock_guard lock(state_mutex_);
  bytes = bytes_locked();
  const auto loaded =
      std::find_if(stores_.begin(), stores_.end(), [](const auto& entry) { return entry.second.digest.has_value(); });
  const bool is_accepted = bytes.numel() == 0 || feed(*live, view(bytes), loaded == stores_.end() ? "" : loaded->first);
  if (auto* lives = std::get_if<Lives>(&contents_)) {
    lives->push_back(live);
  } else {
    contents_ = Lives{live};
    for (auto& [path, store] : stores_) {
      // A copy only keeps away from its original's files. Now it can merge with them.
      if (!is_accepted || !store.contained) {
        store.contained.reset();
        store.digest.reset();
      }
    }
  }
  return live->cache;
}

// Null if the handle is not live there.
std::shared_ptr<IRuntimeCache> RuntimeCacheHandle::live_cache(c10::Device device) const {
  const std::lock_guard lock(state_mutex_);
  if (const auto* lives = std::get_if<Lives>(&contents_)) {
    for (const auto& live : *lives) {
      if (live->device == device) {
        return live->cache;
      }
    }
  }
  return nullptr;
}

const std::string& RuntimeCacheHandle::path_or_default(const std::string& path) const {
  if (path.empty() && path_.empty()) {
    TORCHTRT_THROW_ERROR("This runtime cache has no path of its own, so load() and save() need one as their argument");
  }
  return path.empty() ? path_ : path;
}

// Replaces the bytes of a pending handle by others, which `files` have, and returns the old ones. Requires
// state_mutex_.
at::Tensor RuntimeCacheHandle::take(at::Tensor bytes, const std::vector<std::string>& files) {
  forget_stores();
  for (const std::string& file : files) {
    stores_[file].digest = hash(view(bytes));
  }
  return std::exchange(std::get<at::Tensor>(contents_), std::move(bytes));
}

// Requires state_mutex_.
void RuntimeCacheHandle::forget_stores() {
  for (auto& [path, store] : stores_) {
    store.contained.reset();
    store.digest.reset();
  }
}

// As serialize(). Requires state_mutex_.
at::Tensor RuntimeCacheHandle::serialize_locked() const {
  const at::Tensor bytes = bytes_locked();
  return std::holds_alternative<Lives>(contents_) ? bytes : at::_lazy_clone(bytes);
}

// The bytes, those of all devices merged. Nobody may write to them. Requires state_mutex_.
at::Tensor RuntimeCacheHandle::bytes_locked() const {
  const auto* lives = std::get_if<Lives>(&contents_);
  if (lives == nullptr) {
    return std::get<at::Tensor>(contents_);
  }
  at::Tensor bytes;
  for (const auto& live : *lives) {
    at::Tensor more;
    {
      const OnDevice on_device(live->device);
      more = serialize_from(*live->cache);
    }
    if (!more.defined()) {
      TORCHTRT_THROW_ERROR("TensorRT-RTX could not serialize the runtime cache '" << path_ << "'");
    }
    if (!bytes.defined()) {
      bytes = more;
    } else if (!equal(view(bytes), view(more))) {
      const Merged merged = merge_on(*lives->front(), view(more), view(bytes));
      if (merged.bytes.defined()) {
        bytes = merged.bytes;
      } else {
        LOG_WARNING(
            "The runtime cache '" << path_ << "' keeps no kernels of " << live->device
                                  << ", because they can't be merged with those of " << lives->front()->device << ": "
                                  << merged.reason_against);
      }
    }
  }
  return bytes;
}

// Gives bytes to a live cache. Returns false, with a warning, if it rejects them. `source` is the file that they are
// from, or empty. Requires state_mutex_.
bool RuntimeCacheHandle::feed(Live& live, View bytes, const std::string& source) {
  const OnDevice on_device(live.device);
  if (deserialize_into(*live.cache, bytes)) {
    return true;
  }
  report_rejection(bytes.size(), source, "They are not used: kernels will be compiled anew");
  return false;
}

// Logs a warning once per file. Requires state_mutex_.
void RuntimeCacheHandle::report_rejection(size_t size, const std::string& source, const char* consequence) {
  const bool is_news = source.empty() || !std::exchange(stores_[source].has_warned_of_rejection, true);
  TORCHTRT_LOG(
      is_news ? util::logging::LogLevel::kWARNING : util::logging::LogLevel::kINFO,
      "TensorRT-RTX rejected the "
          << size << " bytes of "
          << (source.empty() ? "a runtime cache given to it" : "the runtime cache '" + source + "'")
          << ": they are damaged, or come from another TensorRT-RTX version, GPU, operating system or CUDA driver. "
          << consequence);
}

} // namespace torch_tensorrt::core::runtime
