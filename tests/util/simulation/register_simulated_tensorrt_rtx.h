#pragma once

#include <memory>
#include <optional>

#include <NvInferRuntime.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include "tests/util/simulation/SimulatedDevice.h"

namespace torch_tensorrt::tests {

// An object of TensorRT-RTX's interface as Python has it. It keeps nothing else alive, so that the simulation notices
// when the product lets objects go in the wrong order.
template <class T>
struct Owned : torch::CustomClassHolder {
  explicit Owned(T* owned) : object(owned) {}

  const std::unique_ptr<T> object;
};

// None in Python for a null pointer.
template <class T>
using OptionalOwned = std::optional<c10::intrusive_ptr<Owned<T>>>;

// Registers the classes of a runtime, and of what comes out of it, in `torch.classes.tensorrt_simulated`: methods named
// as in tensorrt_rtx's Python API, with enums, addresses and streams as integers, shapes as lists, bytes as uint8
// tensors. tests/util/simulation/simulated_tensorrt_rtx.py gives them the shape of that API. Torch lets Python's other
// threads run during their methods.
void register_simulated_tensorrt_rtx(torch::Library& library);

// Its errors go to the log.
OptionalOwned<nvinfer1::IRuntime> create_owned_runtime(std::shared_ptr<SimulatedDevice> device);

} // namespace torch_tensorrt::tests
