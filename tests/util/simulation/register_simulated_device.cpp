// The simulated device in Python, as `torch.classes.tensorrt_simulated.Device` and `torch.ops.tensorrt_simulated`.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include "core/util/prelude.h"
#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/simulation/SimulatedPlan.h"
#include "tests/util/simulation/register_simulated_tensorrt_rtx.h"
#include "tests/util/simulation/simulated_engine_loader.h"

namespace torch_tensorrt::tests {
namespace {

// Thread safety: as for SimulatedDevice, except for install() and uninstall().
class PythonDevice : public torch::CustomClassHolder {
 public:
  explicit PythonDevice(bool is_second)
      : device_(std::make_shared<SimulatedDevice>(SimulatedEnvironment{}, is_second)) {}

  SimulatedDevice& device() {
    return *device_;
  }

  // For a runtime that does not use the C++ engine loader, such as the Python runtime.
  OptionalOwned<nvinfer1::IRuntime> create_infer_runtime() {
    return create_owned_runtime(device_);
  }

  // Until uninstall(), or until this object is destroyed, every plan that the C++ runtime of this process loads is
  // loaded on this device. Engines made meanwhile stay usable.
  void install() {
    scope_.emplace(device_);
  }

  void uninstall() {
    scope_.reset();
  }

 private:
  const std::shared_ptr<SimulatedDevice> device_;
  std::optional<ScopedSimulation> scope_;
};

using PythonDevicePtr = c10::intrusive_ptr<PythonDevice>;

void set_environment(
    const PythonDevicePtr& self,
    std::string tensorrt_rtx_version,
    std::string gpu,
    std::string os_family,
    bool cuda_in_graphics,
    int64_t cuda_driver) {
  self->device().set_environment({
      .tensorrt_rtx_version = std::move(tensorrt_rtx_version),
      .gpu = std::move(gpu),
      .os_family = std::move(os_family),
      .cuda_in_graphics = cuda_in_graphics,
      .cuda_driver = static_cast<int32_t>(cuda_driver),
  });
}

// The members of RuntimeCacheKind, in order.
std::tuple<std::string, int64_t, std::string, std::string, int64_t> kind(const PythonDevicePtr& self) {
  const core::runtime::RuntimeCacheKind kind = kind_of(self->device());
  return {kind.gpu, kind.compute_capability, kind.tensorrt_rtx, kind.os_family, kind.cuda_driver};
}

void set_deserialize_mode(const PythonDevicePtr& self, const std::string& mode) {
  TORCHTRT_CHECK(mode == "adds" || mode == "replaces", "Unknown mode '" << mode << "', expected adds or replaces");
  self->device().set_deserialize_mode(mode == "adds" ? DeserializeMode::kAdds : DeserializeMode::kReplaces);
}

c10::Dict<std::string, int64_t> counters(const PythonDevicePtr& self) {
  const SimulatedDevice::Counters counters = self->device().counters();
  c10::Dict<std::string, int64_t> dict;
  dict.insert("compilations", static_cast<int64_t>(counters.compilations));
  dict.insert("cache_hits", static_cast<int64_t>(counters.cache_hits));
  return dict;
}

// A uint8 tensor of shape [size in bytes].
at::Tensor plan_tensor(const SimulatedPlan& plan) {
  const std::string bytes = make_plan(plan);
  at::Tensor tensor = at::empty({static_cast<int64_t>(bytes.size())}, at::kByte);
  bytes.copy(static_cast<char*>(tensor.mutable_data_ptr()), bytes.size());
  return tensor;
}

std::vector<SimulatedKernel> checked_kernels(const std::string& prefix, int64_t count, int64_t size) {
  TORCHTRT_CHECK(count >= 0 && size >= 0, "Can't make " << count << " kernels of " << size << " bytes");
  return make_kernels(prefix, static_cast<uint64_t>(count), static_cast<uint64_t>(size));
}

// y = max(x, 0), and the same for `pairs` - 1 more pairs x1 and y1, x2 and y2, and so on. Its kernels are compiled at
// the engine's first inference.
at::Tensor relu_plan_tensor(
    const std::string& prefix,
    int64_t kernels,
    int64_t kernel_size,
    std::vector<int64_t> dims,
    int64_t pairs) {
  SimulatedPlan plan = relu_plan(checked_kernels(prefix, kernels, kernel_size), std::move(dims));
  for (int64_t i = 1; i < pairs; ++i) {
    plan.inputs.push_back(plan.inputs[0]);
    plan.inputs.back().name += std::to_string(i);
    plan.outputs.push_back(plan.outputs[0]);
    plan.outputs.back().name += std::to_string(i);
  }
  return plan_tensor(plan);
}

// The same, for x of every shape from `min` to `max`. Its kernels are specialized for each shape.
at::Tensor dynamic_relu_plan_tensor(
    std::vector<int64_t> min,
    std::vector<int64_t> opt,
    std::vector<int64_t> max,
    std::string prefix,
    int64_t kernels,
    int64_t kernel_size) {
  TORCHTRT_CHECK(min.size() == max.size(), "The smallest and the largest shape have different ranks");
  std::vector<int64_t> dims(min.size());
  std::transform(min.begin(), min.end(), max.begin(), dims.begin(), [](int64_t least, int64_t greatest) {
    return least == greatest ? least : -1;
  });
  SimulatedPlan plan = relu_plan(checked_kernels(prefix, kernels, kernel_size), std::move(dims));
  for (SimulatedKernel& kernel : plan.kernels) {
    kernel.per_shape = true;
  }
  plan.inputs[0].min = std::move(min);
  plan.inputs[0].opt = std::move(opt);
  plan.inputs[0].max = std::move(max);
  return plan_tensor(plan);
}

TORCH_LIBRARY(tensorrt_simulated, m) {
  register_simulated_tensorrt_rtx(m);
  const SimulatedEnvironment environment;
  m.class_<PythonDevice>("Device")
      .def(torch::init<bool>(), "", {torch::arg("is_second") = false})
      .def("is_second", [](const PythonDevicePtr& self) { return self->device().is_second(); })
      .def("create_infer_runtime", &PythonDevice::create_infer_runtime)
      .def("install", &PythonDevice::install)
      .def("uninstall", &PythonDevice::uninstall)
      .def(
          "set_environment",
          &set_environment,
          "",
          {torch::arg("tensorrt_rtx_version") = environment.tensorrt_rtx_version,
           torch::arg("gpu") = environment.gpu,
           torch::arg("os_family") = environment.os_family,
           torch::arg("cuda_in_graphics") = environment.cuda_in_graphics,
           torch::arg("cuda_driver") = static_cast<int64_t>(environment.cuda_driver)})
      .def("kind", &kind)
      .def(
          "set_compile_time",
          [](const PythonDevicePtr& self, double seconds) {
            self->device().set_compile_time(
                std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(seconds)));
          })
      .def("set_deserialize_mode", &set_deserialize_mode)
      .def(
          "fail",
          [](const PythonDevicePtr& self, const std::string& call, std::optional<int64_t> times) {
            self->device().fail(call, times.has_value() ? static_cast<uint64_t>(*times) : SimulatedDevice::kAlways);
          },
          "",
          {torch::arg("call"), torch::arg("times") = std::optional<int64_t>()})
      .def(
          "calls",
          [](const PythonDevicePtr& self, const std::string& call) {
            return static_cast<int64_t>(self->device().calls(call));
          })
      .def("counters", &counters)
      .def("reset_counters", [](const PythonDevicePtr& self) { self->device().reset_counters(); })
      .def("wait_for_background_compilation", [](const PythonDevicePtr& self) {
        self->device().wait_for_background_compilation();
      });

  m.def(
      "relu_plan(str prefix='', int kernels=0, int kernel_size=1024, int[] dims=[4], int pairs=1) -> Tensor",
      &relu_plan_tensor);
  m.def(
      "dynamic_relu_plan(int[] min, int[] opt, int[] max, str prefix='', int kernels=0, int kernel_size=1024) -> "
      "Tensor",
      &dynamic_relu_plan_tensor);
}

} // namespace
} // namespace torch_tensorrt::tests
