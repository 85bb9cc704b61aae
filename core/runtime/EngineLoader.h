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
  // Owns, besides the engine, whatever the engine must not outlive (its IRuntime). Never null.
  std::shared_ptr<nvinfer1::ICudaEngine> engine;
  // Where every tensor lives whose address the engine's contexts are given. A CUDA device always has its index, and the
  // engine is to be used with that device current (c10::DeviceGuard); enqueueV3 takes a stream of it, on a CPU null.
  c10::Device device;
  // Which runtime caches fit; nullopt if that is unknown.
  std::optional<RuntimeCacheKind> kind;
};

// Makes an engine out of the bytes of a serialized plan, which it may not keep. Throws torch_tensorrt::Error with the
// reason where that is impossible. Called from any thread, also from several at once.
using EngineLoader = std::function<LoadedEngine(std::string_view plan)>;

// Deserializes with TensorRT-RTX (createInferRuntime, deserializeCudaEngine) on the current CUDA device; TensorRT-RTX's
// own messages go to the log. Errors: no usable GPU; a plan of another version, or none at all.
LoadedEngine load_engine_with_tensorrt_rtx(std::string_view plan);

// Where every plan of this process is deserialized: load_engine_with_tensorrt_rtx() unless set_engine_loader() put
// something else there, which runs engines by other means. Thread-safe.
LoadedEngine load_engine(std::string_view plan);

// The loader for engines made from now on, also those that get unpickled; an empty one means the default. Returns the
// one before it, so that it can be put back. Thread-safe.
EngineLoader set_engine_loader(EngineLoader loader);

} // namespace torch_tensorrt::core::runtime
