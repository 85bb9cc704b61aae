// A handle that an engine has made live, on the simulated device.

#include "core/runtime/RuntimeCacheHandle.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/runtime/EngineLoader.h"
#include "core/util/Exception.h"
#include "core/util/file_lock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_testing.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::LoadedEngine;
using core::util::FileLock;
using nvinfer1::IRuntimeConfig;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;
using ::testing::UnorderedElementsAre;

class LiveRuntimeCacheHandleTest : public RuntimeTest {
 protected:
  // With kernels that no file has.
  CachePtr live_cache(const KernelNames& names) const {
    auto cache = new_cache();
    compile(cache, names);
    return cache;
  }

  std::unique_ptr<IRuntimeConfig> new_config() const {
    return std::unique_ptr<IRuntimeConfig>(loaded_.engine->createRuntimeConfig());
  }

  const LoadedEngine loaded_ = load_simulated(relu_plan({}));
};

TEST_F(LiveRuntimeCacheHandleTest, TakesThePendingBytesOnce) {
  save_as_other({"a", "b"});
  const auto handle = new_cache();
  handle->load();
  device_->reset_counters();
  const auto config = new_config();
  const auto cache = handle->ensure_materialized(config.get());
  EXPECT_EQ(handle->ensure_materialized(new_config().get()), cache);
  EXPECT_EQ(device_->calls("IRuntimeCache::deserialize"), 1U);
  EXPECT_TRUE(handle->has_cache());
  EXPECT_THAT(kernels_in(handle->serialize()), UnorderedElementsAre("a", "b"));
}

TEST_F(LiveRuntimeCacheHandleTest, ThreadsMakeOneCache) {
  save_as_other({"a"});
  device_->reset_counters();
  const auto handle = new_cache();
  std::vector<std::shared_ptr<nvinfer1::IRuntimeCache>> caches(8);
  std::vector<std::thread> threads;
  for (auto& cache : caches) {
    threads.emplace_back([&] { cache = handle->ensure_materialized(new_config().get()); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const auto& cache : caches) {
    EXPECT_EQ(cache, caches.front());
  }
  EXPECT_EQ(device_->calls("IRuntimeCache::deserialize"), 1U);
}

TEST_F(LiveRuntimeCacheHandleTest, LoadsItsFileUnlessItHasBytes) {
  save_as_other({"a"});
  const auto loading = new_cache();
  loading->ensure_materialized(new_config().get());
  EXPECT_THAT(kernels_in(loading->serialize()), ElementsAre("a"));

  const auto elsewhere = c10::make_intrusive<RuntimeCacheHandle>("");
  compile(elsewhere, {"b"});
  const auto given = new_cache();
  given->deserialize(elsewhere->serialize());
  given->ensure_materialized(new_config().get());
  EXPECT_THAT(kernels_in(given->serialize()), ElementsAre("b"));
  given->save();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
}

TEST_F(LiveRuntimeCacheHandleTest, StaysPendingIfThereCanBeNoCache) {
  save_as_other({"a"});
  const auto handle = new_cache();
  handle->load();
  device_->fail("IRuntimeConfig::createRuntimeCache", 1);
  EXPECT_THAT(
      [&] { handle->ensure_materialized(new_config().get()); }, ThrowsMessage<Error>(HasSubstr("'" + path_ + "'")));
  EXPECT_THAT([&] { handle->ensure_materialized(nullptr); }, ThrowsMessage<Error>(HasSubstr("IRuntimeConfig")));
  handle->ensure_materialized(new_config().get());
  EXPECT_THAT(kernels_in(handle->serialize()), ElementsAre("a"));
}

TEST_F(LiveRuntimeCacheHandleTest, MergesWithWhatOthersSaved) {
  const auto cache = live_cache({"a"});
  save_as_other({"b"});
  EXPECT_THAT(warnings_of([&] { EXPECT_GT(cache->save(), 0); }), IsEmpty());
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));

  // What came from the file only is merged again, and kernels since then too.
  compile(cache, {"a", "d"});
  save_as_other({"c"});
  cache->save();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b", "c", "d"));
}

