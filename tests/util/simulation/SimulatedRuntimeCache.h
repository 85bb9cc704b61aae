#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>

#include <NvInferRuntime.h>

#include "tests/util/simulation/SimulatedDevice.h"

namespace torch_tensorrt::tests {

// The kernels of one runtime cache, by key. Thread-safe: contexts compile into it while others serialize it.
class KernelStore {
 public:
  using Kernels = std::map<std::string, std::shared_ptr<const std::string>, std::less<>>;

  // Makes the kernel available: a hit if it is in the store, otherwise compiled and stored. If several threads request
  // one kernel, one compiles it and the others hit. Aborts if the stored bytes are not that kernel's, since then a blob
  // was torn or two were mixed.
  void get_or_compile(SimulatedDevice& device, const std::string& key, uint64_t size);

  Kernels snapshot() const;
  void merge(Kernels kernels); // kernels already in the store stay
  void replace(Kernels kernels);

  // Called when the IRuntimeCache is destroyed. TensorRT-RTX does not document that contexts keep it alive, so using it
  // later aborts.
  void close();
  void check_open() const;

 private:
  mutable std::mutex mutex_; // guards everything below except closed_
  std::condition_variable compiled_;
  Kernels kernels_;
  std::set<std::string, std::less<>> compiling_;
  std::atomic<bool> closed_{false};
};

// The serialized cache in byte_stream.h's encoding. Equal contents give equal bytes:
//   magic "SIMTRTRC", version, gpu, os_family (texts), cuda_in_graphics (uint8), cuda_driver (int32),
//   number of kernels (uint64), then each one's key and code (texts) in order of key, then the checksum() of all these
//   bytes (uint64)
class SimulatedRuntimeCache final : public nvinfer1::IRuntimeCache, public nvinfer1::apiv::VRuntimeCache {
 public:
  explicit SimulatedRuntimeCache(Simulation simulation);
  ~SimulatedRuntimeCache() noexcept override;

  nvinfer1::IHostMemory* serialize() const noexcept override;
  bool deserialize(const void* blob, size_t size) noexcept override;
  bool reset() noexcept override;

  const std::shared_ptr<KernelStore>& store() const {
    return store_;
  }

 private:
  // Throws torch_tensorrt::Error with the reason where the real one would return false.
  KernelStore::Kernels parse(std::string_view blob) const;

  Simulation simulation_;
  std::shared_ptr<KernelStore> store_ = std::make_shared<KernelStore>();
};

// The IHostMemory that serialize() functions return.
class SimulatedHostMemory final : public nvinfer1::IHostMemory, public nvinfer1::apiv::VHostMemory {
 public:
  explicit SimulatedHostMemory(std::string bytes);

  void* data() const noexcept override;
  std::size_t size() const noexcept override;
  nvinfer1::DataType type() const noexcept override;

 private:
  mutable std::string bytes_; // the interface returns a pointer to non-const bytes from a const object
};

} // namespace torch_tensorrt::tests
