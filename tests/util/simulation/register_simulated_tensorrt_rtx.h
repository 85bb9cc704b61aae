#pragma once

#include <memory>
#include <optional>

#include <NvInferRuntime.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include "tests/util/simulation/SimulatedDevice.h"

namespace torch_tensorrt::tests {

// An object of TensorRT-RTX's interface as Python sees it. It keeps nothing else alive, so that the simulation notices
// when the product destroys objects in the wrong order.
template <class T>
struct Owned : torch::CustomClassHolder {
  explicit Owned(T* owned) : object(owned) {}

  const std::unique_ptr<T> object;
};

// A null pointer is None in Python.
template <class T>
using OptionalOwned = std::optional<c10::intrusive_ptr<Owned<T>>>;

// Registers the classes of a runtime and of the objects it makes in `torch.classes.tensorrt_simulated`. The methods
// have the names of tensorrt_rtx's Python API. Enums, addresses and streams are integers, shapes are lists, and bytes
// are uint8 tensors. tests/util/simulation/simulated_tensorrt_rtx.py wraps them in that API. Torch lets Python's other
// threads run during their methods.
void register_simulated_tensorrt_rtx(torch::Library& library);

// Logs the runtime's errors.
OptionalOwned<nvinfer1::IRuntime> create_owned_runtime(std::shared_ptr<SimulatedDevice> device);

} // namespace torch_tensorrt::tests
