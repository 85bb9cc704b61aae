// Many processes on one cache file: none loses another's bytes, and a killed one harms nobody.

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "core/runtime/RuntimeCacheFile.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_cache_testing.h"
#include "tests/util/processes/child_process.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::RuntimeCacheFile;
using ::testing::UnorderedElementsAre;
using Bytes = RuntimeCacheFile::Bytes;
using View = RuntimeCacheFile::View;

std::set<std::string> lines_of(const std::string& bytes) {
  std::istringstream stream(bytes);
  std::set<std::string> lines;
  for (std::string line; std::getline(stream, line);) {
    lines.insert(line);
  }
  return lines;
}

Bytes unite(View disk, View ours) {
  std::set<std::string> lines = lines_of(text(disk));
  lines.merge(lines_of(text(ours)));
  std::string united;
  for (const std::string& line : lines) {
    united += line + '\n';
  }
  return owned(std::move(united));
}

TEST(RuntimeCacheFileProcesses, NoLineIsLostWhenAllSaveAtOnce) {
  constexpr int kProcesses = 8;
  constexpr int kSaves = 15;
  const TemporaryDirectory directory;
  const std::string path = directory.file("cache.bin");
  std::vector<std::unique_ptr<ChildProcess>> children;
  for (int process = 0; process < kProcesses; ++process) {
    children.push_back(std::make_unique<ChildProcess>([&path, process](Channel& parent) {
      RuntimeCacheFile file(path, std::chrono::minutes(1));
      std::string own; // and never what the others saved, so that a save without a merge would lose that
      parent.expect("go");
      for (int i = 0; i < kSaves; ++i) {
        own += std::to_string(process) + ':' + std::to_string(i) + '\n';
        file.save(view(own), unite);
        require(lines_of(read_file(path)).contains("0:0") || process != 0, "the first line is gone");
      }
    }));
  }
  for (const auto& child : children) {
    child->channel().say("go");
  }
  for (const auto& child : children) {
    EXPECT_EQ(child->wait(), 0);
  }
  const std::set<std::string> lines = lines_of(read_file(path));
  EXPECT_EQ(lines.size(), static_cast<size_t>(kProcesses * kSaves));
  for (int process = 0; process < kProcesses; ++process) {
    for (int i = 0; i < kSaves; ++i) {
      EXPECT_TRUE(lines.contains(std::to_string(process) + ':' + std::to_string(i)));
    }
  }
  EXPECT_THAT(names_in(directory.path()), UnorderedElementsAre("cache.bin", "cache.bin.lock"));
}

TEST(RuntimeCacheFileProcesses, AWriterKilledAtAnyMomentLeavesAWholeFileAndNoLitter) {
  constexpr int kKills = 40;
  constexpr size_t kSize = 400'000;
  const TemporaryDirectory directory;
  const std::string path = directory.file("cache.bin");
  std::mt19937 random{std::random_device{}()};
  for (int i = 0; i < kKills; ++i) {
    ChildProcess child([&path](Channel& parent) {
      RuntimeCacheFile file(path);
      load(file);
      parent.say("saving");
      for (char letter = 'a';; letter = letter == 'z' ? 'a' : static_cast<char>(letter + 1)) {
        file.save(view(std::string(kSize, letter)), unite);
      }
    });
    child.channel().expect("saving");
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
    child.kill();
    const std::string bytes = read_file(path);
    if (!bytes.empty()) { // else the first writer of all was killed before its first rename
      ASSERT_EQ(bytes.size(), kSize);
      ASSERT_EQ(std::count(bytes.begin(), bytes.end(), bytes[0]), static_cast<std::ptrdiff_t>(kSize));
    }
  }
  RuntimeCacheFile file(path);
  load(file);
  file.save(view("the last word"), unite);
  EXPECT_EQ(read_file(path), "the last word");
  EXPECT_THAT(names_in(directory.path()), UnorderedElementsAre("cache.bin", "cache.bin.lock"));
}

TEST(RuntimeCacheFileProcesses, AWriterKilledInItsMergeHoldsNoLock) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("cache.bin");
  write_file(path, "theirs");
  ChildProcess child([&path](Channel& parent) {
    RuntimeCacheFile(path).save(view("ours"), [&parent](View, View) -> Bytes {
      parent.say("merging");
      parent.expect("nothing, but to be killed");
      return {};
    });
  });
  child.channel().expect("merging");
  RuntimeCacheFile meanwhile(path, std::chrono::milliseconds(0));
  EXPECT_EQ(load(meanwhile), "theirs");
  EXPECT_EQ(meanwhile.save(view("others"), unite), 6U);
  child.kill();
  EXPECT_EQ(read_file(path), "others");
}

} // namespace
} // namespace torch_tensorrt::tests
