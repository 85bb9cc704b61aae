#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#include "tests/util/simulation/KernelCompiler.h"
#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/simulation/SimulatedEngine.h"
#include "tests/util/simulation/unsimulated_interfaces.h"

namespace torch_tensorrt::tests {

class SimulatedExecutionContext final : public nvinfer1::IExecutionContext, public UnsimulatedExecutionContext {
 public:
  // Compiles the engine's kernels. `config`, which getRuntimeConfig() returns, may be null.
  SimulatedExecutionContext(
      Simulation simulation,
      SimulatedEngine& engine,
      nvinfer1::IRuntimeConfig* config,
      const SimulatedRuntimeConfig& settings);
  ~SimulatedExecutionContext() noexcept override;

  nvinfer1::IExecutionContext* getPImpl() noexcept override;
  const nvinfer1::ICudaEngine& getEngine() const noexcept override;
  nvinfer1::IRuntimeConfig* getRuntimeConfig() const noexcept override;
  void setName(const char* name) noexcept override;
  const char* getName() const noexcept override;

  int32_t getOptimizationProfile() const noexcept override;
  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t stream) noexcept override;
  // The engine needs no such memory (ICudaEngine::getDeviceMemorySizeV2() is 0), so any memory will do.
  void setDeviceMemoryV2(void* memory, int64_t size) noexcept override;
  size_t updateDeviceMemorySizeForShapes() noexcept override;

  bool setInputShape(const char* name, const nvinfer1::Dims& dims) noexcept override;
  nvinfer1::Dims getTensorShape(const char* name) const noexcept override;
  bool allInputDimensionsSpecified() const noexcept override;
  int32_t inferShapes(int32_t max_names, const char** names) noexcept override;

  bool setTensorAddress(const char* name, void* data) noexcept override;
  bool setInputTensorAddress(const char* name, const void* data) noexcept override;
  bool setOutputTensorAddress(const char* name, void* data) noexcept override;
  const void* getTensorAddress(const char* name) const noexcept override;
  void* getOutputTensorAddress(const char* name) const noexcept override;

  bool isStreamCapturable(cudaStream_t stream) const noexcept override;
  bool enqueueV3(cudaStream_t stream) noexcept override;

 private:
  struct Input {
    const SimulatedTensor* tensor;
    std::optional<std::vector<int64_t>> shape; // once it is known
    const void* address = nullptr;
  };
  struct Output {
    const SimulatedTensor* tensor;
    void* address = nullptr;
  };

  Input* find_input(const char* name);
  Output* find_output(const char* name);
  const Output* find_output(const char* name) const;
  bool fails(const char* call, const std::string& reason) const;
  std::string shape_key() const;
  void specialize_kernels();
  template <class T>
  void compute(size_t output) const;

  Simulation simulation_;
  SimulatedEngine& engine_;
  nvinfer1::IRuntimeConfig* config_;
  nvinfer1::DynamicShapesKernelSpecializationStrategy specialization_;
  std::string name_;
  std::vector<Input> inputs_;
  std::vector<Output> outputs_; // outputs_[i] has the shape of inputs_[i]
  std::set<std::string> seen_shapes_;
  KernelCompiler compiler_; // last, so that its thread ends before the members that it uses
};

} // namespace torch_tensorrt::tests
