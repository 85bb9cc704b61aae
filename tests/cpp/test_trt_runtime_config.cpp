#include "core/runtime/TRTRuntimeConfig.h"

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "core/runtime/EngineLoader.h"
#include "core/util/file_lock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_testing.h"
#include "tests/util/processes/child_process.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::CudaGraphStrategy;
using core::runtime::DynamicShapesKernelSpecializationStrategy;
using core::runtime::LoadedEngine;
using core::runtime::RuntimeSettings;
using core::runtime::TRTRuntimeConfig;
using core::util::FileLock;
using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RuntimeConfigTest : public RuntimeTest {
 protected:
  // Starts and ends an engine with one kernel, which must succeed, and returns the warnings. `between` runs before the
  // end.
  std::vector<std::string> warnings_of_a_run(const CachePtr& cache, const std::function<void()>& between = [] {}) {
    return warnings_of([&] {
      TRTRuntimeConfig config({.runtime_cache = cache});
      EXPECT_NE(config.create_execution_context(loaded_), nullptr);
      between();
    });
  }

  const WithoutCheckpoints without_checkpoints_;
  const LoadedEngine loaded_ = load_simulated(relu_plan(kernels({"a"})));
};

TEST_F(RuntimeConfigTest, ContextsGetTheSettingsOfTheirTime) {
  TRTRuntimeConfig config(
      {.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy::kEAGER,
       .cuda_graph_strategy = CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE,
       .runtime_cache = new_cache()});
  const auto first =
      config.create_execution_context(loaded_, nvinfer1::ExecutionContextAllocationStrategy::kON_PROFILE_CHANGE);
  config.settings(RuntimeSettings());
  const auto second = config.create_execution_context(loaded_);

  const nvinfer1::IRuntimeConfig& eager = *first->getRuntimeConfig();
  EXPECT_EQ(
      eager.getDynamicShapesKernelSpecializationStrategy(),
      nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
  EXPECT_EQ(eager.getCudaGraphStrategy(), nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE);
  EXPECT_EQ(
      eager.getExecutionContextAllocationStrategy(), nvinfer1::ExecutionContextAllocationStrategy::kON_PROFILE_CHANGE);
  EXPECT_NE(eager.getRuntimeCache(), nullptr);

  const nvinfer1::IRuntimeConfig& lazy = *second->getRuntimeConfig();
  EXPECT_EQ(
      lazy.getDynamicShapesKernelSpecializationStrategy(), nvinfer1::DynamicShapesKernelSpecializationStrategy::kLAZY);
  EXPECT_EQ(lazy.getCudaGraphStrategy(), nvinfer1::CudaGraphStrategy::kDISABLED);
  EXPECT_EQ(lazy.getExecutionContextAllocationStrategy(), nvinfer1::ExecutionContextAllocationStrategy::kSTATIC);
  EXPECT_EQ(lazy.getRuntimeCache(), nullptr);
}

TEST_F(RuntimeConfigTest, ContextsOutliveConfigAndCache) {
  auto config = std::make_unique<TRTRuntimeConfig>(RuntimeSettings{.runtime_cache = new_cache()});
  const auto context = config->create_execution_context(loaded_);
  config.reset();
  EXPECT_NE(context->getRuntimeConfig()->getRuntimeCache(), nullptr);
}

TEST_F(RuntimeConfigTest, InitializesOnce) {
  TRTRuntimeConfig config({.runtime_cache = new_cache()});
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] { config.create_execution_context(loaded_); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(device_->calls("ICudaEngine::createRuntimeConfig"), 1U);
  EXPECT_EQ(device_->calls("IRuntimeConfig::setRuntimeCache"), 1U);
}

TEST_F(RuntimeConfigTest, TheLastEngineOnAPathSavesItsCache) {
  const auto start = [&](const KernelNames& names) {
    auto config =
        std::make_unique<TRTRuntimeConfig>(RuntimeSettings{.runtime_cache = RuntimeCacheHandle::for_path(path_)});
    config->create_execution_context(load_simulated(relu_plan(kernels(names))));
    return config;
  };
  auto first = start({"a", "b"});
  auto second = start({"b", "c"});
  EXPECT_EQ(device_->counters().compilations, 3U);
  device_->reset_counters();
  first.reset();
  EXPECT_EQ(device_->calls("IRuntimeCache::serialize"), 0U);
  EXPECT_THAT(names_in(directory_.path()), IsEmpty());
  second.reset();
  EXPECT_EQ(device_->calls("IRuntimeCache::serialize"), 1U);
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b", "c"));
}

TEST_F(RuntimeConfigTest, SettingsWithAnotherCacheEndTheUseOfTheOneBefore) {
  TRTRuntimeConfig config({.runtime_cache = new_cache()});
  config.create_execution_context(loaded_);
  RuntimeSettings settings = config.settings();
  settings.cuda_graph_strategy = CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE;
  EXPECT_TRUE(config.settings(settings));
  config.create_execution_context(loaded_);
  EXPECT_THAT(names_in(directory_.path()), IsEmpty()) << "the same cache stays in use";

  const auto other = c10::make_intrusive<RuntimeCacheHandle>(directory_.file("other.bin"));
  settings.runtime_cache = other;
  EXPECT_TRUE(config.settings(settings));
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
  EXPECT_TRUE(config.settings(RuntimeSettings()));
  EXPECT_FALSE(std::filesystem::exists(other->path())) << "it was not used";

  config.settings(settings);
  config.create_execution_context(loaded_);
  {
    TRTRuntimeConfig second({.runtime_cache = other});
    second.create_execution_context(loaded_);
    config.settings(RuntimeSettings());
    EXPECT_FALSE(std::filesystem::exists(other->path())) << "another engine uses it";
  }
  EXPECT_TRUE(std::filesystem::exists(other->path()));
}

TEST_F(RuntimeConfigTest, SavesNothingWithoutAutosaveOrPath) {
  const auto cache = new_cache();
  cache->set_autosave(false);
  EXPECT_THAT(warnings_of_a_run(cache), IsEmpty());
  EXPECT_THAT(warnings_of_a_run(c10::make_intrusive<RuntimeCacheHandle>("")), IsEmpty());
  EXPECT_THAT(warnings_of_a_run(nullptr), IsEmpty());
  EXPECT_THAT(names_in(directory_.path()), IsEmpty());
}

TEST_F(RuntimeConfigTest, AForkedChildSavesItsOwnKernelsAlone) {
  auto config =
      std::make_unique<TRTRuntimeConfig>(RuntimeSettings{.runtime_cache = RuntimeCacheHandle::for_path(path_)});
  config->create_execution_context(loaded_);
  ChildProcess child([&](Channel&) {
    config.reset();
    require(names_in(directory_.path()).empty(), "a forked child saved its parent's cache");
    TRTRuntimeConfig own({.runtime_cache = RuntimeCacheHandle::for_path(path_)});
    own.create_execution_context(load_simulated(relu_plan(kernels({"b"}))));
  });
  EXPECT_EQ(child.wait(), 0);
  EXPECT_THAT(kernels_on_disk(), ElementsAre("b"));
  config.reset();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
}

TEST_F(RuntimeConfigTest, AForkedChildThatTakesACacheOverSavesItWithItsLastEngine) {
  const CachePtr cache = new_cache();
  auto config = std::make_unique<TRTRuntimeConfig>(RuntimeSettings{.runtime_cache = cache});
  config->create_execution_context(loaded_);
  ChildProcess child([&](Channel&) {
    cache->set_autosave(true);
    cache->set_checkpoints(false);
    auto own = std::make_unique<TRTRuntimeConfig>(RuntimeSettings{.runtime_cache = cache});
    own->create_execution_context(load_simulated(relu_plan(kernels({"b"}))));
    own.reset();
    require(kernels_on_disk() == KernelNames{"b"}, "the last engine of a forked child did not save the cache");
  });
  EXPECT_EQ(child.wait(), 0);
  config.reset();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
}

TEST_F(RuntimeConfigTest, ALockHeldAtTheEndIsOneWarning) {
  const auto cache = new_cache();
  cache->set_lock_timeout(milliseconds(1));
  FileLock held(FileLock::lock_path(path_));
  EXPECT_THAT(
      warnings_of_a_run(cache, [&] { held.lock(); }), ElementsAre(AllOf(HasSubstr(held.path()), HasSubstr("save"))));
}

TEST_F(RuntimeConfigTest, WhatFailsAboutTheCacheIsOneWarning) {
  for (const char* call :
       {"IRuntimeConfig::createRuntimeCache", "IRuntimeConfig::setRuntimeCache", "IRuntimeCache::serialize"}) {
    SCOPED_TRACE(call);
    device_->fail(call);
    EXPECT_THAT(warnings_of_a_run(new_cache()), ElementsAre(HasSubstr(path_)));
    device_->fail(call, 0);
    EXPECT_THAT(names_in(directory_.path()), IsEmpty());
  }
  save_as_other({"a"});
  device_->fail("IRuntimeCache::deserialize");
  EXPECT_THAT(warnings_of_a_run(new_cache()), ElementsAre(HasSubstr(path_)));
}

TEST_F(RuntimeConfigTest, KnowsWhatOthersMayCapture) {
  TRTRuntimeConfig config;
  const auto context = config.create_execution_context(loaded_);
  const auto capturable = [&](bool has_dynamic_inputs) {
    return config.is_monolithic_capturable(has_dynamic_inputs, *context, nullptr);
  };
  EXPECT_TRUE(capturable(false));
  EXPECT_FALSE(capturable(true)); // lazy
  device_->fail("IExecutionContext::isStreamCapturable", 1);
  EXPECT_FALSE(capturable(false));
  config.settings({.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy::kEAGER});
  EXPECT_TRUE(capturable(true));
  config.settings({.cuda_graph_strategy = CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE});
  EXPECT_FALSE(capturable(false));
}

TEST_F(RuntimeConfigTest, Prints) {
  TRTRuntimeConfig config({.runtime_cache = new_cache()});
  const auto printed = [&] {
    std::ostringstream text;
    text << config;
    return text.str();
  };
  EXPECT_THAT(printed(), AllOf(HasSubstr("'" + path_ + "'"), HasSubstr("initialized=false")));
  config.create_execution_context(loaded_);
  EXPECT_THAT(printed(), AllOf(HasSubstr("initialized=true"), HasSubstr("in_use=true")));
}

} // namespace
} // namespace torch_tensorrt::tests
