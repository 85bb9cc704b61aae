// Tests of a handle that an engine has made live, on the simulated device.

#include "core/runtime/RuntimeCacheHandle.h"

#include <ATen/core/Tensor.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/runtime/EngineLoader.h"
#include "core/runtime/RuntimeCacheFile.h"
#include "core/util/Exception.h"
#include "core/util/file_lock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_testing.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::FileGeneration;
using core::runtime::LoadedEngine;
using core::runtime::LockWaits;
using core::runtime::RuntimeCacheFile;
using core::util::FileLock;
using nvinfer1::IRuntimeCache;
using nvinfer1::IRuntimeConfig;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;

class LiveRuntimeCacheHandleTest : public RuntimeTest {
 protected:
  // Returns a cache with kernels that no file has.
  CachePtr live_cache(const KernelNames& names) const {
    auto cache = new_cache();
    compile(cache, names);
    return cache;
  }

  std::unique_ptr<IRuntimeConfig> new_config() const {
    return std::unique_ptr<IRuntimeConfig>(loaded_.engine->createRuntimeConfig());
  }

  FileGeneration generation_on_disk() const {
    LockWaits waits;
    return RuntimeCacheFile(path_, waits).read().value().generation;
  }

  const LoadedEngine loaded_ = load_simulated(relu_plan({}));
};

