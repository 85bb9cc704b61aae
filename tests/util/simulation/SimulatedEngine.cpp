#include "tests/util/simulation/SimulatedEngine.h"

#include <algorithm>
#include <utility>

#include "core/util/prelude.h"
#include "tests/util/simulation/SimulatedExecutionContext.h"

namespace torch_tensorrt::tests {

using nvinfer1::CudaGraphStrategy;
using nvinfer1::Dims;
using nvinfer1::DynamicShapesKernelSpecializationStrategy;
using nvinfer1::ExecutionContextAllocationStrategy;

Dims invalid_dims() {
  Dims dims{};
  dims.nbDims = -1;
  return dims;
}

Dims to_dims(const std::vector<int64_t>& extents) {
  Dims dims{};
  dims.nbDims = static_cast<int32_t>(extents.size());
  std::copy(extents.begin(), extents.end(), dims.d);
  return dims;
}

SimulatedRuntimeConfig::SimulatedRuntimeConfig(Simulation simulation) : simulation_(std::move(simulation)) {
  mImpl = this;
}

nvinfer1::IRuntimeConfig* SimulatedRuntimeConfig::getPImpl() noexcept {
  return this;
}

void SimulatedRuntimeConfig::setExecutionContextAllocationStrategy(
    ExecutionContextAllocationStrategy strategy) noexcept {
  allocation_ = strategy;
}

ExecutionContextAllocationStrategy SimulatedRuntimeConfig::getExecutionContextAllocationStrategy() const noexcept {
  return allocation_;
}

nvinfer1::IRuntimeCache* SimulatedRuntimeConfig::createRuntimeCache() const noexcept {
  if (simulation_.device->fails("IRuntimeConfig::createRuntimeCache")) {
    simulation_.error("IRuntimeConfig::createRuntimeCache fails on request");
    return nullptr;
  }
  return new SimulatedRuntimeCache(simulation_);
}

bool SimulatedRuntimeConfig::setRuntimeCache(const nvinfer1::IRuntimeCache& cache) noexcept {
  if (simulation_.device->fails("IRuntimeConfig::setRuntimeCache")) {
    simulation_.error("IRuntimeConfig::setRuntimeCache fails on request");
    return false;
  }
  const auto* simulated = dynamic_cast<const SimulatedRuntimeCache*>(&cache);
  if (simulated == nullptr) {
    abort_simulation("IRuntimeConfig::setRuntimeCache got a cache that is not the simulation's");
  }
  cache_ = simulated;
  store_ = simulated->store();
  return true;
}

nvinfer1::IRuntimeCache* SimulatedRuntimeConfig::getRuntimeCache() const noexcept {
  if (simulation_.device->fails("IRuntimeConfig::getRuntimeCache")) {
    simulation_.error("IRuntimeConfig::getRuntimeCache fails on request");
    return nullptr;
  }
  if (cache_ == nullptr) {
    return nullptr;
  }
  store_->check_open();
  // The interface takes the cache as const and hands it out as non-const.
  return const_cast<SimulatedRuntimeCache*>(cache_);
}

void SimulatedRuntimeConfig::setDynamicShapesKernelSpecializationStrategy(
    DynamicShapesKernelSpecializationStrategy strategy) noexcept {
  specialization_ = strategy;
}

DynamicShapesKernelSpecializationStrategy SimulatedRuntimeConfig::getDynamicShapesKernelSpecializationStrategy()
    const noexcept {
  return specialization_;
}

bool SimulatedRuntimeConfig::setCudaGraphStrategy(CudaGraphStrategy strategy) noexcept {
  if (simulation_.device->fails("IRuntimeConfig::setCudaGraphStrategy")) {
    simulation_.error("IRuntimeConfig::setCudaGraphStrategy fails on request");
    return false;
  }
  const bool known = strategy == CudaGraphStrategy::kDISABLED || strategy == CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE;
  if (known) {
    cuda_graphs_ = strategy;
  }
  return known;
}

CudaGraphStrategy SimulatedRuntimeConfig::getCudaGraphStrategy() const noexcept {
  return cuda_graphs_;
}

SimulatedEngine::SimulatedEngine(
    Simulation simulation,
    SimulatedPlan plan,
    std::shared_ptr<std::atomic<int>> live_engines)
    : simulation_(std::move(simulation)), plan_(std::move(plan)), live_engines_(std::move(live_engines)) {
  mImpl = this;
  for (const auto* tensors : {&plan_.inputs, &plan_.outputs}) {
    for (const SimulatedTensor& tensor : *tensors) {
      tensors_.push_back(&tensor);
    }
  }
  ++*live_engines_;
}

SimulatedEngine::~SimulatedEngine() noexcept {
  simulation_.check_process();
  if (live_contexts_ != 0) {
    abort_simulation("an ICudaEngine was destroyed before its IExecutionContext");
  }
  --*live_engines_;
}

nvinfer1::ICudaEngine* SimulatedEngine::getPImpl() noexcept {
  return this;
}

const SimulatedTensor* SimulatedEngine::find(const char* name) const {
  for (const SimulatedTensor* tensor : tensors_) {
    if (tensor->name == name) {
      return tensor;
    }
  }
  return nullptr;
}

const char* SimulatedEngine::getName() const noexcept {
  return plan_.name.c_str();
}

int32_t SimulatedEngine::getNbLayers() const noexcept {
  return 1;
}

int32_t SimulatedEngine::getNbOptimizationProfiles() const noexcept {
  return 1;
}

int32_t SimulatedEngine::getNbIOTensors() const noexcept {
  return static_cast<int32_t>(tensors_.size());
}

const char* SimulatedEngine::getIOTensorName(int32_t index) const noexcept {
  return index < 0 || index >= getNbIOTensors() ? nullptr : tensors_[static_cast<size_t>(index)]->name.c_str();
}

nvinfer1::TensorIOMode SimulatedEngine::getTensorIOMode(const char* name) const noexcept {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (tensors_[i]->name == name) {
      return i < plan_.inputs.size() ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
    }
  }
  return nvinfer1::TensorIOMode::kNONE;
}

