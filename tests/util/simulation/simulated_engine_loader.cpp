#include "tests/util/simulation/simulated_engine_loader.h"

#include <string_view>
#include <utility>

#include "core/util/prelude.h"
#include "tests/util/simulation/SimulatedRuntime.h"

namespace torch_tensorrt::tests {
namespace {

class LogForwarder final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    TORCHTRT_LOG(static_cast<core::util::logging::LogLevel>(severity), "Simulated TensorRT-RTX: " << message);
  }
};

// Never destroyed, because an engine in static storage may use it until the process ends. No static of a function: a
// fork while another thread initializes that leaves it locked in the child.
LogForwarder& forwarder = *new LogForwarder;

} // namespace

nvinfer1::ILogger& log_forwarder() {
  return forwarder;
}

core::runtime::RuntimeCacheKind kind_of(const SimulatedDevice& device) {
  const SimulatedEnvironment environment = device.environment();
  return {
      .gpu = environment.gpu,
      .compute_capability = 89,
      .tensorrt_rtx = environment.tensorrt_rtx_version,
      .os_family = environment.os_family,
      .cuda_driver = environment.cuda_driver};
}

core::runtime::EngineLoader simulated_engine_loader(std::shared_ptr<SimulatedDevice> device) {
  return [device = std::move(device)](std::string_view plan) -> core::runtime::LoadedEngine {
    const auto runtime = core::util::make_trt(create_infer_runtime(device, &log_forwarder()));
    TORCHTRT_CHECK(runtime != nullptr, "The simulated TensorRT-RTX could not be started");
    nvinfer1::ICudaEngine* engine = runtime->deserializeCudaEngine(plan.data(), plan.size());
    TORCHTRT_CHECK(engine != nullptr, "The simulated device could not load a plan of " << plan.size() << " bytes");
    return {
        std::shared_ptr<nvinfer1::ICudaEngine>(engine, [runtime](nvinfer1::ICudaEngine* e) { delete e; }),
        c10::Device(c10::DeviceType::CPU, device->is_second() ? 0 : -1),
        kind_of(*device)};
  };
}

ScopedSimulation::ScopedSimulation(std::shared_ptr<SimulatedDevice> device)
    : previous_(core::runtime::set_engine_loader(simulated_engine_loader(std::move(device)))) {}

ScopedSimulation::~ScopedSimulation() {
  core::runtime::set_engine_loader(std::move(previous_));
}

} // namespace torch_tensorrt::tests
