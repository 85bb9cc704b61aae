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
  kLAZY = 0,  // in the background; kernels that fit any shape run until then
  kEAGER = 1, // before the first inference with the shape
  kNONE = 2,  // never
};

// Whether TensorRT-RTX itself runs inferences as CUDA graphs. Names and values are those of
// nvinfer1::CudaGraphStrategy.
enum class CudaGraphStrategy : int32_t {
  kDISABLED = 0,
  kWHOLE_GRAPH_CAPTURE = 1, // a graph of the whole engine for each shape; TensorRT-RTX skips it where it can't be
};

// "lazy", "eager" or "none"; "disabled" or "whole_graph_capture".
std::string to_string(DynamicShapesKernelSpecializationStrategy strategy);
std::string to_string(CudaGraphStrategy strategy);

// The inverse of to_string. `Strategy` is one of the two above. Throws torch_tensorrt::Error listing the known names
// for an unknown one.
template <class Strategy>
Strategy strategy_from_string(std::string_view name);

// The run-time knobs of an engine.
struct RuntimeSettings {
  DynamicShapesKernelSpecializationStrategy dynamic_shapes_kernel_specialization_strategy =
      DynamicShapesKernelSpecializationStrategy::kLAZY;
  CudaGraphStrategy cuda_graph_strategy = CudaGraphStrategy::kDISABLED;
  c10::intrusive_ptr<RuntimeCacheHandle> runtime_cache = {}; // null: kernels are kept nowhere; else may be shared

  // Two caches are equal if they are one object, whatever their paths.
  bool operator==(const RuntimeSettings&) const = default;
};

std::ostream& operator<<(std::ostream& stream, const RuntimeSettings& settings);

} // namespace torch_tensorrt::core::runtime
