// The part of the store that a sanitizer should see. tests/py/runtime/test_runtime_cache_file*.py test its contract on
// the stores of both languages.

#include "core/runtime/RuntimeCacheFile.h"

#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_cache_testing.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::FileGeneration;
using core::runtime::LockWaits;
using core::runtime::RuntimeCacheFile;
using ::testing::HasSubstr;

class RuntimeCacheFileTest : public ::testing::Test {
 protected:
  const TemporaryDirectory directory_;
  const std::string path_ = directory_.file("cache.bin");
  LockWaits waits_{.timeout = std::chrono::milliseconds(20)};
  const RuntimeCacheFile file_{path_, waits_};
};

class RoundTripTest : public RuntimeCacheFileTest, public ::testing::WithParamInterface<size_t> {};

TEST_P(RoundTripTest, GivesBackTheBytesAndComparesThem) {
  std::string bytes(GetParam(), '\0');
  for (size_t i = 0; i < bytes.size(); i += 1021) { // a prime, so that all pages and pieces differ
    bytes[i] = static_cast<char>(i / 1021 + 1);
  }
  const auto written = file_.replace(view(bytes), std::nullopt);
  ASSERT_TRUE(written);
  const auto contents = file_.read();
  ASSERT_TRUE(contents);
  EXPECT_EQ(contents->generation, written->generation);
  EXPECT_TRUE(text(contents->view()) == bytes); // not EXPECT_EQ, which would print them
  const auto again = file_.replace(view(bytes), std::nullopt);
  ASSERT_TRUE(again);
  EXPECT_FALSE(again->is_written);
  for (const size_t at : {size_t{0}, bytes.size() / 2, bytes.size() - 1}) {
    bytes[at] ^= 1;
    EXPECT_FALSE(file_.replace(view(bytes), std::nullopt)) << "a conflict: byte " << at << " differs";
    bytes[at] ^= 1;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Sizes,
    RoundTripTest,
    ::testing::Values(1, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 3 * 64 * 1024, 512 * 1024 * 1024));

TEST_F(RuntimeCacheFileTest, ThreadsThatReplaceLoseNothing) {
  constexpr size_t kThreads = 4;
  constexpr size_t kLetters = 25;
  constexpr size_t kRepeats = 10'000; // of each letter, so that a write takes a while
  std::atomic<bool> done = false;
  std::thread lockless_reader([&] {
    while (!done) {
      EXPECT_EQ(read_file(path_).size() % kRepeats, 0U);
    }
  });
  std::vector<std::thread> writers;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    writers.emplace_back([this, thread] {
      LockWaits waits;
      const RuntimeCacheFile file(path_, waits);
      for (size_t i = 0; i < kLetters; ++i) {
        const std::string added(kRepeats, static_cast<char>(thread * kLetters + i));
        std::string bytes = added;
        std::optional<FileGeneration> expected;
        while (!file.replace(view(bytes), expected)) {
          const auto turn = file.wait_for_turn({});
          const auto contents = file.read();
          ASSERT_TRUE(contents);
          bytes = text(contents->view()) + added;
          expected = contents->generation;
        }
      }
    });
  }
  for (std::thread& writer : writers) {
    writer.join();
  }
  done = true;
  lockless_reader.join();
  const std::string bytes = read_file(path_);
  EXPECT_EQ(bytes.size(), kThreads * kLetters * kRepeats);
  for (size_t letter = 0; letter < kThreads * kLetters; ++letter) {
    EXPECT_EQ(std::ranges::count(bytes, static_cast<char>(letter)), static_cast<std::ptrdiff_t>(kRepeats)) << letter;
  }
}

TEST_F(RuntimeCacheFileTest, WhatEverybodyMayWriteIsRefusedUnlessItIsListed) {
  const std::string link = directory_.file("link");
  std::filesystem::create_symlink("cache.bin", link);
  LockWaits waits;
  const RuntimeCacheFile file(link, waits);
  ASSERT_TRUE(file.replace(view("ours"), std::nullopt));
  std::filesystem::permissions(path_, std::filesystem::perms(0666));
  for (const auto& operation :
       std::vector<std::function<void()>>{[&] { file.read(); }, [&] { file.replace(view("more"), std::nullopt); }}) {
    EXPECT_THAT(error_of(operation), HasSubstr("'" + path_ + "' can't be trusted: everybody may write it"));
  }
  EXPECT_FALSE(file.wait_for_turn(view("more")).lock.owns_lock());
  ::setenv("TORCHTRT_TRUSTED_PATHS", ("relative::" + link).c_str(), 1);
  const auto contents = file.read();
  ::unsetenv("TORCHTRT_TRUSTED_PATHS");
  ASSERT_TRUE(contents);
  EXPECT_EQ(text(contents->view()), "ours");
}

} // namespace
} // namespace torch_tensorrt::tests
