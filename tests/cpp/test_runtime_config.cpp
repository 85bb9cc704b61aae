#include "core/runtime/TRTRuntimeConfig.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/runtime/EngineLoader.h"
#include "core/util/Exception.h"
#include "core/util/file_lock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_testing.h"

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
using ::testing::ThrowsMessage;

class RuntimeConfigTest : public RuntimeTest {
 protected:
  // Its lock is not waited for.
  CachePtr impatient_cache() const {
    return c10::make_intrusive<RuntimeCacheHandle>(path_, milliseconds(1));
  }

  // A start and an end of an engine with one kernel, which must succeed; the warnings of it. `between` runs before the
  // end.
  std::vector<std::string> warnings_of_a_run(const CachePtr& cache, const std::function<void()>& between = [] {}) {
    return warnings_of([&] {
      TRTRuntimeConfig config({.runtime_cache = cache});
      EXPECT_NE(config.create_execution_context(loaded_.engine.get()), nullptr);
      between();
      config.save_runtime_cache();
    });
  }

  const LoadedEngine loaded_ = load_simulated(relu_plan(kernels({"a"})));
};

TEST_F(RuntimeConfigTest, SettingsTellWhetherTheyChanged) {
  TRTRuntimeConfig config;
  EXPECT_EQ(config.settings(), RuntimeSettings());
  EXPECT_FALSE(config.settings(RuntimeSettings()));
  const RuntimeSettings eager{
      .dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy::kEAGER};
  EXPECT_TRUE(config.settings(eager));
  EXPECT_FALSE(config.settings(eager));
  EXPECT_EQ(config.settings(), eager);
}

TEST_F(RuntimeConfigTest, ContextsGetTheSettingsOfTheirTime) {
  TRTRuntimeConfig config(
      {.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy::kEAGER,
       .cuda_graph_strategy = CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE,
       .runtime_cache = new_cache()});
  const auto first = config.create_execution_context(
      loaded_.engine.get(), nvinfer1::ExecutionContextAllocationStrategy::kON_PROFILE_CHANGE);
  config.settings(RuntimeSettings());
  const auto second = config.create_execution_context(loaded_.engine.get());

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
  const auto context = config->create_execution_context(loaded_.engine.get());
  config.reset();
  EXPECT_NE(context->getRuntimeConfig()->getRuntimeCache(), nullptr);
}

TEST_F(RuntimeConfigTest, TheSecondStartCompilesNothing) {
  EXPECT_THAT(warnings_of_a_run(new_cache()), IsEmpty());
  EXPECT_EQ(device_->counters().compilations, 1U);
  device_->reset_counters();
  EXPECT_THAT(warnings_of_a_run(new_cache()), IsEmpty());
  EXPECT_EQ(device_->counters().compilations, 0U);
  EXPECT_EQ(device_->counters().cache_hits, 1U);
}

TEST_F(RuntimeConfigTest, EnginesShareOneCache) {
  const auto cache = new_cache();
  warnings_of_a_run(cache);
  warnings_of_a_run(cache);
  EXPECT_EQ(device_->counters().compilations, 1U);
  EXPECT_EQ(device_->counters().cache_hits, 1U);
}

TEST_F(RuntimeConfigTest, InitializesOnce) {
  TRTRuntimeConfig config({.runtime_cache = new_cache()});
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      config.ensure_initialized(loaded_.engine.get());
      config.create_execution_context(loaded_.engine.get());
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(device_->calls("ICudaEngine::createRuntimeConfig"), 1U);
  EXPECT_EQ(device_->calls("IRuntimeConfig::setRuntimeCache"), 1U);
}

TEST_F(RuntimeConfigTest, ServesOneEngineUntilReset) {
  const LoadedEngine other = load_simulated(relu_plan(kernels({"b"})));
  TRTRuntimeConfig config({.runtime_cache = new_cache()});
  config.ensure_initialized(loaded_.engine.get());
  EXPECT_THAT(
      [&] { config.ensure_initialized(other.engine.get()); }, ThrowsMessage<Error>(HasSubstr("another engine")));
  EXPECT_THROW(config.ensure_initialized(nullptr), Error);
  config.reset();
  config.create_execution_context(other.engine.get());
  config.save_runtime_cache();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("b"));
}

TEST_F(RuntimeConfigTest, AnotherCacheSavesTheOneBefore) {
  TRTRuntimeConfig config({.runtime_cache = new_cache()});
  config.create_execution_context(loaded_.engine.get());
  RuntimeSettings settings = config.settings();
  settings.cuda_graph_strategy = CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE;
  EXPECT_TRUE(config.settings(settings));
  EXPECT_THAT(names_in(directory_.path()), IsEmpty());
  settings.runtime_cache = c10::make_intrusive<RuntimeCacheHandle>(directory_.file("other.bin"));
  EXPECT_TRUE(config.settings(settings));
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));

  // The new one was not used.
  config.save_runtime_cache();
  EXPECT_FALSE(std::filesystem::exists(directory_.file("other.bin")));
  config.create_execution_context(loaded_.engine.get());
  EXPECT_TRUE(config.settings(RuntimeSettings()));
  EXPECT_TRUE(std::filesystem::exists(directory_.file("other.bin")));
}

TEST_F(RuntimeConfigTest, SavesOnItsOwnWhereItMay) {
  const auto cache = new_cache();
  cache->set_autosave(false);
  EXPECT_THAT(warnings_of_a_run(cache), IsEmpty());
  EXPECT_THAT(warnings_of_a_run(c10::make_intrusive<RuntimeCacheHandle>("")), IsEmpty());
  EXPECT_THAT(warnings_of_a_run(nullptr), IsEmpty());
  EXPECT_THAT(names_in(directory_.path()), IsEmpty());
}

