#pragma once

#include <memory>

#include <NvInferRuntime.h>

#include "tests/util/simulation/SimulatedDevice.h"

namespace torch_tensorrt::tests {

// createInferRuntime() of the simulated device; the caller owns the runtime, nullptr where the call is to fail. Its
// engines come from what parse_plan() takes (SimulatedPlan.h), have one optimization profile, and run synchronously on
// host memory at the addresses given to setTensorAddress(), whatever the stream. `logger`, when given, hears of every
// error and must outlive all that comes of the runtime.
//
// Kernels without per_shape compile when an execution context is created. The others compile at the first enqueueV3
// with new input shapes: before it runs (kEAGER), in a thread of the context's own after it (kLAZY, the default), or
// never (kNONE); results are the same. With a runtime cache attached, kernels that it holds take no time, and new ones
// land in it.
//
// What TensorRT-RTX documents as undefined, or does not promise, ends the process by abort_simulation(): an IRuntime
// destroyed before its engines, an ICudaEngine before its contexts, an IRuntimeCache before the last use by a config or
// context that it is attached to; and so does every function that is not simulated (unsimulated_interfaces.h).
// A context keeps the settings that its config had when the context was created.
//
// Thread safety: engines and runtimes, from any thread. A context or config, one thread at a time, as the real ones;
// nothing checks it, so that the thread sanitizer sees it.
nvinfer1::IRuntime* create_infer_runtime(std::shared_ptr<SimulatedDevice> device, nvinfer1::ILogger* logger = nullptr);

} // namespace torch_tensorrt::tests
