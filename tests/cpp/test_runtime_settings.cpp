#include "core/runtime/RuntimeSettings.h"

#include <sstream>
#include <string>

#include "core/util/Exception.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace torch_tensorrt::core::runtime {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

template <class Strategy>
void expect_round_trip(Strategy strategy, const std::string& name, int64_t number) {
  EXPECT_EQ(to_string(strategy), name);
  EXPECT_EQ(strategy_from_string<Strategy>(name), strategy);
  EXPECT_EQ(strategy_from_integer<Strategy>(number), strategy);
}

TEST(RuntimeSettingsTest, StrategiesHaveANameAndANumber) {
  expect_round_trip(DynamicShapesKernelSpecializationStrategy::kLAZY, "lazy", 0);
  expect_round_trip(DynamicShapesKernelSpecializationStrategy::kEAGER, "eager", 1);
  expect_round_trip(DynamicShapesKernelSpecializationStrategy::kNONE, "none", 2);
  expect_round_trip(CudaGraphStrategy::kDISABLED, "disabled", 0);
  expect_round_trip(CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE, "whole_graph_capture", 1);
}

TEST(RuntimeSettingsTest, AnUnknownStrategyIsAnErrorThatListsTheKnownOnes) {
  using Specialization = DynamicShapesKernelSpecializationStrategy;
  const auto lists_specializations = HasSubstr("expected lazy (0), eager (1) or none (2)");
  const auto lists_graphs = HasSubstr("expected disabled (0) or whole_graph_capture (1)");
  for (const char* name : {"", "Lazy", "laz", "lazyy", "0", "disabled"}) {
    EXPECT_THAT(
        [&] { strategy_from_string<Specialization>(name); },
        ThrowsMessage<Error>(AllOf(HasSubstr("'" + std::string(name) + "'"), lists_specializations)));
  }
  EXPECT_THAT([] { strategy_from_string<CudaGraphStrategy>("none"); }, ThrowsMessage<Error>(lists_graphs));
  for (const int64_t number : {int64_t{-1}, int64_t{3}, int64_t{1} << 32}) {
    EXPECT_THAT(
        [&] { strategy_from_integer<Specialization>(number); },
        ThrowsMessage<Error>(AllOf(HasSubstr(" " + std::to_string(number) + ","), lists_specializations)));
  }
  EXPECT_THAT([] { strategy_from_integer<CudaGraphStrategy>(2); }, ThrowsMessage<Error>(lists_graphs));
}

TEST(RuntimeSettingsTest, CachesAreEqualByIdentity) {
  const auto cache = c10::make_intrusive<RuntimeCacheHandle>("/cache.bin");
  const auto same_path = c10::make_intrusive<RuntimeCacheHandle>("/cache.bin");
  const RuntimeSettings settings{.runtime_cache = cache};
  EXPECT_EQ(RuntimeSettings(), RuntimeSettings());
  EXPECT_EQ(settings, RuntimeSettings{.runtime_cache = cache});
  EXPECT_NE(settings, RuntimeSettings{.runtime_cache = same_path});
  EXPECT_NE(settings, RuntimeSettings());
  EXPECT_NE(RuntimeSettings{.cuda_graph_strategy = CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE}, RuntimeSettings());
}

TEST(RuntimeSettingsTest, Prints) {
  std::ostringstream text;
  text << RuntimeSettings() << "\n" << RuntimeSettings{.runtime_cache = c10::make_intrusive<RuntimeCacheHandle>("/c")};
  EXPECT_EQ(
      text.str(),
      "RuntimeSettings(dynamic_shapes_kernel_specialization_strategy=lazy, cuda_graph_strategy=disabled, "
      "runtime_cache=none)\n"
      "RuntimeSettings(dynamic_shapes_kernel_specialization_strategy=lazy, cuda_graph_strategy=disabled, "
      "runtime_cache='/c')");
}

} // namespace
} // namespace torch_tensorrt::core::runtime
