#pragma once

#include <memory>

namespace torch_tensorrt::core::util {

// Takes ownership of what a TensorRT-RTX create*() function returned; null stays null. TensorRT-RTX objects are
// destroyed by plain `delete` since TensorRT 10 (NvInferRuntime.h: destroy() is gone).
template <class T>
std::shared_ptr<T> make_trt(T* object) {
  return std::shared_ptr<T>(object);
}

} // namespace torch_tensorrt::core::util
