#pragma once

#include <memory>

namespace torch_tensorrt::core::util {

// Takes ownership of the object that a TensorRT-RTX create*() function returned. Returns null for null. Plain `delete`
// destroys such an object, because TensorRT 10 removed destroy().
template <class T>
std::shared_ptr<T> make_trt(T* object) {
  return std::shared_ptr<T>(object);
}

} // namespace torch_tensorrt::core::util
