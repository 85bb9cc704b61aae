#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>
#include <NvInferRuntime.h>
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include "core/runtime/EngineLoader.h"
#include "core/runtime/RuntimeCacheHandle.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_cache_testing.h"
#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/simulation/SimulatedPlan.h"
#include "tests/util/simulation/byte_stream.h"
#include "tests/util/simulation/simulated_engine_loader.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {

using KernelNames = std::set<std::string>;

// The kernels in a simulated runtime cache's bytes (SimulatedRuntimeCache.h has the format).
inline KernelNames kernels_in(std::string_view blob) {
  ByteReader reader(blob);
  for (int i = 0; i < 4; ++i) { // magic, version, GPU, operating system
    reader.text();
  }
  reader.number<uint8_t>();
  reader.number<int32_t>();
  KernelNames names;
  for (auto count = reader.number<uint64_t>(); count > 0; --count) {
    names.emplace(reader.text());
    reader.text();
  }
  return names;
}

inline KernelNames kernels_in(const at::Tensor& bytes) {
  return kernels_in({static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes()});
}

// Returns what is logged during `call`.
template <class Call>
std::string log_of(const Call& call) {
  ::testing::internal::CaptureStderr();
  call();
  return ::testing::internal::GetCapturedStderr();
}

inline std::vector<std::string> warnings_in(const std::string& log) {
  std::vector<std::string> warnings;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("WARNING")) {
      warnings.push_back(line);
    }
  }
  return warnings;
}

// Returns the warnings that are logged during `call`.
template <class Call>
std::vector<std::string> warnings_of(const Call& call) {
  return warnings_in(log_of(call));
}

inline std::vector<SimulatedKernel> kernels(const KernelNames& names) {
  std::vector<SimulatedKernel> result;
  for (const std::string& name : names) {
    result.push_back({.name = name, .size = 100 + 10 * name.size()});
  }
  return result;
}

inline core::runtime::LoadedEngine load_simulated(const SimulatedPlan& plan) {
  return core::runtime::load_engine(make_plan(plan));
}

// Turns checkpoints off for all caches that are made while it lives. Then only the steps of a test save.
class WithoutCheckpoints {
 public:
  WithoutCheckpoints() {
    ::setenv("TORCHTRT_RUNTIME_CACHE_CHECKPOINTS", "0", 1);
  }
  ~WithoutCheckpoints() {
    ::unsetenv("TORCHTRT_RUNTIME_CACHE_CHECKPOINTS");
  }
  WithoutCheckpoints(const WithoutCheckpoints&) = delete;
  WithoutCheckpoints& operator=(const WithoutCheckpoints&) = delete;
};

// A simulated device and a place for a runtime cache.
class RuntimeTest : public ::testing::Test {
 protected:
  using RuntimeCacheHandle = core::runtime::RuntimeCacheHandle;
  using CachePtr = c10::intrusive_ptr<RuntimeCacheHandle>;

  CachePtr new_cache() const {
    return c10::make_intrusive<RuntimeCacheHandle>(path_);
  }

  // Compiles kernels as an engine that starts with that cache does. The cache may already hold some of `names`.
  static void compile(const CachePtr& cache, const KernelNames& names, c10::Device device = c10::kCPU) {
    const core::runtime::LoadedEngine loaded = load_simulated(relu_plan(kernels(names)));
    std::shared_ptr<nvinfer1::IRuntimeCache> live; // outlives the config
    const std::unique_ptr<nvinfer1::IRuntimeConfig> config(loaded.engine->createRuntimeConfig());
    live = cache->ensure_materialized(config.get(), device, loaded.kind);
    config->setRuntimeCache(*live);
    const std::unique_ptr<nvinfer1::IExecutionContext> context(loaded.engine->createExecutionContext(config.get()));
  }

  // Saves as a process that starts without a cache does. Keeps the kernels in the file.
  void save_as_other(const KernelNames& names) const {
    const auto cache = c10::make_intrusive<RuntimeCacheHandle>("");
    compile(cache, names);
    cache->save(path_);
  }

  KernelNames kernels_on_disk() const {
    return kernels_in(read_file(path_));
  }

  const TemporaryDirectory directory_;
  const std::string path_ = directory_.file("cache.bin");
  const std::shared_ptr<SimulatedDevice> device_ = std::make_shared<SimulatedDevice>();
  const ScopedSimulation simulation_{device_};
};

} // namespace torch_tensorrt::tests