TEST_F(LiveRuntimeCacheHandleTest, MergesWhereOneHasAllOfTheOthers) {
  const auto more = live_cache({"a", "b"});
  save_as_other({"a"});
  EXPECT_THAT(warnings_of([&] { EXPECT_GT(more->save(), 0); }), IsEmpty());
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));

  std::filesystem::remove(path_);
  const auto less = live_cache({"a"});
  save_as_other({"a", "b"});
  EXPECT_THAT(warnings_of([&] { EXPECT_EQ(less->save(), 0); }), IsEmpty());
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
}

TEST_F(LiveRuntimeCacheHandleTest, KeepsItsOwnWhereDeserializeReplaces) {
  device_->set_deserialize_mode(DeserializeMode::kReplaces);
  for (const std::string theirs : {"longer name", "x"}) { // of another size, and of the same
    std::filesystem::remove(path_);
    const auto cache = live_cache({"a"});
    save_as_other({theirs});
    const std::string size = std::to_string(std::filesystem::file_size(path_));
    EXPECT_THAT(
        warnings_of([&] { EXPECT_GT(cache->save(), 0); }),
        ElementsAre(AllOf(HasSubstr("'" + path_ + "'"), HasSubstr(size + " bytes"), HasSubstr("replaces"))));
    EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
  }
}

TEST_F(LiveRuntimeCacheHandleTest, KeepsWhatItLoadedWhereDeserializeReplaces) {
  device_->set_deserialize_mode(DeserializeMode::kReplaces);
  save_as_other({"a"});
  const auto cache = live_cache({"b"});
  EXPECT_THAT(warnings_of([&] { cache->save(); }), IsEmpty());
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
}

TEST_F(LiveRuntimeCacheHandleTest, LogsWhichDeserializeItMet) {
  using core::util::logging::LogLevel;
  const LogLevel level = core::util::logging::get_reportable_log_level();
  core::util::logging::set_reportable_log_level(LogLevel::kINFO);
  const auto cache = live_cache({"a"});
  save_as_other({"b"});
  EXPECT_THAT(log_of([&] { cache->save(); }), HasSubstr("deserialize adds"));
  device_->set_deserialize_mode(DeserializeMode::kReplaces);
  save_as_other({"c"});
  EXPECT_THAT(log_of([&] { cache->save(); }), Not(HasSubstr("deserialize"))); // it has no new kernels
  compile(cache, {"d"});
  EXPECT_THAT(log_of([&] { cache->save(); }), HasSubstr("deserialize replaces"));
  core::util::logging::set_reportable_log_level(level);
}

TEST_F(LiveRuntimeCacheHandleTest, RejectedBytesAreOneWarningAndAColdCache) {
  save_as_other({"a"});
  const std::string size = std::to_string(std::filesystem::file_size(path_));
  device_->set_environment({.tensorrt_rtx_version = "1.7.0.0"});
  const auto cache = new_cache();
  EXPECT_THAT(
      warnings_of([&] { compile(cache, {"b"}); }),
      ElementsAre(AllOf(HasSubstr("'" + path_ + "'"), HasSubstr(size + " bytes"), HasSubstr("another TensorRT-RTX"))));
  EXPECT_THAT(kernels_in(cache->serialize()), ElementsAre("b"));
  EXPECT_THAT(warnings_of([&] { cache->save(); }), IsEmpty());
  EXPECT_THAT(kernels_on_disk(), ElementsAre("b"));
}

