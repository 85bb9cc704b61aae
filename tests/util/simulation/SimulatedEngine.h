#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/simulation/SimulatedPlan.h"
#include "tests/util/simulation/SimulatedRuntimeCache.h"
#include "tests/util/simulation/unsimulated_interfaces.h"

namespace torch_tensorrt::tests {

class SimulatedRuntimeConfig final : public nvinfer1::IRuntimeConfig, public nvinfer1::apiv::VRuntimeConfig {
 public:
  explicit SimulatedRuntimeConfig(Simulation simulation);

  nvinfer1::IRuntimeConfig* getPImpl() noexcept override;
  void setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override;
  nvinfer1::ExecutionContextAllocationStrategy getExecutionContextAllocationStrategy() const noexcept override;
  nvinfer1::IRuntimeCache* createRuntimeCache() const noexcept override;
  bool setRuntimeCache(const nvinfer1::IRuntimeCache& cache) noexcept override;
  nvinfer1::IRuntimeCache* getRuntimeCache() const noexcept override;
  void setDynamicShapesKernelSpecializationStrategy(
      nvinfer1::DynamicShapesKernelSpecializationStrategy strategy) noexcept override;
  nvinfer1::DynamicShapesKernelSpecializationStrategy getDynamicShapesKernelSpecializationStrategy()
      const noexcept override;
  bool setCudaGraphStrategy(nvinfer1::CudaGraphStrategy strategy) noexcept override;
  nvinfer1::CudaGraphStrategy getCudaGraphStrategy() const noexcept override;

  // Null if there is no cache.
  const std::shared_ptr<KernelStore>& store() const {
    return store_;
  }

 private:
  Simulation simulation_;
  nvinfer1::ExecutionContextAllocationStrategy allocation_ = nvinfer1::ExecutionContextAllocationStrategy::kSTATIC;
  nvinfer1::DynamicShapesKernelSpecializationStrategy specialization_ =
      nvinfer1::DynamicShapesKernelSpecializationStrategy::kLAZY;
  nvinfer1::CudaGraphStrategy cuda_graphs_ = nvinfer1::CudaGraphStrategy::kDISABLED;
  const SimulatedRuntimeCache* cache_ = nullptr; // owned by the caller
  std::shared_ptr<KernelStore> store_;           // that of cache_; knows whether cache_ is alive
};

// Immutable except for the counter of its contexts.
class SimulatedEngine final : public nvinfer1::ICudaEngine, public UnsimulatedCudaEngine {
 public:
  // Keeps the runtime's counter `live_engines` up to date.
  SimulatedEngine(Simulation simulation, SimulatedPlan plan, std::shared_ptr<std::atomic<int>> live_engines);
  ~SimulatedEngine() noexcept override;

  nvinfer1::ICudaEngine* getPImpl() noexcept override;
  const char* getName() const noexcept override;
  int32_t getNbLayers() const noexcept override;
  int32_t getNbOptimizationProfiles() const noexcept override;
  int32_t getNbIOTensors() const noexcept override;
  const char* getIOTensorName(int32_t index) const noexcept override;
  nvinfer1::TensorIOMode getTensorIOMode(const char* name) const noexcept override;
  nvinfer1::DataType getTensorDataType(const char* name) const noexcept override;
  nvinfer1::Dims getTensorShape(const char* name) const noexcept override;
  nvinfer1::TensorLocation getTensorLocation(const char* name) const noexcept override;
  nvinfer1::TensorFormat getTensorFormat(const char* name) const noexcept override;
  bool isShapeInferenceIO(const char* name) const noexcept override;
  const char* getAliasedInputTensor(const char* name) const noexcept override;
  nvinfer1::Dims getProfileShape(const char* name, int32_t profile, nvinfer1::OptProfileSelector select)
      const noexcept override;
  int64_t getDeviceMemorySizeV2() const noexcept override;
  int64_t getDeviceMemorySizeForProfileV2(int32_t profile) const noexcept override;
  int64_t getStreamableWeightsSize() const noexcept override;
  bool isRefittable() const noexcept override;

  nvinfer1::IHostMemory* serialize() const noexcept override;
  nvinfer1::IRuntimeConfig* createRuntimeConfig() noexcept override;
  nvinfer1::IExecutionContext* createExecutionContext(
      nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override;
  nvinfer1::IExecutionContext* createExecutionContextWithRuntimeConfig(
      nvinfer1::IRuntimeConfig* config) noexcept override;

  const SimulatedPlan& plan() const {
    return plan_;
  }
  void add_context() noexcept;
  void remove_context() noexcept;

 private:
  const SimulatedTensor* find(const char* name) const;
  nvinfer1::IExecutionContext* create_context(nvinfer1::IRuntimeConfig* config, const SimulatedRuntimeConfig& settings);

  Simulation simulation_;
  SimulatedPlan plan_;
  std::vector<const SimulatedTensor*> tensors_; // those of plan_, inputs first
  std::shared_ptr<std::atomic<int>> live_engines_;
  std::atomic<int> live_contexts_{0};
};

// nbDims is -1, which TensorRT-RTX returns for an unknown tensor.
nvinfer1::Dims invalid_dims();
nvinfer1::Dims to_dims(const std::vector<int64_t>& extents);

} // namespace torch_tensorrt::tests
