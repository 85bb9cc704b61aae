#include "core/runtime/RuntimeCacheHandle.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "core/util/Exception.h"
#include "core/util/file_lock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_cache_testing.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::RuntimeCacheFile;
using core::runtime::RuntimeCacheHandle;
using core::util::FileLock;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

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
  // As another process would, whatever is there.
  void save_as_other(const std::string& bytes) const {
    RuntimeCacheFile(path_).save(view(bytes), [](RuntimeCacheFile::View, RuntimeCacheFile::View ours) {
      return RuntimeCacheFile::Bytes{ours, nullptr};
    });
  }

  // What is logged meanwhile.
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

TEST_F(RuntimeCacheHandleTest, StartsEmpty) {
  EXPECT_EQ(handle_.path(), path_);
  EXPECT_FALSE(handle_.has_cache());
  EXPECT_EQ(text(handle_.serialize()), "");
  EXPECT_EQ(handle_.load(), 0);
  EXPECT_EQ(handle_.save(), 0);
  EXPECT_THAT(names_in(directory_.path()), IsEmpty());
}

TEST_F(RuntimeCacheHandleTest, TakesBytesToTheFileAndBack) {
  handle_.deserialize(tensor("kernels"));
  EXPECT_TRUE(handle_.has_cache());
  EXPECT_EQ(handle_.save(), 7);
  EXPECT_EQ(read_file(path_), "kernels");
  RuntimeCacheHandle other(path_);
  EXPECT_EQ(other.load(), 7);
  EXPECT_TRUE(other.has_cache());
  EXPECT_EQ(text(other.serialize()), "kernels");
  EXPECT_EQ(other.save(), 0);
}

TEST_F(RuntimeCacheHandleTest, AnEmptyTensorClearsTheBytes) {
  handle_.deserialize(tensor("kernels"));
  handle_.deserialize(tensor(""));
  EXPECT_FALSE(handle_.has_cache());
  EXPECT_EQ(handle_.save(), 0);
}

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

TEST_F(RuntimeCacheHandleTest, SerializeDoesNotCopy) {
  handle_.deserialize(tensor("kernels"));
  EXPECT_EQ(handle_.serialize().const_data_ptr(), handle_.serialize().const_data_ptr());
}

TEST_F(RuntimeCacheHandleTest, TakesAStridedTensor) {
  handle_.deserialize(tensor("k-e-r-n-").slice(0, 0, 8, 2));
  EXPECT_EQ(text(handle_.serialize()), "kern");
}

TEST_F(RuntimeCacheHandleTest, RefusesOtherTensorsAndKeepsItsBytes) {
  handle_.deserialize(tensor("kernels"));
  EXPECT_THAT(error_of([&] { handle_.deserialize(at::zeros({3})); }), AllOf(HasSubstr("uint8"), HasSubstr("Float")));
  EXPECT_THAT(error_of([&] { handle_.deserialize(at::zeros({3}, at::kChar)); }), HasSubstr("Char"));
  EXPECT_THAT(error_of([&] { handle_.deserialize(at::zeros({2, 3}, at::kByte)); }), HasSubstr("[2, 3]"));
  EXPECT_THAT(
      error_of([&] { handle_.deserialize(at::empty({3}, at::TensorOptions(at::kByte).device(at::kMeta))); }),
      HasSubstr("meta"));
  EXPECT_THAT(error_of([&] { handle_.deserialize(tensor("abc").to_sparse()); }), HasSubstr("Sparse"));
  EXPECT_THAT(error_of([&] { handle_.deserialize(at::Tensor()); }), HasSubstr("undefined"));
  EXPECT_EQ(text(handle_.serialize()), "kernels");
}

TEST_F(RuntimeCacheHandleTest, WithoutAPathLoadAndSaveNeedOne) {
  RuntimeCacheHandle handle("");
  handle.deserialize(tensor("kernels"));
  EXPECT_THAT(error_of([&] { handle.save(); }), HasSubstr("path"));
  EXPECT_THAT(error_of([&] { handle.load(); }), HasSubstr("path"));
  EXPECT_EQ(handle.save(path_), 7);
  RuntimeCacheHandle other("");
  EXPECT_EQ(other.load(path_), 7);
}

TEST_F(RuntimeCacheHandleTest, AnotherPathIsUsedInItsPlace) {
  const std::string elsewhere = directory_.file("elsewhere.bin");
  handle_.deserialize(tensor("kernels"));
  EXPECT_EQ(handle_.save(elsewhere), 7);
  EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre("elsewhere.bin", "elsewhere.bin.lock"));
  save_as_other("others");
  EXPECT_EQ(handle_.load(), 6);
  EXPECT_EQ(handle_.load(elsewhere), 7);
  EXPECT_EQ(handle_.path(), path_);
}

