#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

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
  if (!parsed) {
    TORCHTRT_THROW_ERROR("Unknown log level " << level << ", expected 0 (internal error) to 5 (graph)");
  }
  logging::set_reportable_log_level(*parsed);
}

int64_t get_logging_level() {
  return static_cast<int64_t>(logging::get_reportable_log_level());
}

using OptionalCache = std::optional<c10::intrusive_ptr<RuntimeCacheHandle>>;

bool set_runtime_settings(
    const c10::intrusive_ptr<TRTEngine>& engine,
    const std::string& dynamic_shapes_kernel_specialization_strategy,
    const std::string& cuda_graph_strategy,
    const OptionalCache& runtime_cache) {
  return engine->set_runtime_settings({
      .dynamic_shapes_kernel_specialization_strategy = strategy_from_string<DynamicShapesKernelSpecializationStrategy>(
          dynamic_shapes_kernel_specialization_strategy),
      .cuda_graph_strategy = strategy_from_string<CudaGraphStrategy>(cuda_graph_strategy),
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

double to_seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

// Returns `seconds` clamped to 0 to one year.
std::chrono::nanoseconds to_nanoseconds(double seconds) {
  const std::chrono::duration<double> time(std::clamp(seconds, 0.0, 365.0 * 24 * 3600));
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time);
}

// RuntimeCacheHandle::Statistics in the order of its members. Times are in seconds; the last one is 0 without a save.
using StatisticsTuple = std::tuple<
    int64_t,
    std::string,
    int64_t,
    std::string,
    int64_t,
    int64_t,
    int64_t,
    int64_t,
    int64_t,
    double,
    int64_t,
    int64_t,
    double>;

StatisticsTuple to_tuple(const RuntimeCacheHandle::Statistics& s) {
  return {
      s.bytes_loaded,
      s.loaded_from,
      s.rejections,
      s.last_rejection,
      s.saves,
      s.checkpoints,
      s.bytes_written,
      s.merges,
      s.conflicts,
      to_seconds(s.lock_wait),
      s.size,
      s.size_added,
      s.last_save ? to_seconds(s.last_save->time_since_epoch()) : 0.0};
}

// Begins the end of the process, and returns how many seconds it may still take.
double begin_exit() {
  return to_seconds(CheckpointThread::begin_exit() - CheckpointThread::Clock::now());
}

TORCH_LIBRARY(tensorrt, m) {
  m.class_<RuntimeCacheHandle>("RuntimeCacheHandle")
      .def(torch::init<std::string>())
      .def_property("path", [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return self->path(); })
      .def_static("for_path", &RuntimeCacheHandle::for_path)
      .def_property(
          "lock_timeout", // seconds
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) {
            return std::chrono::duration<double>(self->lock_timeout()).count();
          },
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self, double seconds) {
            self->set_lock_timeout(std::chrono::duration_cast<std::chrono::milliseconds>(to_nanoseconds(seconds)));
          })
      .def_property(
          "autosave",
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return self->autosave(); },
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self, bool autosave) { self->set_autosave(autosave); })
      .def_property(
          "checkpoints",
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return self->checkpoints(); },
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self, bool on) { self->set_checkpoints(on); })
      .def("attach", [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { self->attach(); })
      .def("detach", [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return self->detach(); })
      .def("serialize", &RuntimeCacheHandle::serialize)
      .def("deserialize", &RuntimeCacheHandle::deserialize)
      .def("merged", &RuntimeCacheHandle::merged)
      .def("has_cache", &RuntimeCacheHandle::has_cache)
      .def("load", &RuntimeCacheHandle::load, "", {torch::arg("path") = ""})
      .def("save", &RuntimeCacheHandle::save, "", {torch::arg("path") = ""})
      .def(
          "save_within", // seconds
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self, double seconds) {
            return self->save_within(to_nanoseconds(seconds));
          })
      .def(
          "statistics", [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return to_tuple(self->statistics()); })
      .def_pickle(
          [](const c10::intrusive_ptr<RuntimeCacheHandle>& self) { return self->state(); },
          [](const RuntimeCacheHandle::State& state) { return RuntimeCacheHandle::from_state(state); });

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
  m.def("begin_exit", &begin_exit);
  m.def("set_logging_level", &set_logging_level);
  m.def("get_logging_level", &get_logging_level);
}

} // namespace
} // namespace torch_tensorrt::core::runtime
