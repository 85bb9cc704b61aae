// A program without Python that forks while its threads compile, save and checkpoint.

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "core/runtime/RuntimeCacheHandle.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_testing.h"
#include "tests/util/processes/child_process.h"
#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/simulation/simulated_engine_loader.h"

namespace torch_tensorrt::tests {
namespace {

using ::testing::IsSupersetOf;

constexpr int kForks = 200;

class ForkTest : public RuntimeTest {
 protected:
  static void compile_as_engine(const CachePtr& cache, const std::string& kernel) {
    const RuntimeCacheHandle::Compiling mark(cache);
    compile(cache, {kernel});
  }
};

TEST_F(ForkTest, ChildrenOfABusyProcessUseTheCacheAtOnce) {
  KernelNames compiled;
  std::atomic<bool> is_done{false};
  std::thread compiling([&] {
    const CachePtr cache = RuntimeCacheHandle::for_path(path_);
    while (!is_done) {
      const std::string kernel = "parent" + std::to_string(compiled.size());
      compile_as_engine(cache, kernel);
      compiled.insert(kernel);
      std::this_thread::sleep_for(std::chrono::milliseconds(10)); // otherwise the file grows too large for many merges
    }
    cache->save();
  });
  KernelNames children;
  for (int i = 0; i < kForks; ++i) {
    const std::string kernel = "child" + std::to_string(i);
    ChildProcess child([&](Channel&) {
      ::alarm(60);
      // The parent's device may be in use.
      const ScopedSimulation simulation(std::make_shared<SimulatedDevice>());
      const CachePtr cache = RuntimeCacheHandle::for_path(path_);
      require(!cache->has_cache(), "a child got its parent's cache");
      compile_as_engine(cache, kernel);
      cache->save();
    });
    ASSERT_EQ(child.wait(), 0) << "in fork " << i;
    children.insert(kernel);
  }
  is_done = true;
  compiling.join();
  EXPECT_THAT(kernels_on_disk(), IsSupersetOf(compiled));
  EXPECT_THAT(kernels_on_disk(), IsSupersetOf(children));
}

TEST_F(ForkTest, AnInheritedCacheIsEmptyIfItWasLiveAndStaysIfItWasPending) {
  save_as_other({"a"});
  const CachePtr live = new_cache();
  compile_as_engine(live, "b");
  const CachePtr pending = new_cache();
  pending->load();
  ChildProcess child([&](Channel&) {
    require(!live->has_cache() && live->save() == 0, "a child got its parent's live cache");
    require(kernels_in(pending->serialize()) == KernelNames{"a"}, "a child lost what its parent had loaded");
    compile_as_engine(live, "c");
    require(live->save() > 0, "an inherited cache can't be used again");
  });
  EXPECT_EQ(child.wait(), 0);
  EXPECT_THAT(kernels_on_disk(), IsSupersetOf({"a", "c"}));
  live->save();
  EXPECT_THAT(kernels_on_disk(), IsSupersetOf({"a", "b", "c"}));
}

} // namespace
} // namespace torch_tensorrt::tests