TEST_F(LiveRuntimeCacheHandleTest, RejectedBytesOfOthersAreAWarningAndReplaced) {
  const auto cache = live_cache({"a"});
  write_file(path_, "no cache at all");
  EXPECT_THAT(
      warnings_of([&] { cache->save(); }),
      ElementsAre(AllOf(HasSubstr("'" + path_ + "'"), HasSubstr("15 bytes"), HasSubstr("replaced"))));
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
}

TEST_F(LiveRuntimeCacheHandleTest, ARejectionThatPassesCostsNobodyTheirKernels) {
  save_as_other({"a"});
  const auto cache = new_cache();
  device_->fail("IRuntimeCache::deserialize", 1);
  EXPECT_THAT(warnings_of([&] { compile(cache, {"b"}); }), ElementsAre(HasSubstr("rejected")));
  cache->save();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
}

TEST_F(LiveRuntimeCacheHandleTest, WithoutKernelsItWritesNothing) {
  const auto cache = live_cache({});
  EXPECT_TRUE(cache->has_cache());
  EXPECT_EQ(cache->save(), 0);
  EXPECT_THAT(names_in(directory_.path()), IsEmpty());

  device_->set_deserialize_mode(DeserializeMode::kReplaces);
  save_as_other({"a"});
  EXPECT_THAT(warnings_of([&] { EXPECT_EQ(cache->save(), 0); }), IsEmpty());
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
}

TEST_F(LiveRuntimeCacheHandleTest, WithoutNewKernelsItLeavesTheDiskAlone) {
  save_as_other({"a"});
  const auto cache = live_cache({"a"});
  FileLock held(FileLock::lock_path(path_));
  held.lock();
  EXPECT_EQ(cache->save(), 0);
  held.unlock();

  std::filesystem::remove(path_);
  EXPECT_GT(cache->save(), 0);
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
}

TEST_F(LiveRuntimeCacheHandleTest, FailuresOfTensorRTRTX) {
  const auto cache = live_cache({"a"});
  device_->fail("IRuntimeCache::serialize", 1);
  EXPECT_THAT([&] { cache->serialize(); }, ThrowsMessage<Error>(HasSubstr("'" + path_ + "'")));
  device_->fail("IRuntimeCache::serialize", 1);
  EXPECT_THAT([&] { cache->save(); }, ThrowsMessage<Error>(HasSubstr("'" + path_ + "'")));
  save_as_other({"b"});
  device_->fail("IRuntimeCache::reset", 1);
  EXPECT_THAT(warnings_of([&] { cache->save(); }), ElementsAre(HasSubstr("could not be merged")));
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
}

TEST_F(LiveRuntimeCacheHandleTest, NotKnowingHowAnEmptyCacheLooksItWritesOne) {
  const auto cache = new_cache();
  device_->fail("IRuntimeCache::serialize", 1);
  cache->ensure_materialized(new_config().get());
  EXPECT_GT(cache->save(), 0);
  EXPECT_THAT(kernels_on_disk(), IsEmpty());
}

TEST_F(LiveRuntimeCacheHandleTest, TakesBytesWhileLive) {
  const auto other = live_cache({"b"});
  const auto cache = live_cache({"a"});
  cache->deserialize(other->serialize());
  EXPECT_THAT(kernels_in(cache->serialize()), ElementsAre("a", "b"));

  const at::Tensor garbage = at::zeros({7}, at::kByte);
  EXPECT_THAT(
      warnings_of([&] { cache->deserialize(garbage); }), ElementsAre(AllOf(HasSubstr("7 bytes"), HasSubstr("given"))));
  EXPECT_THROW(cache->deserialize(at::zeros({7})), Error);
  EXPECT_THAT(kernels_in(cache->serialize()), ElementsAre("a", "b"));

  cache->save();
  cache->deserialize(at::empty({0}, at::kByte));
  EXPECT_THAT(kernels_in(cache->serialize()), IsEmpty());
  compile(cache, {"c"});
  cache->save();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b", "c"));

  device_->fail("IRuntimeCache::reset", 1);
  EXPECT_THROW(cache->deserialize(at::empty({0}, at::kByte)), Error);
}