TEST_F(RuntimeCacheHandleTest, ALoadThatFindsNothingKeepsTheBytes) {
  handle_.deserialize(tensor("kernels"));
  EXPECT_EQ(handle_.load(), 0);
  EXPECT_EQ(text(handle_.serialize()), "kernels");
}

TEST_F(RuntimeCacheHandleTest, LoadedBytesNeverOverwriteANewerFile) {
  save_as_other("old");
  handle_.load();
  save_as_other("newer");
  EXPECT_EQ(log_of([&] { EXPECT_EQ(handle_.save(), 0); }), "");
  EXPECT_EQ(read_file(path_), "newer");
}

TEST_F(RuntimeCacheHandleTest, LoadedBytesAreWrittenWhereTheFileIsGone) {
  save_as_other("kernels");
  handle_.load();
  std::filesystem::remove(path_);
  EXPECT_EQ(handle_.save(), 7);
  EXPECT_EQ(read_file(path_), "kernels");
}

TEST_F(RuntimeCacheHandleTest, SavedBytesNeverOverwriteANewerFileEither) {
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

TEST_F(RuntimeCacheHandleTest, GivenBytesReplaceAFileThatItHasNotReadWithAWarning) {
  save_as_other("theirs");
  handle_.deserialize(tensor("kernels"));
  EXPECT_THAT(
      log_of([&] { EXPECT_EQ(handle_.save(), 7); }),
      AllOf(HasSubstr("WARNING"), HasSubstr(path_), HasSubstr("7 bytes"), HasSubstr("6 bytes")));
  EXPECT_EQ(read_file(path_), "kernels");
  handle_.deserialize(tensor("kernels, more"));
  EXPECT_EQ(log_of([&] { EXPECT_EQ(handle_.save(), 13); }), "") << "that file was its own";
}

TEST_F(RuntimeCacheHandleTest, GivenBytesReplaceAFileThatItHasReadWithoutOne) {
  save_as_other("theirs");
  handle_.load();
  handle_.deserialize(tensor("kernels"));
  EXPECT_EQ(log_of([&] { EXPECT_EQ(handle_.save(), 7); }), "");
  EXPECT_EQ(read_file(path_), "kernels");
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

TEST_F(RuntimeCacheHandleTest, ItsStateCarriesPathAndBytes) {
  handle_.deserialize(tensor("kernels"));
  RuntimeCacheHandle copy(handle_.state());
  EXPECT_EQ(copy.path(), path_);
  EXPECT_EQ(text(copy.serialize()), "kernels");
  EXPECT_EQ(copy.save(), 7);
}

TEST_F(RuntimeCacheHandleTest, ACopyOfLoadedBytesDoesNotOverwriteANewerFile) {
  save_as_other("old");
  handle_.load();
  RuntimeCacheHandle copy(handle_.state());
  save_as_other("newer");
  EXPECT_EQ(copy.save(), 0);
  EXPECT_EQ(read_file(path_), "newer");
}

TEST_F(RuntimeCacheHandleTest, AFailureLeavesItAsItWas) {
  save_as_other("theirs");
  RuntimeCacheHandle handle(path_, std::chrono::milliseconds(10));
  handle.deserialize(tensor("kernels"));
  FileLock held(path_ + ".lock");
  held.lock();
  EXPECT_THAT(error_of([&] { handle.save(); }), AllOf(HasSubstr("save"), HasSubstr(path_ + ".lock")));
  EXPECT_THAT(error_of([&] { handle.load(); }), AllOf(HasSubstr("load"), HasSubstr(path_ + ".lock")));
  EXPECT_EQ(text(handle.serialize()), "kernels");
  held.unlock();
  EXPECT_EQ(handle.save(), 7);
}

TEST_F(RuntimeCacheHandleTest, BytesAreAtHandWhileASaveWaits) {
  handle_.deserialize(tensor("kernels"));
  FileLock held(path_ + ".lock");
  held.lock();
  std::thread saving([&] { EXPECT_EQ(handle_.save(), 7); });
  EXPECT_EQ(text(handle_.serialize()), "kernels");
  EXPECT_TRUE(handle_.has_cache());
  held.unlock();
  saving.join();
}

TEST_F(RuntimeCacheHandleTest, ThreadsMayShareIt) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 20;
  std::vector<std::thread> threads;
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
  EXPECT_THAT(names_in(directory_.path()), UnorderedElementsAre("cache.bin", "cache.bin.lock"));
}

} // namespace
} // namespace torch_tensorrt::tests
