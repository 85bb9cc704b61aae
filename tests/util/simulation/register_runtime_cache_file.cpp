// The C++ runtime's store in Python, as `torch.classes.tensorrt_stores.RuntimeCacheFile`.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include "core/runtime/RuntimeCacheFile.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::FileGeneration;
using core::runtime::RuntimeCacheFile;

using Generation = std::tuple<int64_t, int64_t, int64_t, int64_t>; // device, inode, size, mtime_ns

Generation to_tuple(const FileGeneration& generation) {
  return {
      static_cast<int64_t>(generation.device),
      static_cast<int64_t>(generation.inode),
      static_cast<int64_t>(generation.size),
      generation.mtime_ns};
}

FileGeneration from_tuple(const Generation& generation) {
  const auto& [device, inode, size, mtime_ns] = generation;
  return {
      .device = static_cast<uint64_t>(device),
      .inode = static_cast<uint64_t>(inode),
      .size = static_cast<uint64_t>(size),
      .mtime_ns = mtime_ns};
}

class Turn : public torch::CustomClassHolder {
 public:
  explicit Turn(RuntimeCacheFile::Turn turn) : turn_(std::move(turn)) {}

  bool is_saved() const {
    return turn_.is_saved;
  }

  std::vector<std::string> offers() const {
    return turn_.offers;
  }

  // The turn may hold no lock.
  void release() {
    if (turn_.lock.owns_lock()) {
      turn_.lock.unlock();
    }
  }

 private:
  RuntimeCacheFile::Turn turn_;
};

class PythonRuntimeCacheFile : public torch::CustomClassHolder {
 public:
  PythonRuntimeCacheFile(std::string path, double lock_timeout)
      : waits_{
            .timeout =
                std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::duration<double>(lock_timeout))},
        path_(std::move(path)),
        file_(path_, waits_) {}

  bool is_empty() const {
    return RuntimeCacheFile::is_empty(path_);
  }

  std::optional<std::tuple<at::Tensor, Generation>> read() const {
    std::optional<RuntimeCacheFile::Contents> contents = file_.read();
    if (!contents) {
      return std::nullopt;
    }
    const std::shared_ptr<std::byte[]> bytes = std::move(contents->bytes);
    const auto size = static_cast<int64_t>(contents->generation.size);
    return std::tuple(at::from_blob(bytes.get(), {size}, [bytes](void*) {}, at::kByte), to_tuple(contents->generation));
  }

  std::optional<std::tuple<Generation, bool, std::string>> replace(
      const at::Tensor& bytes,
      const std::optional<Generation>& expected) const {
    const RuntimeCacheFile::View view(static_cast<const std::byte*>(bytes.const_data_ptr()), bytes.nbytes());
    const auto replaced = file_.replace(view, expected ? std::optional(from_tuple(*expected)) : std::nullopt);
    if (!replaced) {
      return std::nullopt;
    }
    return std::tuple(to_tuple(replaced->generation), replaced->is_written, replaced->in_place);
  }

  c10::intrusive_ptr<Turn> wait_for_turn(const at::Tensor& bytes) const {
    const RuntimeCacheFile::View view(static_cast<const std::byte*>(bytes.const_data_ptr()), bytes.nbytes());
    return c10::make_intrusive<Turn>(file_.wait_for_turn(view));
  }

 private:
  core::runtime::LockWaits waits_;
  const std::string path_;
  const RuntimeCacheFile file_;
};

TORCH_LIBRARY(tensorrt_stores, m) {
  m.class_<Turn>("Turn")
      .def("is_saved", [](const c10::intrusive_ptr<Turn>& self) { return self->is_saved(); })
      .def("offers", [](const c10::intrusive_ptr<Turn>& self) { return self->offers(); })
      .def("release", [](const c10::intrusive_ptr<Turn>& self) { self->release(); });
  m.class_<PythonRuntimeCacheFile>("RuntimeCacheFile")
      .def(torch::init<std::string, double>())
      .def("is_empty", [](const c10::intrusive_ptr<PythonRuntimeCacheFile>& self) { return self->is_empty(); })
      .def("read", [](const c10::intrusive_ptr<PythonRuntimeCacheFile>& self) { return self->read(); })
      .def(
          "replace",
          [](const c10::intrusive_ptr<PythonRuntimeCacheFile>& self,
             const at::Tensor& bytes,
             const std::optional<Generation>& expected) { return self->replace(bytes, expected); })
      .def("wait_for_turn", [](const c10::intrusive_ptr<PythonRuntimeCacheFile>& self, const at::Tensor& bytes) {
        return self->wait_for_turn(bytes);
      });
}

} // namespace
} // namespace torch_tensorrt::tests
