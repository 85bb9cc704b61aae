#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/core/ivalue.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include "core/runtime/RuntimeCacheHandle.h"
#include "core/runtime/RuntimeSettings.h"
#include "core/runtime/TRTEngine.h"
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

// By its name or its number.
template <class Strategy>
Strategy to_strategy(const c10::IValue& value) {
  TORCHTRT_CHECK(value.isString() || value.isInt(), "A strategy is a string or an integer, got a " << value.tagKind());
  return value.isString() ? strategy_from_string<Strategy>(value.toStringView())
                          : strategy_from_integer<Strategy>(value.toInt());
}

using OptionalCache = std::optional<c10::intrusive_ptr<RuntimeCacheHandle>>;

bool set_runtime_settings(
    const c10::intrusive_ptr<TRTEngine>& engine,
    const c10::IValue& dynamic_shapes_kernel_specialization_strategy,
    const c10::IValue& cuda_graph_strategy,
    const OptionalCache& runtime_cache) {
  return engine->set_runtime_settings({
      .dynamic_shapes_kernel_specialization_strategy =
          to_strategy<DynamicShapesKernelSpecializationStrategy>(dynamic_shapes_kernel_specialization_strategy),
      .cuda_graph_strategy = to_strategy<CudaGraphStrategy>(cuda_graph_strategy),
      .runtime_cache = runtime_cache.value_or(c10::intrusive_ptr<RuntimeCacheHandle>()),
  });
}

std::tuple<std::string, std::string, OptionalCache> runtime_settings(const c10::intrusive_ptr<TRTEngine>& engine) {
  const RuntimeSettings settings = engine->runtime_settings();
  return {
      to_string(settings.dynamic_shapes_kernel_specialization_strategy),
      to_string(settings.cuda_graph_strategy),
      settings.runtime_cache == nullptr ? std::nullopt : std::optional(settings.runtime_cache)};
}

std::vector<at::Tensor> execute_engine(
    const std::vector<at::Tensor>& inputs,
    const c10::intrusive_ptr<TRTEngine>& engine) {
  return engine->execute(inputs);
}

TORCH_LIBRARY(tensorrt, m) {
  m.class_<RuntimeCacheHandle>("RuntimeCacheHandle")
      .def(torch::init<std::string>())
      .def_property("path", [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return self->path(); })
      .def_property(
          "autosave",
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return self->autosave(); },
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self, bool autosave) { self->set_autosave(autosave); })
      .def("serialize", &RuntimeCacheHandle::serialize)
      .def("deserialize", &RuntimeCacheHandle::deserialize)
      .def("has_cache", &RuntimeCacheHandle::has_cache)
      .def("load", &RuntimeCacheHandle::load, "", {torch::arg("path") = ""})
      .def("save", &RuntimeCacheHandle::save, "", {torch::arg("path") = ""})
      .def_pickle(
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return self->state(); },
          [](RuntimeCacheHandle::State state) { return c10::make_intrusive<RuntimeCacheHandle>(std::move(state)); });

  m.class_<TRTEngine>("Engine")
      .def(torch::init<const at::Tensor&, std::vector<std::string>, std::vector<std::string>>())
      .def_property("input_names", &TRTEngine::input_names)
      .def_property("output_names", &TRTEngine::output_names)
      .def("runtime_settings", &runtime_settings)
      .def("set_runtime_settings", &set_runtime_settings)
      .def_pickle(
          [](const c10::intrusive_ptr<TRTEngine>& self) { return self->state(); },
          [](const TRTEngine::State& state) { return c10::make_intrusive<TRTEngine>(state); });

  m.def("execute_engine", &execute_engine);
  m.def("set_logging_level", &set_logging_level);
  m.def("get_logging_level", &get_logging_level);
}

} // namespace
} // namespace torch_tensorrt::core::runtime
