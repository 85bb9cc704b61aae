#include "core/runtime/RuntimeSettings.h"

#include <array>
#include <ostream>
#include <sstream>

#include "core/util/prelude.h"

namespace torch_tensorrt::core::runtime {
namespace {

template <class Strategy>
struct Names;

// In order of value.
template <>
struct Names<DynamicShapesKernelSpecializationStrategy> {
  static constexpr const char* kKind = "dynamic shapes kernel specialization strategy";
  static constexpr std::array<std::string_view, 3> kAll = {"lazy", "eager", "none"};
};

template <>
struct Names<CudaGraphStrategy> {
  static constexpr const char* kKind = "CUDA graph strategy";
  static constexpr std::array<std::string_view, 2> kAll = {"disabled", "whole_graph_capture"};
};

template <class Strategy>
std::string name_of(Strategy strategy) {
  return std::string(Names<Strategy>::kAll.at(static_cast<size_t>(strategy)));
}

// Returns a text like "lazy, eager or none".
template <class Strategy>
std::string known_ones() {
  constexpr auto& all = Names<Strategy>::kAll;
  std::ostringstream known;
  for (size_t i = 0; i < all.size(); ++i) {
    known << (i == 0 ? "" : i + 1 < all.size() ? ", " : " or ") << all[i];
  }
  return known.str();
}

} // namespace

std::string to_string(DynamicShapesKernelSpecializationStrategy strategy) {
  return name_of(strategy);
}

std::string to_string(CudaGraphStrategy strategy) {
  return name_of(strategy);
}

template <class Strategy>
Strategy strategy_from_string(std::string_view name) {
  for (size_t i = 0; i < Names<Strategy>::kAll.size(); ++i) {
    if (name == Names<Strategy>::kAll[i]) {
      return static_cast<Strategy>(i);
    }
  }
  TORCHTRT_THROW_ERROR(
      "Unknown " << Names<Strategy>::kKind << " '" << name << "', expected " << known_ones<Strategy>());
}

template DynamicShapesKernelSpecializationStrategy strategy_from_string(std::string_view name);
template CudaGraphStrategy strategy_from_string(std::string_view name);

std::ostream& operator<<(std::ostream& stream, const RuntimeSettings& settings) {
  stream << "RuntimeSettings(dynamic_shapes_kernel_specialization_strategy="
         << to_string(settings.dynamic_shapes_kernel_specialization_strategy)
         << ", cuda_graph_strategy=" << to_string(settings.cuda_graph_strategy) << ", runtime_cache=";
  if (settings.runtime_cache == nullptr) {
    stream << "none";
  } else {
    stream << "'" << settings.runtime_cache->path() << "'";
  }
  return stream << ")";
}

} // namespace torch_tensorrt::core::runtime
