#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>

#include <c10/util/intrusive_ptr.h>

#include "core/runtime/RuntimeCacheHandle.h"

namespace torch_tensorrt::core::runtime {

// When TensorRT-RTX compiles kernels for one shape of an engine with dynamic shapes. Names and values are those of
// nvinfer1::DynamicShapesKernelSpecializationStrategy.
enum class DynamicShapesKernelSpecializationStrategy : int32_t {
  kLAZY = 0,  // in the background; until then, kernels that fit any shape run
  kEAGER = 1, // before the first inference with the shape
  kNONE = 2,  // never
};

// Whether TensorRT-RTX itself runs inferences as CUDA graphs. Names and values are those of
// nvinfer1::CudaGraphStrategy.
enum class CudaGraphStrategy : int32_t {
  kDISABLED = 0,
  kWHOLE_GRAPH_CAPTURE = 1, // one graph of the whole engine per shape, where TensorRT-RTX can capture it
};

// Returns "lazy", "eager" or "none", or "disabled" or "whole_graph_capture".
std::string to_string(DynamicShapesKernelSpecializationStrategy strategy);
std::string to_string(CudaGraphStrategy strategy);

// The inverse of to_string. `Strategy` is one of the two enums above. For an unknown name, throws
// torch_tensorrt::Error, which lists the known names.
template <class Strategy>
Strategy strategy_from_string(std::string_view name);

// The run-time settings of an engine.
struct RuntimeSettings {
  DynamicShapesKernelSpecializationStrategy dynamic_shapes_kernel_specialization_strategy =
      DynamicShapesKernelSpecializationStrategy::kLAZY;
  CudaGraphStrategy cuda_graph_strategy = CudaGraphStrategy::kDISABLED;
  c10::intrusive_ptr<RuntimeCacheHandle> runtime_cache = {}; // null: kernels are not kept; engines may share one

  // Two caches are equal only if they are the same object, whatever their paths.
  bool operator==(const RuntimeSettings&) const = default;
};

std::ostream& operator<<(std::ostream& stream, const RuntimeSettings& settings);

} // namespace torch_tensorrt::core::runtime
