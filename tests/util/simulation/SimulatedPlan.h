#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <NvInferRuntime.h>

namespace torch_tensorrt::tests {

enum class SimulatedOperation : uint32_t {
  kRelu = 0,     // any number of inputs, as many outputs: outputs[i] = max(inputs[i], 0)
  kScaleAdd = 1, // two inputs of one shape and type, one output: scale * inputs[0] + inputs[1]
};

struct SimulatedTensor {
  std::string name;
  nvinfer1::DataType type = nvinfer1::DataType::kFLOAT; // or kINT32, kINT64
  std::vector<int64_t> dims;                            // -1 where dynamic
  // Of an input with a dynamic dimension: what the optimization profile, of which there is one, allows. Same rank as
  // dims.
  std::vector<int64_t> min = {};
  std::vector<int64_t> opt = {};
  std::vector<int64_t> max = {};
};

// Two plans that name a kernel of one name and size share it in a runtime cache.
struct SimulatedKernel {
  std::string name;
  uint64_t size = 0; // bytes of code in a runtime cache
  // false: compiled when an execution context is created. true: specialized for every new set of input shapes at
  // inference, as DynamicShapesKernelSpecializationStrategy says.
  bool per_shape = false;
};

struct SimulatedPlan {
  std::string name; // ICudaEngine::getName()
  SimulatedOperation operation = SimulatedOperation::kRelu;
  float scale = 1.0F;                   // of kScaleAdd
  std::vector<SimulatedTensor> inputs;  // in the order of ICudaEngine::getIOTensorName(), before the outputs
  std::vector<SimulatedTensor> outputs; // shape of their input; -1 where that is dynamic
  std::vector<SimulatedKernel> kernels;
};

// The serialized plan, byte_stream.h's encoding: magic "SIMTRTPL", name (texts), operation (uint32), scale (float),
// then for the inputs and for the outputs their number (uint64) and each one's name (text), type (int32), and dims,
// min, opt, max (each a number and int64s), then the number of kernels (uint64) and each one's name (text), size
// (uint64), per_shape (uint8). Throws torch_tensorrt::Error naming what in `plan` is inconsistent.
std::string make_plan(const SimulatedPlan& plan);

// The inverse. A real plan of TensorRT-RTX is one without tensors and kernels. Throws torch_tensorrt::Error on other
// bytes that make_plan() would not write.
SimulatedPlan parse_plan(std::string_view bytes);

// `count` kernels of `size` bytes named `prefix`0, `prefix`1, ...
std::vector<SimulatedKernel> make_kernels(const std::string& prefix, uint64_t count, uint64_t size);

// The least plan: input "x" and output "y", floats of shape `dims`, kRelu.
SimulatedPlan relu_plan(std::vector<SimulatedKernel> kernels, std::vector<int64_t> dims = {4});

} // namespace torch_tensorrt::tests