TEST_F(LiveRuntimeCacheHandleTest, ThreadsMakeOneCache) {
  save_as_other({"a"});
  device_->reset_counters();
  const auto handle = new_cache();
  std::vector<std::shared_ptr<IRuntimeCache>> caches(8);
  std::vector<std::thread> threads;
  for (auto& cache : caches) {
    threads.emplace_back([&] { cache = handle->ensure_materialized(new_config().get(), c10::kCPU, std::nullopt); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const auto& cache : caches) {
    EXPECT_EQ(cache, caches.front());
  }
  EXPECT_EQ(device_->calls("IRuntimeCache::deserialize"), 1U);
}

TEST_F(LiveRuntimeCacheHandleTest, StaysPendingIfThereCanBeNoCache) {
  save_as_other({"a"});
  const auto handle = new_cache();
  handle->load();
  device_->fail("IRuntimeConfig::createRuntimeCache", 1);
  EXPECT_THAT(
      [&] { handle->ensure_materialized(new_config().get(), c10::kCPU, std::nullopt); },
      ThrowsMessage<Error>(HasSubstr("'" + path_ + "'")));
  handle->ensure_materialized(new_config().get(), c10::kCPU, std::nullopt);
  EXPECT_THAT(kernels_in(handle->serialize()), ElementsAre("a"));
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

TEST_F(LiveRuntimeCacheHandleTest, BytesItHandedOutOutliveIt) {
  auto cache = live_cache({"a"});
  const at::Tensor bytes = cache->serialize();
  cache.reset();
  EXPECT_THAT(kernels_in(bytes), ElementsAre("a"));
}

TEST_F(LiveRuntimeCacheHandleTest, MergesWithoutBeingLocked) {
  const auto cache = live_cache({"a"});
  const std::string kind = kind_of(*device_).file_name();
  const at::Tensor theirs = live_cache({"b"})->serialize();
  const at::Tensor ours = live_cache({"c"})->serialize();
  int uses = 0;
  device_->before("IRuntimeCache::reset", [&] {
    std::thread([&] { EXPECT_THAT(kernels_in(cache->serialize()), ElementsAre("a")); }).join();
    ++uses;
  });
  EXPECT_THAT(kernels_in(cache->merged(theirs, ours, kind)), ElementsAre("b", "c"));
  EXPECT_GT(uses, 0);
  device_->before("IRuntimeCache::reset", {});
  EXPECT_THAT([&] { cache->merged(theirs, {}, kind); }, ThrowsMessage<Error>(HasSubstr("undefined tensor")));
}

TEST_F(LiveRuntimeCacheHandleTest, MergesFromSeveralThreadsWhileKernelsCompile) {
  const auto cache = live_cache({"a"});
  const std::string kind = kind_of(*device_).file_name();
  const at::Tensor theirs = live_cache({"b"})->serialize();
  const at::Tensor ours = live_cache({"c"})->serialize();
  std::vector<std::thread> merging(3);
  for (std::thread& thread : merging) {
    thread = std::thread([&] {
      for (int i = 0; i < 20; ++i) {
        EXPECT_THAT(kernels_in(cache->merged(theirs, ours, kind)), ElementsAre("b", "c"));
      }
    });
  }
  compile(cache, {"d", "e", "f"});
  for (std::thread& thread : merging) {
    thread.join();
  }
  EXPECT_THAT(kernels_in(cache->serialize()), ElementsAre("a", "d", "e", "f"));
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

TEST_F(LiveRuntimeCacheHandleTest, APathCacheFreesItsMemoryWithItsLastOwner) {
  auto cache = RuntimeCacheHandle::for_path(path_);
  compile(cache, {"a"});
  cache->save();
  const std::weak_ptr<IRuntimeCache> live = cache->ensure_materialized(new_config().get(), c10::kCPU, std::nullopt);
  EXPECT_FALSE(live.expired());
  cache.reset();
  EXPECT_TRUE(live.expired());

  device_->reset_counters();
  compile(RuntimeCacheHandle::for_path(path_), {"a"});
  EXPECT_EQ(device_->counters().cache_hits, 1U) << "the next one loads the file";
}

// A device on which torch can do nothing stands in for the second GPU.
TEST_F(LiveRuntimeCacheHandleTest, HasOneCachePerDevice) {
  const auto handle = live_cache({"a"});
  const auto first = handle->ensure_materialized(new_config().get(), c10::kCPU, std::nullopt);
  const auto second = handle->ensure_materialized(new_config().get(), c10::kMeta, std::nullopt);
  EXPECT_NE(first, second);
  EXPECT_EQ(handle->ensure_materialized(new_config().get(), c10::kMeta, std::nullopt), second);
  EXPECT_EQ(handle->ensure_materialized(new_config().get(), c10::kCPU, std::nullopt), first);

  device_->reset_counters();
  compile(handle, {"a", "b"}, c10::kMeta);
  EXPECT_EQ(device_->counters().cache_hits, 1U) << "the second cache starts with the kernels of the first";
  compile(handle, {"c"}, c10::kCPU);
  EXPECT_THAT(kernels_in(handle->serialize()), ElementsAre("a", "b", "c"));
  save_as_other({"d"});
  EXPECT_THAT(warnings_of([&] { EXPECT_GT(handle->save(), 0); }), IsEmpty());
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b", "c", "d"));
}

TEST_F(LiveRuntimeCacheHandleTest, WarnsOfADeviceWhoseKernelsCannotBeMerged) {
  device_->set_deserialize_mode(DeserializeMode::kReplaces);
  const auto handle = live_cache({"a"});
  compile(handle, {"b"}, c10::kMeta);
  EXPECT_THAT(
      warnings_of([&] { EXPECT_GT(handle->save(), 0); }),
      ElementsAre(AllOf(HasSubstr("'" + path_ + "'"), HasSubstr("no kernels of meta"), HasSubstr("replaces"))));
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
}

TEST_F(LiveRuntimeCacheHandleTest, WritesNothingIfTheFileHasAllKernels) {
  const auto cache = live_cache({"a"});
  save_as_other({"a", "b"});
  const FileGeneration before = generation_on_disk();
  EXPECT_EQ(cache->save(), 0);
  EXPECT_EQ(generation_on_disk(), before);
}

TEST_F(LiveRuntimeCacheHandleTest, GivesUpIfOthersSaveDuringEachMerge) {
  const auto cache = live_cache({"a"});
  save_as_other({"b"});
  const std::string one = read_file(path_);
  std::filesystem::remove(path_);
  save_as_other({"of another size"});
  const std::string two = read_file(path_);
  bool is_one = false;
  device_->before("IRuntimeCache::serialize", [&] { // every save and every merge calls it once
    is_one = !is_one;
    write_file(path_, is_one ? one : two);
  });
  device_->reset_counters();
  EXPECT_THAT(
      [&] { cache->save(); },
      ThrowsMessage<Error>(AllOf(
          HasSubstr("'" + path_ + "'"),
          HasSubstr(std::to_string(RuntimeCacheHandle::kMaxMerges) + " times while this process merged"),
          HasSubstr("is intact"))));
  EXPECT_EQ(device_->calls("IRuntimeCache::serialize"), 1U + RuntimeCacheHandle::kMaxMerges);
  EXPECT_EQ(read_file(path_), is_one ? one : two);

  device_->before("IRuntimeCache::serialize", {});
  EXPECT_GT(cache->save(), 0);
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", is_one ? "b" : "of another size"));
}

TEST_F(LiveRuntimeCacheHandleTest, MergesInItsTurn) {
  const auto cache = live_cache({"a"});
  save_as_other({"b"});
  FileLock others_turn(FileLock::lock_path(path_ + ".merge"));
  others_turn.lock();
  std::atomic<bool> is_our_turn{false};
  device_->before("IRuntimeCache::deserialize", [&] { EXPECT_TRUE(is_our_turn); });
  std::thread saving([&] { EXPECT_GT(cache->save(), 0); });
  std::this_thread::sleep_for(milliseconds(50));
  is_our_turn = true;
  others_turn.unlock();
  saving.join();
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
}

TEST_F(LiveRuntimeCacheHandleTest, MergesAllTheSameIfItsTurnDoesNotCome) {
  const auto cache = live_cache({"a"});
  save_as_other({"b"});
  FileLock others_turn(FileLock::lock_path(path_ + ".merge"));
  others_turn.lock();
  cache->set_lock_timeout(milliseconds(100));
  const auto start = steady_clock::now();
  EXPECT_GT(cache->save(), 0);
  EXPECT_GE(steady_clock::now() - start, milliseconds(100));
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
}

TEST_F(LiveRuntimeCacheHandleTest, KeepsAFileForEachKindOfDevice) {
  const auto other_device = std::make_shared<SimulatedDevice>(SimulatedEnvironment{.gpu = "Another GPU"});
  const std::string directory = directory_.file("cache/");
  const auto cache = c10::make_intrusive<RuntimeCacheHandle>(directory);
  compile(cache, {"a"});
  {
    const ScopedSimulation simulation(other_device);
    compile(cache, {"b"}, c10::kMeta);
  }
  EXPECT_GT(cache->save(), 0);
  EXPECT_EQ(kernels_in(read_file(core::runtime::file_in(directory, kind_of(*device_)))), KernelNames{"a"});
  EXPECT_EQ(kernels_in(read_file(core::runtime::file_in(directory, kind_of(*other_device)))), KernelNames{"b"});
  EXPECT_EQ(cache->save(), 0);

  const auto next = c10::make_intrusive<RuntimeCacheHandle>(directory);
  other_device->reset_counters();
  compile(next, {"a"});
  const ScopedSimulation simulation(other_device);
  compile(next, {"b"}, c10::kMeta);
  EXPECT_EQ(other_device->counters().compilations, 0U);
  EXPECT_EQ(next->statistics().size_added, 0);
}

} // namespace
} // namespace torch_tensorrt::tests