nvinfer1::DataType SimulatedEngine::getTensorDataType(const char* name) const noexcept {
  const SimulatedTensor* tensor = find(name);
  return tensor == nullptr ? nvinfer1::DataType::kFLOAT : tensor->type;
}

Dims SimulatedEngine::getTensorShape(const char* name) const noexcept {
  const SimulatedTensor* tensor = find(name);
  return tensor == nullptr ? invalid_dims() : to_dims(tensor->dims);
}

nvinfer1::TensorLocation SimulatedEngine::getTensorLocation(const char*) const noexcept {
  return simulation_.device->is_second() ? nvinfer1::TensorLocation::kHOST : nvinfer1::TensorLocation::kDEVICE;
}

nvinfer1::TensorFormat SimulatedEngine::getTensorFormat(const char*) const noexcept {
  return nvinfer1::TensorFormat::kLINEAR;
}

bool SimulatedEngine::isShapeInferenceIO(const char*) const noexcept {
  return false;
}

const char* SimulatedEngine::getAliasedInputTensor(const char*) const noexcept {
  return nullptr;
}

Dims SimulatedEngine::getProfileShape(const char* name, int32_t profile, nvinfer1::OptProfileSelector select)
    const noexcept {
  const SimulatedTensor* tensor = find(name);
  if (tensor == nullptr || profile != 0 || getTensorIOMode(name) != nvinfer1::TensorIOMode::kINPUT) {
    return invalid_dims();
  }
  if (tensor->min.empty()) {
    return to_dims(tensor->dims);
  }
  switch (select) {
    case nvinfer1::OptProfileSelector::kMIN:
      return to_dims(tensor->min);
    case nvinfer1::OptProfileSelector::kOPT:
      return to_dims(tensor->opt);
    case nvinfer1::OptProfileSelector::kMAX:
      return to_dims(tensor->max);
  }
  return invalid_dims();
}

int64_t SimulatedEngine::getDeviceMemorySizeV2() const noexcept {
  return 0;
}

int64_t SimulatedEngine::getDeviceMemorySizeForProfileV2(int32_t) const noexcept {
  return 0;
}

int64_t SimulatedEngine::getStreamableWeightsSize() const noexcept {
  return 0;
}

bool SimulatedEngine::isRefittable() const noexcept {
  return false;
}

nvinfer1::IHostMemory* SimulatedEngine::serialize() const noexcept {
  if (simulation_.device->fails("ICudaEngine::serialize")) {
    simulation_.error("ICudaEngine::serialize fails on request");
    return nullptr;
  }
  return new SimulatedHostMemory(make_plan(plan_));
}

nvinfer1::IRuntimeConfig* SimulatedEngine::createRuntimeConfig() noexcept {
  if (simulation_.device->fails("ICudaEngine::createRuntimeConfig")) {
    simulation_.error("ICudaEngine::createRuntimeConfig fails on request");
    return nullptr;
  }
  return new SimulatedRuntimeConfig(simulation_);
}

nvinfer1::IExecutionContext* SimulatedEngine::createExecutionContext(
    ExecutionContextAllocationStrategy strategy) noexcept {
  SimulatedRuntimeConfig defaults(simulation_);
  defaults.setExecutionContextAllocationStrategy(strategy);
  return create_context(nullptr, defaults);
}

nvinfer1::IExecutionContext* SimulatedEngine::createExecutionContextWithRuntimeConfig(
    nvinfer1::IRuntimeConfig* config) noexcept {
  const auto* settings = dynamic_cast<const SimulatedRuntimeConfig*>(config);
  if (settings == nullptr) {
    abort_simulation("ICudaEngine::createExecutionContext got a config that is null or not the simulation's");
  }
  return create_context(config, *settings);
}

nvinfer1::IExecutionContext* SimulatedEngine::create_context(
    nvinfer1::IRuntimeConfig* config,
    const SimulatedRuntimeConfig& settings) {
  simulation_.check_process();
  if (simulation_.device->fails("ICudaEngine::createExecutionContext")) {
    simulation_.error("ICudaEngine::createExecutionContext fails on request");
    return nullptr;
  }
  return new SimulatedExecutionContext(simulation_, *this, config, settings);
}

void SimulatedEngine::add_context() noexcept {
  ++live_contexts_;
}

void SimulatedEngine::remove_context() noexcept {
  --live_contexts_;
}

} // namespace torch_tensorrt::tests
