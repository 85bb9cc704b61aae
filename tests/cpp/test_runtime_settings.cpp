#include "core/runtime/RuntimeSettings.h"

#include <sstream>

#include "gtest/gtest.h"

namespace torch_tensorrt::core::runtime {
namespace {

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
