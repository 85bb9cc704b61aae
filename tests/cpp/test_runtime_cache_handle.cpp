// Tests of a handle that no engine uses yet, and of the table of path caches.

#include "core/runtime/RuntimeCacheHandle.h"

#include <ATen/ops/empty.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "core/runtime/RuntimeCacheFile.h"
#include "core/util/file_lock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_cache_testing.h"
#include "tests/util/processes/child_process.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::RuntimeCacheFile;
using core::runtime::RuntimeCacheHandle;
using core::util::FileLock;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

using CachePtr = c10::intrusive_ptr<RuntimeCacheHandle>;

at::Tensor tensor(const std::string& bytes) {
  const at::Tensor result = at::empty({static_cast<int64_t>(bytes.size())}, at::kByte);
  bytes.copy(static_cast<char*>(result.mutable_data_ptr()), bytes.size());
  return result;
}

std::string text(const at::Tensor& bytes) {
  EXPECT_EQ(bytes.scalar_type(), at::kByte);
  EXPECT_EQ(bytes.dim(), 1);
  return {static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes()};
}

class RuntimeCacheHandleTest : public ::testing::Test {
 protected:
  // Saves as another process that has read the file does.
  void save_as_other(const std::string& bytes) const {
    core::runtime::LockWaits waits;
    const RuntimeCacheFile file(path_, waits);
    const auto contents = file.read();
    file.replace(view(bytes), contents ? std::optional(contents->generation) : std::nullopt);
  }

  // Returns what is logged during `call`.
  template <class Call>
  static std::string log_of(const Call& call) {
    ::testing::internal::CaptureStderr();
    call();
    return ::testing::internal::GetCapturedStderr();
  }

  const TemporaryDirectory directory_;
  const std::string path_ = directory_.file("cache.bin");
  RuntimeCacheHandle handle_{path_};
};

TEST_F(RuntimeCacheHandleTest, NobodyElseCanChangeItsBytes) {
  const at::Tensor given = tensor("kernels");
  handle_.deserialize(given);
  given.fill_('x');
  const at::Tensor taken = handle_.serialize();
  taken.fill_('y');
  const at::Tensor again = handle_.serialize();
  EXPECT_EQ(text(again), "kernels");
  handle_.deserialize(tensor("others"));
  EXPECT_EQ(text(again), "kernels");
}

TEST_F(RuntimeCacheHandleTest, LoadedBytesOutliveIt) {
  save_as_other("kernels");
  auto handle = c10::make_intrusive<RuntimeCacheHandle>(path_);
  handle->load();
  const at::Tensor bytes = handle->serialize();
  handle.reset();
  EXPECT_EQ(text(bytes), "kernels");
}

TEST_F(RuntimeCacheHandleTest, RefusesAnUndefinedTensor) {
  EXPECT_THAT(error_of([&] { handle_.deserialize(at::Tensor()); }), HasSubstr("undefined"));
}

TEST_F(RuntimeCacheHandleTest, ALoadThatFindsNothingKeepsTheBytes) {
  handle_.deserialize(tensor("kernels"));
  EXPECT_EQ(handle_.load(), 0);
  EXPECT_EQ(text(handle_.serialize()), "kernels");
}

TEST_F(RuntimeCacheHandleTest, LoadedBytesAreWrittenWhereTheFileIsGone) {
  save_as_other("kernels");
  handle_.load();
  std::filesystem::remove(path_);
  EXPECT_EQ(handle_.save(), 7);
  EXPECT_EQ(read_file(path_), "kernels");
}

TEST_F(RuntimeCacheHandleTest, SavedBytesDoNotOverwriteANewerFile) {
  handle_.deserialize(tensor("old"));
  handle_.save();
  save_as_other("newer");
  EXPECT_EQ(handle_.save(), 0);
  EXPECT_EQ(read_file(path_), "newer");
}

TEST_F(RuntimeCacheHandleTest, SavingElsewhereDoesNotMakeLoadedBytesOurs) {
  save_as_other("old");
  handle_.load();
  handle_.save(directory_.file("elsewhere.bin"));
  save_as_other("newer");
  EXPECT_EQ(handle_.save(), 0);
  EXPECT_EQ(read_file(path_), "newer");
}

TEST_F(RuntimeCacheHandleTest, GivenBytesReplaceAFileThatItHasReadOrWrittenWithAWarning) {
  save_as_other("theirs");
  handle_.load();
  handle_.deserialize(tensor("kernels"));
  EXPECT_THAT(
      log_of([&] { EXPECT_EQ(handle_.save(), 7); }),
      AllOf(HasSubstr("WARNING"), HasSubstr(path_), HasSubstr("7 bytes"), HasSubstr("6 bytes")));
  EXPECT_EQ(read_file(path_), "kernels");
  handle_.deserialize(tensor("kernels, more"));
  EXPECT_THAT(log_of([&] { EXPECT_EQ(handle_.save(), 13); }), AllOf(HasSubstr("13 bytes"), HasSubstr("7 bytes")));
  EXPECT_EQ(read_file(path_), "kernels, more");
  handle_.deserialize(tensor("kernels, more"));
  EXPECT_EQ(log_of([&] { EXPECT_EQ(handle_.save(), 0); }), "");
}

TEST_F(RuntimeCacheHandleTest, BytesLoadedFromElsewhereCountAsGiven) {
  const std::string elsewhere = directory_.file("elsewhere.bin");
  RuntimeCacheHandle other(elsewhere);
  other.deserialize(tensor("kernels"));
  other.save();
  save_as_other("theirs");
  handle_.load(elsewhere);
  EXPECT_THAT(log_of([&] { EXPECT_EQ(handle_.save(), 7); }), HasSubstr("6 bytes"));
}

