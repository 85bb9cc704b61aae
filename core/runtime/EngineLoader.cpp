#include "core/runtime/EngineLoader.h"

#include <atomic>
#include <utility>

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/util/prelude.h"

namespace torch_tensorrt::core::runtime {
namespace {

class TensorRTLogger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    // LogLevel's first five values are Severity's.
    TORCHTRT_LOG(static_cast<util::logging::LogLevel>(severity), "TensorRT-RTX: " << message);
  }
};

// Never destroyed: it must outlive TensorRT-RTX's last object, which may be in static storage.
TensorRTLogger& logger = *new TensorRTLogger;

// Never destroyed, because another thread may be calling it. A mutex instead could be stuck in a child of fork().
struct Installed {
  EngineLoader loader;                 // empty means the default
  const Installed* previous = nullptr; // so that a leak checker finds it
};

std::atomic<const Installed*> installed = nullptr;

std::optional<RuntimeCacheKind> kind_of(c10::Device device) {
  try {
    return RuntimeCacheKind::of(device.index());
  } catch (const Error& error) {
    LOG_DEBUG("The kind of " << device << " is unknown: " << error.msg());
    return std::nullopt;
  }
}

} // namespace

LoadedEngine load_engine_with_tensorrt_rtx(std::string_view plan) {
  // Not the device guard's deviceCount(): torch's fake tensors install a guard without effect, which counts one device.
  if (!at::hasCUDA()) {
    TORCHTRT_THROW_ERROR(
        "A TensorRT-RTX engine needs an NVIDIA GPU, and torch finds none on this machine (driver missing, "
        "CUDA_VISIBLE_DEVICES, or a torch built without CUDA)");
  }
  const c10::Device device = c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getDevice();
  const auto runtime = util::make_trt(nvinfer1::createInferRuntime(logger));
  if (runtime == nullptr) {
    TORCHTRT_THROW_ERROR("TensorRT-RTX could not be started on " << device);
  }
  nvinfer1::ICudaEngine* engine = runtime->deserializeCudaEngine(plan.data(), plan.size());
  if (engine == nullptr) {
    TORCHTRT_THROW_ERROR(
        "TensorRT-RTX could not load a plan of "
        << plan.size() << " bytes on " << device
        << "; the log has its reasons (another version, another GPU, or no plan)");
  }
  // The engine must be destroyed before its runtime, which the deleter owns.
  return {
      std::shared_ptr<nvinfer1::ICudaEngine>(engine, [runtime](nvinfer1::ICudaEngine* e) { delete e; }),
      device,
      kind_of(device)};
}

LoadedEngine load_engine(std::string_view plan) {
  const Installed* current = installed;
  return current != nullptr && current->loader ? current->loader(plan) : load_engine_with_tensorrt_rtx(plan);
}

EngineLoader set_engine_loader(EngineLoader loader) {
  auto* const current = new Installed{std::move(loader)};
  current->previous = installed.exchange(current);
  return current->previous == nullptr ? EngineLoader() : current->previous->loader;
}

} // namespace torch_tensorrt::core::runtime
