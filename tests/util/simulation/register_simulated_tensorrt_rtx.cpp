#include "tests/util/simulation/register_simulated_tensorrt_rtx.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include "core/util/prelude.h"
#include "tests/util/simulation/SimulatedRuntime.h"
#include "tests/util/simulation/simulated_engine_loader.h"

namespace torch_tensorrt::tests {
namespace {

using nvinfer1::ICudaEngine;
using nvinfer1::IExecutionContext;
using nvinfer1::IRuntime;
using nvinfer1::IRuntimeCache;
using nvinfer1::IRuntimeConfig;

template <class T>
using OwnedPtr = c10::intrusive_ptr<Owned<T>>;

using Extents = std::vector<int64_t>;

template <class T>
OptionalOwned<T> own(T* object) {
  return object == nullptr ? std::nullopt : std::optional(c10::make_intrusive<Owned<T>>(object));
}

std::optional<at::Tensor> tensor_of(nvinfer1::IHostMemory* memory) {
  if (memory == nullptr) {
    return std::nullopt;
  }
  const std::shared_ptr<nvinfer1::IHostMemory> bytes(memory);
  return at::from_blob(bytes->data(), {static_cast<int64_t>(bytes->size())}, [bytes](void*) {}, at::kByte);
}

Extents to_extents(const nvinfer1::Dims& dims) {
  return {dims.d, dims.d + std::max(dims.nbDims, 0)};
}

nvinfer1::Dims to_dims(const Extents& extents) {
  TORCHTRT_CHECK(extents.size() <= nvinfer1::Dims::MAX_DIMS, "A shape of rank " << extents.size());
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<int32_t>(extents.size());
  std::copy(extents.begin(), extents.end(), dims.d);
  return dims;
}

cudaStream_t to_stream(int64_t handle) {
  return reinterpret_cast<cudaStream_t>(handle); // NOLINT: so does tensorrt_rtx
}

std::vector<Extents> profile_shapes(const OwnedPtr<ICudaEngine>& self, const std::string& name, int64_t profile) {
  std::vector<Extents> shapes;
  for (const auto which :
       {nvinfer1::OptProfileSelector::kMIN, nvinfer1::OptProfileSelector::kOPT, nvinfer1::OptProfileSelector::kMAX}) {
    shapes.push_back(to_extents(self->object->getProfileShape(name.c_str(), static_cast<int32_t>(profile), which)));
  }
  return shapes;
}

// The names of the inputs whose shape is missing, or nullopt if TensorRT-RTX fails.
std::optional<std::vector<std::string>> infer_shapes(const OwnedPtr<IExecutionContext>& self) {
  std::vector<const char*> names(static_cast<size_t>(self->object->getEngine().getNbIOTensors()));
  const int32_t count = self->object->inferShapes(static_cast<int32_t>(names.size()), names.data());
  return count < 0 ? std::nullopt : std::optional(std::vector<std::string>(names.begin(), names.begin() + count));
}

void register_cache_and_config(torch::Library& library) {
  library.class_<Owned<IRuntimeCache>>("RuntimeCache")
      .def("serialize", [](const OwnedPtr<IRuntimeCache>& self) { return tensor_of(self->object->serialize()); })
      .def(
          "deserialize",
          [](const OwnedPtr<IRuntimeCache>& self, const at::Tensor& bytes) {
            return self->object->deserialize(bytes.const_data_ptr(), bytes.nbytes());
          })
      .def("reset", [](const OwnedPtr<IRuntimeCache>& self) { return self->object->reset(); });

  library.class_<Owned<IRuntimeConfig>>("RuntimeConfig")
      .def(
          "create_runtime_cache",
          [](const OwnedPtr<IRuntimeConfig>& self) { return own(self->object->createRuntimeCache()); })
      .def(
          "set_runtime_cache",
          [](const OwnedPtr<IRuntimeConfig>& self, const OwnedPtr<IRuntimeCache>& cache) {
            return self->object->setRuntimeCache(*cache->object);
          })
      .def_property(
          "dynamic_shapes_kernel_specialization_strategy",
          [](const OwnedPtr<IRuntimeConfig>& self) {
            return static_cast<int64_t>(self->object->getDynamicShapesKernelSpecializationStrategy());
          },
          [](const OwnedPtr<IRuntimeConfig>& self, int64_t strategy) {
            self->object->setDynamicShapesKernelSpecializationStrategy(
                static_cast<nvinfer1::DynamicShapesKernelSpecializationStrategy>(strategy));
          })
      .def(
          "set_cuda_graph_strategy",
          [](const OwnedPtr<IRuntimeConfig>& self, int64_t strategy) {
            return self->object->setCudaGraphStrategy(static_cast<nvinfer1::CudaGraphStrategy>(strategy));
          })
      .def("get_cuda_graph_strategy", [](const OwnedPtr<IRuntimeConfig>& self) {
        return static_cast<int64_t>(self->object->getCudaGraphStrategy());
      });
}

void register_context(torch::Library& library) {
  library.class_<Owned<IExecutionContext>>("ExecutionContext")
      .def(
          "set_input_shape",
          [](const OwnedPtr<IExecutionContext>& self, const std::string& name, const Extents& shape) {
            return self->object->setInputShape(name.c_str(), to_dims(shape));
          })
      .def(
          "get_tensor_shape",
          [](const OwnedPtr<IExecutionContext>& self, const std::string& name) {
            return to_extents(self->object->getTensorShape(name.c_str()));
          })
      .def("infer_shapes", &infer_shapes)
      .def(
          "set_tensor_address",
          [](const OwnedPtr<IExecutionContext>& self, const std::string& name, int64_t memory) {
            return self->object->setTensorAddress(name.c_str(), reinterpret_cast<void*>(memory)); // NOLINT
          })
      .def(
          "is_stream_capturable",
          [](const OwnedPtr<IExecutionContext>& self, int64_t stream) {
            return self->object->isStreamCapturable(to_stream(stream));
          })
      .def("execute_async_v3", [](const OwnedPtr<IExecutionContext>& self, int64_t stream) {
        return self->object->enqueueV3(to_stream(stream));
      });
}

void register_engine_and_runtime(torch::Library& library) {
  library.class_<Owned<ICudaEngine>>("CudaEngine")
      .def_property(
          "num_io_tensors",
          [](const OwnedPtr<ICudaEngine>& self) { return static_cast<int64_t>(self->object->getNbIOTensors()); })
      .def(
          "get_tensor_name",
          [](const OwnedPtr<ICudaEngine>& self, int64_t index) {
            return std::string(self->object->getIOTensorName(static_cast<int32_t>(index)));
          })
      .def(
          "get_tensor_mode",
          [](const OwnedPtr<ICudaEngine>& self, const std::string& name) {
            return static_cast<int64_t>(self->object->getTensorIOMode(name.c_str()));
          })
      .def(
          "get_tensor_dtype",
          [](const OwnedPtr<ICudaEngine>& self, const std::string& name) {
            return static_cast<int64_t>(self->object->getTensorDataType(name.c_str()));
          })
      .def(
          "get_tensor_shape",
          [](const OwnedPtr<ICudaEngine>& self, const std::string& name) {
            return to_extents(self->object->getTensorShape(name.c_str()));
          })
      .def(
          "get_tensor_location",
          [](const OwnedPtr<ICudaEngine>& self, const std::string& name) {
            return static_cast<int64_t>(self->object->getTensorLocation(name.c_str()));
          })
      .def(
          "get_tensor_format",
          [](const OwnedPtr<ICudaEngine>& self, const std::string& name) {
            return static_cast<int64_t>(self->object->getTensorFormat(name.c_str()));
          })
      .def("get_tensor_profile_shape", &profile_shapes)
      .def("serialize", [](const OwnedPtr<ICudaEngine>& self) { return tensor_of(self->object->serialize()); })
      .def(
          "create_runtime_config",
          [](const OwnedPtr<ICudaEngine>& self) { return own(self->object->createRuntimeConfig()); })
      .def("create_execution_context", [](const OwnedPtr<ICudaEngine>& self, const OwnedPtr<IRuntimeConfig>& config) {
        return own(self->object->createExecutionContext(config->object.get()));
      });

  library.class_<Owned<IRuntime>>("Runtime").def(
      "deserialize_cuda_engine", [](const OwnedPtr<IRuntime>& self, const at::Tensor& plan) {
        return own(self->object->deserializeCudaEngine(plan.const_data_ptr(), plan.nbytes()));
      });
}

} // namespace

void register_simulated_tensorrt_rtx(torch::Library& library) {
  // A class must be registered before the methods that take or return it.
  register_cache_and_config(library);
  register_context(library);
  register_engine_and_runtime(library);
}

OptionalOwned<IRuntime> create_owned_runtime(std::shared_ptr<SimulatedDevice> device) {
  return own(create_infer_runtime(std::move(device), &log_forwarder()));
}

} // namespace torch_tensorrt::tests