TEST_F(RuntimeCacheHandleTest, TheLongestLockTimeoutWaits) {
  handle_.deserialize(tensor("kernels"));
  handle_.set_lock_timeout(std::chrono::milliseconds::max());
  FileLock held(path_ + ".lock");
  held.lock();
  std::thread saving([&] { EXPECT_EQ(handle_.save(), 7); });
  std::this_thread::sleep_for(std::chrono::milliseconds(100)); // usually the save waits by now
  held.unlock();
  saving.join();
}

TEST_F(RuntimeCacheHandleTest, ThreadsMayShareIt) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 20;
  std::vector<std::thread> threads;
  log_of([&] { // each replaces what the other threads saved, with a warning
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        const std::string own(static_cast<size_t>(1000 + i), static_cast<char>('a' + i));
        for (int round = 0; round < kRounds; ++round) {
          handle_.deserialize(tensor(own));
          handle_.save();
          handle_.load();
          const std::string bytes = text(handle_.serialize());
          EXPECT_EQ(bytes, std::string(bytes.size(), bytes.at(0)));
          EXPECT_TRUE(handle_.has_cache());
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
  });
  EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre("cache.bin", "cache.bin.lock"));
}

TEST_F(RuntimeCacheHandleTest, TheLastEngineThatDetachesSaves) {
  handle_.attach();
  handle_.attach();
  EXPECT_FALSE(handle_.detach());
  handle_.attach();
  EXPECT_FALSE(handle_.detach());
  EXPECT_TRUE(handle_.detach());
}

class PathCacheTest : public RuntimeCacheHandleTest {
 protected:
  static CachePtr for_path(const std::string& path) {
    return RuntimeCacheHandle::for_path(path);
  }
};

TEST_F(PathCacheTest, IsOneForEveryoneWhoAsks) {
  const CachePtr cache = for_path(path_);
  EXPECT_EQ(cache->path(), path_);
  EXPECT_EQ(for_path(path_), cache);
  EXPECT_NE(for_path(directory_.file("other.bin")), cache);
}

TEST_F(PathCacheTest, IsOneForTwoSpellings) {
  const CachePtr cache = for_path(path_);
  const std::string link = directory_.file("link");
  std::filesystem::create_directory_symlink(directory_.path(), link);
  EXPECT_EQ(for_path(link + "/cache.bin"), cache);
  EXPECT_EQ(for_path(link + "/./link/cache.bin"), cache);
  std::filesystem::create_symlink(path_, directory_.file("link.bin"));
  EXPECT_NE(for_path(directory_.file("link.bin")), cache) << "its lock has another name";
}

TEST_F(PathCacheTest, MakesARelativePathAbsoluteAndNormalizesNothing) {
  const CachePtr cache = for_path(path_);
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(directory_.path());
  const CachePtr same = for_path("cache.bin");
  const CachePtr other = for_path("./down/../other.bin");
  std::filesystem::current_path(before);
  EXPECT_EQ(same, cache);
  EXPECT_EQ(other->path(), directory_.file("./down/../other.bin"));
}

TEST_F(PathCacheTest, NeedsAPath) {
  EXPECT_THAT(error_of([] { for_path(""); }), HasSubstr("path of a runtime cache is empty"));
}

TEST_F(PathCacheTest, EndsWithItsLastOwner) {
  CachePtr cache = for_path(path_);
  cache->deserialize(tensor("kernels"));
  CachePtr second = for_path(path_);
  cache.reset();
  EXPECT_TRUE(for_path(path_)->has_cache());
  second.reset();
  EXPECT_FALSE(for_path(path_)->has_cache());
}

TEST_F(PathCacheTest, IsOneForThreadsThatAskAtOnce) {
  std::vector<CachePtr> caches(8);
  std::vector<std::thread> threads;
  for (CachePtr& cache : caches) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        cache.reset(); // perhaps the last owner
        cache = for_path(path_);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_THAT(caches, Each(caches.front()));
}

TEST_F(PathCacheTest, AForkedChildHasOneOfItsOwn) {
  const CachePtr cache = for_path(path_);
  cache->deserialize(tensor("kernels"));
  ChildProcess child([&](Channel&) {
    const CachePtr own = for_path(path_);
    require(own != cache && !own->has_cache(), "a forked child got its parent's cache");
    require(for_path(path_) == own, "a forked child got two caches for one path");
  });
  EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(for_path(path_), cache);
}

TEST_F(PathCacheTest, ACopyJoinsTheOneThatIsThere) {
  const CachePtr cache = for_path(path_);
  RuntimeCacheHandle::State state = cache->state();
  std::get<1>(state) = tensor("kernels");
  EXPECT_EQ(RuntimeCacheHandle::from_state(state), cache);
  EXPECT_FALSE(cache->has_cache());
  EXPECT_NE(RuntimeCacheHandle::from_state(handle_.state()), cache) << "a copy of a cache of its own is one, too";
}

TEST_F(PathCacheTest, ANewCopyTakesTheBytesIfThereIsNoFile) {
  CachePtr cache = for_path(path_);
  cache->deserialize(tensor("kernels"));
  cache->set_autosave(false);
  const RuntimeCacheHandle::State state = cache->state();
  cache.reset();
  CachePtr copy = RuntimeCacheHandle::from_state(state);
  EXPECT_EQ(for_path(path_), copy);
  EXPECT_EQ(text(copy->serialize()), "kernels");
  EXPECT_FALSE(copy->autosave());

  copy.reset();
  save_as_other("newer");
  EXPECT_FALSE(RuntimeCacheHandle::from_state(state)->has_cache());
}

} // namespace
} // namespace torch_tensorrt::tests
