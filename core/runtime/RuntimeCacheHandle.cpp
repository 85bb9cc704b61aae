#include "core/runtime/RuntimeCacheHandle.h"

#include <cstddef>
#include <cstring>
#include <utility>

#include <ATen/ops/_lazy_clone.h>
#include <ATen/ops/empty.h>

#include "core/util/macros.h"

namespace torch_tensorrt::core::runtime {
namespace {

at::Tensor allocate(int64_t size) {
  return at::empty({size}, at::TensorOptions(at::kByte).device(at::kCPU));
}

std::byte* data(const at::Tensor& bytes) {
  return static_cast<std::byte*>(bytes.mutable_data_ptr());
}

RuntimeCacheFile::View view(const at::Tensor& bytes) {
  return {static_cast<const std::byte*>(bytes.const_data_ptr()), bytes.nbytes()};
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

} // namespace

RuntimeCacheHandle::RuntimeCacheHandle(std::string path, std::chrono::milliseconds lock_timeout)
    : path_(std::move(path)), lock_timeout_(lock_timeout), bytes_(allocate(0)) {}

RuntimeCacheHandle::RuntimeCacheHandle(State state)
    : path_(std::move(std::get<0>(state))),
      lock_timeout_(util::FileLock::kDefaultTimeout),
      bytes_(copy(std::get<1>(state))),
      stored_at_(std::get<2>(state).begin(), std::get<2>(state).end()) {}

at::Tensor RuntimeCacheHandle::serialize() const {
  const std::lock_guard lock(bytes_mutex_);
  return at::_lazy_clone(bytes_);
}

void RuntimeCacheHandle::deserialize(const at::Tensor& bytes) {
  at::Tensor copied = copy(bytes);
  const std::lock_guard lock(bytes_mutex_);
  bytes_ = std::move(copied);
  stored_at_.clear();
}

bool RuntimeCacheHandle::has_cache() const {
  const std::lock_guard lock(bytes_mutex_);
  return bytes_.numel() > 0;
}

int64_t RuntimeCacheHandle::load(const std::string& path) {
  const std::string& from = path_or_default(path);
  const std::lock_guard disk_lock(disk_mutex_);
  at::Tensor loaded;
  const size_t size = file(from).load([&loaded](size_t n) {
    loaded = allocate(static_cast<int64_t>(n));
    return data(loaded);
  });
  if (size > 0) {
    const std::lock_guard lock(bytes_mutex_);
    bytes_ = std::move(loaded);
    stored_at_ = {from};
  }
  return static_cast<int64_t>(size);
}

int64_t RuntimeCacheHandle::save(const std::string& path) {
  const std::string& to = path_or_default(path);
  const std::lock_guard disk_lock(disk_mutex_);
  at::Tensor bytes;
  bool is_stored_there = false;
  {
    const std::lock_guard lock(bytes_mutex_);
    bytes = bytes_;
    is_stored_there = stored_at_.count(to) > 0;
  }
  size_t replaced = 0;
  const size_t size = file(to).save(
      view(bytes), [&](RuntimeCacheFile::View disk, RuntimeCacheFile::View ours) -> RuntimeCacheFile::Bytes {
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
  const std::lock_guard lock(bytes_mutex_);
  if (bytes_.is_same(bytes)) {
    stored_at_.insert(to);
  }
  return static_cast<int64_t>(size);
}

RuntimeCacheHandle::State RuntimeCacheHandle::state() const {
  const std::lock_guard lock(bytes_mutex_);
  return {path_, at::_lazy_clone(bytes_), {stored_at_.begin(), stored_at_.end()}};
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

} // namespace torch_tensorrt::core::runtime
