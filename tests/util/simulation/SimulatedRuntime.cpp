#include "tests/util/simulation/SimulatedRuntime.h"

#include <atomic>
#include <string_view>
#include <utility>

#include "core/util/prelude.h"
#include "tests/util/simulation/SimulatedEngine.h"
#include "tests/util/simulation/SimulatedPlan.h"
#include "tests/util/simulation/unsimulated_interfaces.h"

namespace torch_tensorrt::tests {
namespace {

class SimulatedRuntime final : public nvinfer1::IRuntime, public UnsimulatedRuntime {
 public:
  explicit SimulatedRuntime(Simulation simulation) : simulation_(std::move(simulation)) {
    mImpl = this;
  }

  ~SimulatedRuntime() noexcept override {
    if (*live_engines_ != 0) {
      abort_simulation("an IRuntime was destroyed before its ICudaEngine");
    }
  }

  nvinfer1::IRuntime* getPImpl() noexcept override {
    return this;
  }

  nvinfer1::ILogger* getLogger() const noexcept override {
    return simulation_.logger;
  }

  nvinfer1::ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept override {
    if (simulation_.device->fails("IRuntime::deserializeCudaEngine")) {
      simulation_.error("IRuntime::deserializeCudaEngine fails on request");
      return nullptr;
    }
    try {
      SimulatedPlan plan = parse_plan({static_cast<const char*>(blob), size});
      return new SimulatedEngine(simulation_, std::move(plan), live_engines_);
    } catch (const torch_tensorrt::Error& error) {
      simulation_.error("IRuntime::deserializeCudaEngine rejects the plan: " + error.msg());
      return nullptr;
    }
  }

 private:
  Simulation simulation_;
  std::shared_ptr<std::atomic<int>> live_engines_ = std::make_shared<std::atomic<int>>(0);
};

} // namespace

nvinfer1::IRuntime* create_infer_runtime(std::shared_ptr<SimulatedDevice> device, nvinfer1::ILogger* logger) {
  Simulation simulation{std::move(device), logger};
  if (simulation.device->fails("createInferRuntime")) {
    simulation.error("createInferRuntime fails on request");
    return nullptr;
  }
  return new SimulatedRuntime(std::move(simulation));
}

} // namespace torch_tensorrt::tests
