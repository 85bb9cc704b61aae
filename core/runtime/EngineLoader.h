#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include <NvInferRuntime.h>
#include <c10/core/Device.h>

#include "core/runtime/RuntimeCacheKind.h"

namespace torch_tensorrt::core::runtime {

// An engine, and where it runs.
struct LoadedEngine {
  // Also owns what the engine must not outlive (its IRuntime). Never null.
  std::shared_ptr<nvinfer1::ICudaEngine> engine;
  // The device of every tensor whose address is given to the engine's contexts. A CUDA device always has an index. The
  // engine must be used with this device current (c10::DeviceGuard). enqueueV3 takes a stream of this device, or null
  // on a CPU.
  c10::Device device;
  // The kind of runtime cache that fits this device; nullopt if it is unknown.
  std::optional<RuntimeCacheKind> kind;
};

// Makes an engine from the bytes of a serialized plan. It must not keep the bytes. Throws torch_tensorrt::Error with
// the reason if it can't make an engine. It is called from any thread, and from several at once.
using EngineLoader = std::function<LoadedEngine(std::string_view plan)>;

// Deserializes with TensorRT-RTX (createInferRuntime, deserializeCudaEngine) on the current CUDA device. TensorRT-RTX's
// own messages go to the log. Throws torch_tensorrt::Error if there is no usable GPU, or if `plan` is from another
// version or not a plan.
LoadedEngine load_engine_with_tensorrt_rtx(std::string_view plan);

// Deserializes every plan of this process. Calls load_engine_with_tensorrt_rtx() unless set_engine_loader() installed
// another loader, which runs engines by other means. Thread-safe.
LoadedEngine load_engine(std::string_view plan);

// Installs the loader for engines made from now on, including those that are unpickled. An empty loader means the
// default. Returns the previous loader, so that it can be restored. Thread-safe.
EngineLoader set_engine_loader(EngineLoader loader);

} // namespace torch_tensorrt::core::runtime
