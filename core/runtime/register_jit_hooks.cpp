#include <cstdint>
#include <string>
#include <utility>

#include <torch/custom_class.h>
#include <torch/library.h>

#include "core/runtime/RuntimeCacheHandle.h"
#include "core/util/macros.h"

namespace torch_tensorrt::core::runtime {
namespace {

namespace logging = util::logging;

void set_logging_level(int64_t level) {
  const auto parsed = logging::parse_level(std::to_string(level));
  TORCHTRT_CHECK(parsed, "Unknown log level " << level << ", expected 0 (internal error) to 5 (graph)");
  logging::set_reportable_log_level(*parsed);
}

int64_t get_logging_level() {
  return static_cast<int64_t>(logging::get_reportable_log_level());
}

TORCH_LIBRARY(tensorrt, m) {
  m.class_<RuntimeCacheHandle>("RuntimeCacheHandle")
      .def(torch::init<std::string>())
      .def_property("path", [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return self->path(); })
      .def("serialize", &RuntimeCacheHandle::serialize)
      .def("deserialize", &RuntimeCacheHandle::deserialize)
      .def("has_cache", &RuntimeCacheHandle::has_cache)
      .def("load", &RuntimeCacheHandle::load, "", {torch::arg("path") = ""})
      .def("save", &RuntimeCacheHandle::save, "", {torch::arg("path") = ""})
      .def_pickle(
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return self->state(); },
          [](RuntimeCacheHandle::State state) { return c10::make_intrusive<RuntimeCacheHandle>(std::move(state)); });

  m.def("set_logging_level", &set_logging_level);
  m.def("get_logging_level", &get_logging_level);
}

} // namespace
} // namespace torch_tensorrt::core::runtime