TEST_F(LiveRuntimeCacheHandleTest, LoadsWhileLive) {
  const auto cache = live_cache({"a"});
  EXPECT_EQ(cache->load(), 0);
  save_as_other({"b"});
  EXPECT_GT(cache->load(), 0);
  EXPECT_THAT(kernels_in(cache->serialize()), ElementsAre("a", "b"));
  write_file(path_, "no cache");
  EXPECT_THAT(warnings_of([&] { EXPECT_EQ(cache->load(), 0); }), ElementsAre(HasSubstr("'" + path_ + "'")));
  EXPECT_THAT(kernels_in(cache->serialize()), ElementsAre("a", "b"));
}

TEST_F(LiveRuntimeCacheHandleTest, WhatDeserializeReplacedInItStaysOnDisk) {
  save_as_other({"a"});
  const auto cache = live_cache({"a"});
  const auto elsewhere = c10::make_intrusive<RuntimeCacheHandle>("");
  compile(elsewhere, {"b"});
  device_->set_deserialize_mode(DeserializeMode::kReplaces);
  cache->deserialize(elsewhere->serialize());
  device_->set_deserialize_mode(DeserializeMode::kAdds);
  EXPECT_THAT(kernels_in(cache->serialize()), ElementsAre("b"));
  cache->save();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
}

TEST_F(LiveRuntimeCacheHandleTest, WhatWasReplacedInItBeforeItWasLiveStaysOnDisk) {
  save_as_other({"a"});
  const auto elsewhere = c10::make_intrusive<RuntimeCacheHandle>(directory_.file("elsewhere.bin"));
  compile(elsewhere, {"b"});
  elsewhere->save();

  const auto given = new_cache();
  given->load();
  given->deserialize(elsewhere->serialize());
  given->ensure_materialized(new_config().get());
  given->save();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));

  save_as_other({"c"});
  const auto loaded = new_cache();
  loaded->load();
  loaded->load(elsewhere->path());
  loaded->ensure_materialized(new_config().get());
  loaded->save();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b", "c"));
}

TEST_F(LiveRuntimeCacheHandleTest, ACopyIsPendingAndOverwritesNothing) {
  const auto cache = live_cache({"a"});
  cache->set_autosave(false);
  RuntimeCacheHandle copy(cache->state());
  EXPECT_EQ(copy.path(), path_);
  EXPECT_FALSE(copy.autosave());
  EXPECT_THAT(kernels_in(copy.serialize()), ElementsAre("a"));
  save_as_other({"b"});
  EXPECT_THAT(warnings_of([&] { EXPECT_EQ(copy.save(), 0); }), IsEmpty());
  EXPECT_THAT(kernels_on_disk(), ElementsAre("b"));
  copy.ensure_materialized(new_config().get());
  copy.save();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
}

TEST_F(LiveRuntimeCacheHandleTest, BytesItHandedOutOutliveIt) {
  auto cache = live_cache({"a"});
  const at::Tensor bytes = cache->serialize();
  cache.reset();
  EXPECT_THAT(kernels_in(bytes), ElementsAre("a"));
}

TEST_F(LiveRuntimeCacheHandleTest, ThreadsUseItWhileKernelsCompile) {
  const auto cache = live_cache({"a"});
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 20; ++k) {
        compile(cache, {"kernel" + std::to_string(i) + "_" + std::to_string(k)});
      }
    });
  }
  std::thread saver([&] {
    while (!done) {
      cache->save();
      cache->load();
      cache->state();
      EXPECT_TRUE(cache->has_cache());
    }
  });
  for (std::thread& thread : threads) {
    thread.join();
  }
  done = true;
  saver.join();
  cache->save();
  EXPECT_EQ(kernels_on_disk().size(), 41U);
}

} // namespace
} // namespace torch_tensorrt::tests
