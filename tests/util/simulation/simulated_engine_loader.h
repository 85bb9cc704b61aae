#pragma once

#include <memory>

#include <NvInferRuntime.h>

#include "core/runtime/EngineLoader.h"
#include "tests/util/simulation/SimulatedDevice.h"

namespace torch_tensorrt::tests {

// Writes to the log, as the product's logger for TensorRT-RTX does. Never destroyed.
nvinfer1::ILogger& log_forwarder();

core::runtime::RuntimeCacheKind kind_of(const SimulatedDevice& device);

// Loads on `device` what parse_plan() accepts. The engines take their tensors on the CPU. Each engine has its own
// runtime, as with the default loader. The device's errors go to the log as TensorRT-RTX's do.
core::runtime::EngineLoader simulated_engine_loader(std::shared_ptr<SimulatedDevice> device);

// Every plan of this process is loaded on `device` while this object lives. Not thread-safe. Objects must be nested or
// follow one another.
class ScopedSimulation {
 public:
  explicit ScopedSimulation(std::shared_ptr<SimulatedDevice> device);
  ~ScopedSimulation();

  ScopedSimulation(const ScopedSimulation&) = delete;
  ScopedSimulation& operator=(const ScopedSimulation&) = delete;

 private:
  core::runtime::EngineLoader previous_;
};

} // namespace torch_tensorrt::tests