TEST_F(RuntimeConfigTest, AForkedChildDoesNotSaveItsParentsCache) {
  TRTRuntimeConfig config({.runtime_cache = new_cache()});
  config.create_execution_context(loaded_.engine.get());
  const pid_t child = fork();
  if (child == 0) {
    config.save_runtime_cache();
    _exit(0);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_THAT(names_in(directory_.path()), IsEmpty());
  config.save_runtime_cache();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
}

TEST_F(RuntimeConfigTest, ALockHeldAtTheStartIsOneWarning) {
  save_as_other({"a"});
  FileLock held(FileLock::lock_path(path_));
  held.lock();
  EXPECT_THAT(
      warnings_of_a_run(impatient_cache(), [&] { held.unlock(); }),
      ElementsAre(AllOf(HasSubstr(held.path()), HasSubstr("load"))));
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
}

TEST_F(RuntimeConfigTest, ALockHeldAtTheEndIsOneWarning) {
  FileLock held(FileLock::lock_path(path_));
  EXPECT_THAT(
      warnings_of_a_run(impatient_cache(), [&] { held.lock(); }),
      ElementsAre(AllOf(HasSubstr(held.path()), HasSubstr("save"))));
}

TEST_F(RuntimeConfigTest, ACorruptFileIsOneWarningAndReplaced) {
  save_as_other({"a", "b"});
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 1);
  EXPECT_THAT(warnings_of_a_run(new_cache()), ElementsAre(AllOf(HasSubstr(path_), HasSubstr("rejected"))));
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
}

TEST_F(RuntimeConfigTest, ACacheOfAnotherVersionIsOneWarningAndReplaced) {
  save_as_other({"a"});
  device_->set_environment({.cuda_driver = 12090});
  EXPECT_THAT(warnings_of_a_run(new_cache()), ElementsAre(AllOf(HasSubstr(path_), HasSubstr("CUDA driver"))));
  EXPECT_THAT(warnings_of_a_run(new_cache()), IsEmpty());
}

TEST_F(RuntimeConfigTest, AVanishedDirectoryIsOneWarning) {
  const std::string gone = directory_.file("gone");
  std::filesystem::create_directory(gone);
  const auto cache = c10::make_intrusive<RuntimeCacheHandle>(gone + "/cache.bin");
  EXPECT_THAT(
      warnings_of_a_run(cache, [&] { std::filesystem::remove_all(gone); }),
      ElementsAre(AllOf(HasSubstr(gone), HasSubstr("No such file or directory"))));
  EXPECT_THAT(warnings_of_a_run(c10::make_intrusive<RuntimeCacheHandle>(gone + "/cache.bin")).size(), 1U);
}

TEST_F(RuntimeConfigTest, AFullDiskIsOneWarningAndTheOldFileStays) {
  KernelNames many; // so that the limit, which holds for the captured log too, leaves room for that
  for (int i = 0; i < 100; ++i) {
    many.insert("b" + std::to_string(i));
  }
  save_as_other(many);
  const std::string before = read_file(path_);
  rlimit unlimited{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &unlimited), 0);
  const rlimit full{.rlim_cur = before.size() + 1, .rlim_max = unlimited.rlim_max};
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN); // so that write fails instead
  const std::vector<std::string> warnings =
      warnings_of_a_run(new_cache(), [&] { ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0); });
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(warnings, ElementsAre(AllOf(HasSubstr(path_), HasSubstr("write"))));
  EXPECT_EQ(read_file(path_), before);
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

TEST_F(RuntimeConfigTest, WhatFailsAboutTheEngineIsAnError) {
  TRTRuntimeConfig config;
  device_->fail("ICudaEngine::createRuntimeConfig", 1);
  EXPECT_THAT(
      [&] { config.ensure_initialized(loaded_.engine.get()); }, ThrowsMessage<Error>(HasSubstr("runtime config")));
  device_->fail("ICudaEngine::createExecutionContext", 1);
  EXPECT_THAT(
      [&] { config.create_execution_context(loaded_.engine.get()); },
      ThrowsMessage<Error>(HasSubstr("execution context")));
  EXPECT_NE(config.create_execution_context(loaded_.engine.get()), nullptr);
}

TEST_F(RuntimeConfigTest, ARefusedCudaGraphStrategyIsAWarning) {
  device_->fail("IRuntimeConfig::setCudaGraphStrategy");
  TRTRuntimeConfig config({.cuda_graph_strategy = CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE});
  EXPECT_THAT(
      warnings_of([&] { config.ensure_initialized(loaded_.engine.get()); }),
      ElementsAre(HasSubstr("whole_graph_capture")));
}

TEST_F(RuntimeConfigTest, KnowsWhoCapturesCudaGraphs) {
  TRTRuntimeConfig config;
  EXPECT_FALSE(config.uses_internal_capture(false));
  EXPECT_TRUE(config.uses_internal_capture(true));
  config.settings({.cuda_graph_strategy = CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE});
  EXPECT_TRUE(config.uses_internal_capture(false));
}

TEST_F(RuntimeConfigTest, KnowsWhatOthersMayCapture) {
  TRTRuntimeConfig config;
  const auto context = config.create_execution_context(loaded_.engine.get());
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
  config.ensure_initialized(loaded_.engine.get());
  EXPECT_THAT(printed(), AllOf(HasSubstr("initialized=true"), HasSubstr("in_use=true")));
}

} // namespace
} // namespace torch_tensorrt::tests
