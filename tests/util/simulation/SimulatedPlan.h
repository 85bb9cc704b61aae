#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <NvInferRuntime.h>

namespace torch_tensorrt::tests {

enum class SimulatedOperation : uint32_t {
  kRelu = 0,     // any number of inputs and as many outputs: outputs[i] = max(inputs[i], 0)
  kScaleAdd = 1, // two inputs of the same shape and type, one output: scale * inputs[0] + inputs[1]
};

struct SimulatedTensor {
  std::string name;
  nvinfer1::DataType type = nvinfer1::DataType::kFLOAT; // or kINT32, kINT64
  std::vector<int64_t> dims;                            // -1 where dynamic
  // For an input with a dynamic dimension: what the only optimization profile allows. Same rank as dims.
  std::vector<int64_t> min = {};
  std::vector<int64_t> opt = {};
  std::vector<int64_t> max = {};
};

// Kernels with the same name and size, even of different plans, are one kernel in a runtime cache.
struct SimulatedKernel {
  std::string name;
  uint64_t size = 0; // bytes of code in a runtime cache
  // If false, the kernel is compiled when an execution context is created. If true, it is specialized at inference for
  // every new set of input shapes, as DynamicShapesKernelSpecializationStrategy says.
  bool per_shape = false;
};

struct SimulatedPlan {
  std::string name; // ICudaEngine::getName()
  SimulatedOperation operation = SimulatedOperation::kRelu;
  float scale = 1.0F;                   // for kScaleAdd
  std::vector<SimulatedTensor> inputs;  // in the order of ICudaEngine::getIOTensorName(), before the outputs
  std::vector<SimulatedTensor> outputs; // with the shape of their input; -1 where that is dynamic
  std::vector<SimulatedKernel> kernels;
};

// Returns the serialized plan in byte_stream.h's encoding: magic "SIMTRTPL", name (texts), operation (uint32), scale
// (float). Then, for the inputs and for the outputs, their number (uint64) and for each one its name (text), type
// (int32), dims, min, opt and max (each a number and int64s). Then the number of kernels (uint64) and for each one its
// name (text), size (uint64) and per_shape (uint8). Throws torch_tensorrt::Error if `plan` is inconsistent, naming the
// cause.
std::string make_plan(const SimulatedPlan& plan);

// The inverse of make_plan(). A real plan of TensorRT-RTX is parsed as one without tensors and kernels. Throws
// torch_tensorrt::Error on other bytes that make_plan() would not write.
SimulatedPlan parse_plan(std::string_view bytes);

// `count` kernels of `size` bytes, named `prefix`0, `prefix`1, ...
std::vector<SimulatedKernel> make_kernels(const std::string& prefix, uint64_t count, uint64_t size);

// The smallest plan: kRelu with input "x" and output "y", floats of shape `dims`.
SimulatedPlan relu_plan(std::vector<SimulatedKernel> kernels, std::vector<int64_t> dims = {4});

} // namespace torch_tensorrt::tests
