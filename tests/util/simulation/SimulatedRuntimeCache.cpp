#include "tests/util/simulation/SimulatedRuntimeCache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/util/prelude.h"
#include "tests/util/simulation/byte_stream.h"

namespace torch_tensorrt::tests {
namespace {

constexpr std::string_view kMagic = "SIMTRTRC";

// `size` bytes that depend on `key` alone.
std::string kernel_code(std::string_view key, uint64_t size) {
  std::string code(size, '\0');
  uint64_t state = checksum(key);
  for (size_t i = 0; i < code.size(); i += sizeof(state)) {
    state = state * 6364136223846793005U + 1442695040888963407U; // Knuth's MMIX generator
    std::memcpy(code.data() + i, &state, std::min(sizeof(state), code.size() - i));
  }
  return code;
}

} // namespace

void KernelStore::get_or_compile(SimulatedDevice& device, const std::string& key, uint64_t size) {
  check_open();
  std::unique_lock lock(mutex_);
  compiled_.wait(lock, [&] { return !compiling_.contains(key); });
  if (const auto found = kernels_.find(key); found != kernels_.end() && found->second->size() == size) {
    const std::shared_ptr<const std::string> code = found->second;
    lock.unlock();
    if (*code != kernel_code(key, size)) {
      abort_simulation("the runtime cache's code of kernel " + key + " is not that kernel's");
    }
    device.count_cache_hit();
    return;
  }
  compiling_.insert(key);
  lock.unlock();
  device.compile();
  auto code = std::make_shared<const std::string>(kernel_code(key, size));
  check_open();
  lock.lock();
  kernels_[key] = std::move(code);
  compiling_.erase(key);
  compiled_.notify_all();
}

KernelStore::Kernels KernelStore::snapshot() const {
  const std::lock_guard guard(mutex_);
  return kernels_;
}

void KernelStore::merge(Kernels kernels) {
  const std::lock_guard guard(mutex_);
  kernels_.merge(kernels);
}

void KernelStore::replace(Kernels kernels) {
  const std::lock_guard guard(mutex_);
  kernels_ = std::move(kernels);
}

void KernelStore::close() {
  closed_ = true;
}

void KernelStore::check_open() const {
  if (closed_) {
    abort_simulation("an IRuntimeCache was used after it was destroyed");
  }
}

SimulatedRuntimeCache::SimulatedRuntimeCache(Simulation simulation) : simulation_(std::move(simulation)) {
  mImpl = this;
}

SimulatedRuntimeCache::~SimulatedRuntimeCache() noexcept {
  simulation_.check_process();
  store_->close();
}

nvinfer1::IHostMemory* SimulatedRuntimeCache::serialize() const noexcept {
  simulation_.check_process();
  if (simulation_.device->fails("IRuntimeCache::serialize")) {
    simulation_.error("IRuntimeCache::serialize fails on request");
    return nullptr;
  }
  const SimulatedEnvironment environment = simulation_.device->environment();
  const KernelStore::Kernels kernels = store_->snapshot();
  size_t size = 256 + environment.tensorrt_rtx_version.size() + environment.gpu.size() + environment.os_family.size();
  for (const auto& [key, code] : kernels) {
    size += 2 * sizeof(uint64_t) + key.size() + code->size();
  }
  ByteWriter blob(size);
  blob.text(kMagic);
  blob.text(environment.tensorrt_rtx_version);
  blob.text(environment.gpu);
  blob.text(environment.os_family);
  blob.number(static_cast<uint8_t>(environment.cuda_in_graphics));
  blob.number(environment.cuda_driver);
  blob.number(static_cast<uint64_t>(kernels.size()));
  for (const auto& [key, code] : kernels) {
    blob.text(key);
    blob.text(*code);
  }
  blob.number(checksum(blob.bytes()));
  return new SimulatedHostMemory(blob.take());
}

KernelStore::Kernels SimulatedRuntimeCache::parse(std::string_view blob) const {
  TORCHTRT_CHECK(blob.size() > sizeof(uint64_t), "It is too short: " << blob.size() << " bytes");
  const size_t body_size = blob.size() - sizeof(uint64_t);
  ByteReader reader(blob.substr(0, body_size));
  TORCHTRT_CHECK(reader.text() == kMagic, "It is not a serialized runtime cache");
  TORCHTRT_CHECK(
      ByteReader(blob.substr(body_size)).number<uint64_t>() == checksum(blob.substr(0, body_size)), "It is corrupt");

  const SimulatedEnvironment here = simulation_.device->environment();
  const std::string_view version = reader.text();
  TORCHTRT_CHECK(version == here.tensorrt_rtx_version, "TensorRT-RTX " << version);
  const std::string_view gpu = reader.text();
  TORCHTRT_CHECK(gpu == here.gpu, "GPU " << gpu);
  const std::string_view os_family = reader.text();
  TORCHTRT_CHECK(os_family == here.os_family, "operating system " << os_family);
  TORCHTRT_CHECK((reader.number<uint8_t>() != 0) == here.cuda_in_graphics, "CUDA in graphics differs");
  const auto driver = reader.number<int32_t>();
  TORCHTRT_CHECK(driver / 1000 == here.cuda_driver / 1000 && driver <= here.cuda_driver, "CUDA driver " << driver);

  KernelStore::Kernels kernels;
  for (auto count = reader.number<uint64_t>(); count > 0; --count) {
    std::string key(reader.text());
    kernels.emplace_hint(kernels.end(), std::move(key), std::make_shared<const std::string>(reader.text()));
  }
  TORCHTRT_CHECK(reader.at_end(), "Bytes follow the last kernel");
  return kernels;
}

bool SimulatedRuntimeCache::deserialize(const void* blob, size_t size) noexcept {
  simulation_.check_process();
  if (simulation_.device->fails("IRuntimeCache::deserialize")) {
    simulation_.error("IRuntimeCache::deserialize fails on request");
    return false;
  }
  try {
    KernelStore::Kernels kernels = parse({static_cast<const char*>(blob), size});
    if (simulation_.device->deserialize_mode() == DeserializeMode::kReplaces) {
      store_->replace(std::move(kernels));
    } else {
      store_->merge(std::move(kernels));
    }
    return true;
  } catch (const torch_tensorrt::Error& error) {
    simulation_.error("IRuntimeCache::deserialize rejects the blob: " + error.msg());
    return false;
  }
}

bool SimulatedRuntimeCache::reset() noexcept {
  simulation_.check_process();
  if (simulation_.device->fails("IRuntimeCache::reset")) {
    simulation_.error("IRuntimeCache::reset fails on request");
    return false;
  }
  store_->replace({});
  return true;
}

SimulatedHostMemory::SimulatedHostMemory(std::string bytes) : bytes_(std::move(bytes)) {
  mImpl = this;
}

void* SimulatedHostMemory::data() const noexcept {
  return bytes_.data();
}

std::size_t SimulatedHostMemory::size() const noexcept {
  return bytes_.size();
}

nvinfer1::DataType SimulatedHostMemory::type() const noexcept {
  return nvinfer1::DataType::kUINT8;
}

} // namespace torch_tensorrt::tests
