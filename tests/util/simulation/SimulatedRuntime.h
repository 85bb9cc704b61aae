#pragma once

#include <memory>

#include <NvInferRuntime.h>

#include "tests/util/simulation/SimulatedDevice.h"

namespace torch_tensorrt::tests {

// Simulates createInferRuntime(). The caller owns the runtime. Returns nullptr if the call is to fail. The runtime
// deserializes what parse_plan() accepts (SimulatedPlan.h). Its engines have one optimization profile and run
// synchronously on host memory at the addresses given to setTensorAddress(), whatever the stream. `logger`, if given,
// receives every error and must outlive the runtime and everything made by it.
//
// Kernels without per_shape compile when an execution context is created. The others compile at the first enqueueV3
// with new input shapes: before it runs (kEAGER), after it in a thread of the context's own (kLAZY, the default), or
// never (kNONE). The results are the same. With a runtime cache attached, kernels in the cache take no time, and new
// ones are added to it.
//
// What TensorRT-RTX documents as undefined, or does not promise, ends the process by abort_simulation(): destroying an
// IRuntime before its engines, an ICudaEngine before its contexts, or an IRuntimeCache before the last use by a config
// or context that it is attached to. So does every function that is not simulated (unsimulated_interfaces.h). A context
// keeps the settings that its config had when the context was created.
//
// Thread safety: engines and runtimes may be used from any thread, a context or config by one thread at a time, like
// the real ones. Nothing checks this, so that the thread sanitizer sees violations.
nvinfer1::IRuntime* create_infer_runtime(std::shared_ptr<SimulatedDevice> device, nvinfer1::ILogger* logger = nullptr);

} // namespace torch_tensorrt::tests
